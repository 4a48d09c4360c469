"""The page in a headless Chromium, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lossdsl.diagnose.subject import Options
from lossdsl.report.content import gather
from lossdsl.report.page import write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """
<script>
const errors = [];
window.addEventListener("error", e => errors.push(String(e.message)), true);
window.addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  const found = {
    images: [...document.images].map(i => [i.naturalWidth, box(i).width]),
    formulas: [...document.querySelectorAll("math")].map(m => box(m).height),
    window: window.innerWidth,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    fetched: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).map(r => r.name),
    blocked: errors,
    order: [...document.querySelectorAll("h2")].map(h => [h.textContent, box(h).top]),
  };
  document.body.setAttribute("data-probe", JSON.stringify(found));
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the path (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_the_whole_page(runs: list[Path], tmp_path: Path, width: int) -> None:
    out = write(gather(runs, ["curves", "quadrants"], Options(attack="fgsm", limit=40)), tmp_path / "page.html")
    out.write_text(out.read_text(encoding="utf-8").replace("</head>", PROBE + "</head>"), encoding="utf-8")
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},900"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", out.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    probe = re.search(r'data-probe="([^"]*)"', shown)
    assert probe, "the page never finished loading"
    found = json.loads(html.unescape(probe[1]))
    assert len(found["images"]) == 2 and all(natural > 0 and 100 < seen <= found["window"] for natural, seen in found["images"])
    assert len(found["formulas"]) >= 4 and all(height > 8 for height in found["formulas"])
    assert found["overflow"] <= 0, "nothing reaches beyond the window: wide tables scroll inside"
    assert found["fetched"] == [] and found["blocked"] == []
    assert [name for name, _ in found["order"]] == ["Summary", "Methods", "Figures", "Attacks", "Sanity", "Environment"]
    assert sorted(top for _, top in found["order"]) == [top for _, top in found["order"]]
