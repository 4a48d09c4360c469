"""Makes the runs and pictures of docs/gallery.md: every command of the page, in order, as it stands.

python docs/make_gallery.py             all of them; a run that is finished is not made again
python docs/make_gallery.py --pictures  only the commands that draw
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from lossdsl.cli import main as lossdsl

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
MADE = ROOT / "runs" / "gallery" / "figures"
LARGEST = 150_000


def commands(page: str) -> list[str]:
    """The commands of the page: indented lines that start with lossdsl."""
    return re.findall(r"^    (lossdsl (?:train|sweep|diagnose|play) .*)$", page, re.MULTILINE)


def shown(page: str) -> list[str]:
    """The pictures that the page shows, without their directory."""
    return re.findall(r"!\[[^\]]*\]\(gallery/([\w-]+\.png)\)", page)


def run(command: str) -> None:
    """One command. Places of files may hold stars, as in a shell. Ends the script if the command fails."""
    words = [word for part in shlex.split(command) for word in (sorted(map(str, Path().glob(part))) if "*" in part else [part])]
    if words[1] == "train":
        out = Path(words[words.index("--out") + 1])
        if (out / "result.json").exists():
            return
        words += ["--resume"] if (out / "manifest.json").exists() else []
    started = time.monotonic()
    if code := lossdsl(words[1:]):
        raise SystemExit(code)
    print(f"{time.monotonic() - started:6.1f} s  {command}", flush=True)


def main() -> None:
    os.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    drawing = "--pictures" in sys.argv[1:]
    for command in commands(page):
        if not drawing or command.split()[1] in ("diagnose", "play"):
            run(command)
    PICTURES.mkdir(exist_ok=True)
    for name in shown(page):
        size = (MADE / name).stat().st_size
        if size > LARGEST:
            raise SystemExit(f"{name} has {size} bytes, more than {LARGEST}")
        shutil.copyfile(MADE / name, PICTURES / name)


if __name__ == "__main__":
    main()
