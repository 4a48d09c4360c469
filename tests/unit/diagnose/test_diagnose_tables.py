"""Tables, their files and figures, and the command line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from lossdsl.cli import main
from lossdsl.diagnose.api import diagnose, draw
from lossdsl.diagnose.catalog import DIAGNOSTICS, find
from lossdsl.diagnose.figures.style import drawing
from lossdsl.diagnose.subject import Options
from lossdsl.diagnose.table import Column, Table, joined
from lossdsl.diagnostics import UserError

TABLE = Table("x", "X", "fig. 1", (Column("k"), Column("v", "nats")), (("a", 1.0), ("b", None), ("a", 3.0)), ("note",), {"n": 2})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_table_holds_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="v is .* in row 1"):
        Table("x", "X", "", TABLE.columns, (("a", 1.0), ("b", value)))
    with pytest.raises(ValueError, match="row 0 has 1 cells"):
        Table("x", "X", "", TABLE.columns, (("a",),))


def test_json_and_csv() -> None:
    assert Table.from_json(json.loads(json.dumps(TABLE.to_json(), allow_nan=False))) == TABLE
    assert TABLE.to_csv() == "k,v [nats]\na,1.0\nb,\na,3.0\n"


def test_columns_splits_and_joins() -> None:
    assert TABLE["v"] == [1.0, None, 3.0] and TABLE.label("v") == "v [nats]"
    assert {name: part["v"] for name, part in TABLE.split("k").items()} == {"a": [1.0, 3.0], "b": [None]}
    with pytest.raises(KeyError, match="has no column w; it has k, v"):
        TABLE["w"]
    both = joined({"one": TABLE, "two": Table("x", "X", "", TABLE.columns, (("c", 2.0),), ("note", "own"), {"n": 3})})
    assert both["run"] == ["one"] * 3 + ["two"]
    assert both.notes == ("note", "two: own") and both.facts == {"one: n": 2, "two: n": 3}
    summary = joined({"one": TABLE}).summary()
    assert list(summary) == [
        {"run": "one", "column": "v", "min": 1.0, "25%": 1.5, "median": 2.0, "mean": 2.0, "75%": 2.5, "max": 3.0, "values": 2}
    ]


def test_the_catalog_names_every_diagnostic_once() -> None:
    numbers = [row.number for row in DIAGNOSTICS.values()]
    assert sorted(numbers, key=lambda n: int(n[1:])) == [f"D{n}" for n in range(1, 23) if n != 21]
    for row in DIAGNOSTICS.values():
        assert row.number in (row.measure().__doc__ or "") and row.draw().__doc__
        assert find(row.number.lower()) is row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "margin"], "did you mean margins?"),
        (["--what", "D21"], "lossdsl play GAME --plot FILE"),
        (["--what", "margins", "--eps", "0.1,0.05"], "the radii do not rise"),
        (["--what", "margins", "--eps", "a"], "is no list of radii"),
        ([], "no diagnostic is named"),
        (["--what", "margins", "--checkpoint", "epoch:9"], "the weights of epoch 9 were not kept (kept: 1, 2, 3)"),
        (["--what", "margins", "--checkpoint", "first"], "write best, last or epoch:N"),
        (["--what", "margins", "--attack", "pgd21"], "did you mean pgd"),
    ],
)
def test_errors_say_what_to_do(run_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run_path), "--quiet", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_run_and_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--what", "margins"]) == 2
    assert "name at least one run" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path), "--what", "margins"]) == 2
    assert "there is no manifest of a run here" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(DIAGNOSTICS) and lines[0].startswith("D1 ")


def test_files_of_two_runs(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.symlink_to(run_path)
    words = ["--what", "D8,time", "--limit", "20", "--attack", "fgsm", "--quiet", "--out", str(out)]
    assert main(["diagnose", str(run_path), str(other), *words]) == 0
    assert {path.name for path in out.iterdir()} == {
        f"{n}.{end}" for n in ("decomposition", "time") for end in ("json", "csv", "png", "svg")
    }
    rows = list(csv.DictReader((out / "decomposition.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["trades"] * 3 + ["other"] * 3
    assert (out / "decomposition.png").read_bytes().startswith(b"\x89PNG") and "R_rob" in capsys.readouterr().out
    before = (out / "decomposition.png").read_bytes(), (out / "decomposition.svg").read_bytes()
    main(["diagnose", str(run_path), str(other), *words])
    assert before == ((out / "decomposition.png").read_bytes(), (out / "decomposition.svg").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_every_diagnostic_is_measured_and_drawn(name: str, run_path: Path) -> None:
    options = Options(limit=15, attack="fgsm" if name != "distances" else "pgd10", starts=2, updates=3, radii=(0.1, 0.2))
    (table,) = diagnose([run_path], [name], options)
    own = Table.from_json(table.to_json())
    alone = Table(own.name, own.title, own.source, own.columns[1:], tuple(row[1:] for row in own.rows), own.notes, own.facts)
    for one in (table, alone):
        with drawing():
            figure = draw(one)
        texts = [axis.get_label_text() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        assert sum(map(bool, texts)) >= 1, "a figure without a label"


def test_the_same_attack_is_made_once(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossdsl.diagnose.subject import Subject

    calls = []
    attacked = Subject._attacked
    monkeypatch.setattr(Subject, "_attacked", lambda self, rows: (calls.append(len(rows)), attacked(self, rows))[1])
    tables = list(diagnose([run_path], ["margins", "quadrants", "decomposition", "classes"], Options(limit=10, attack="fgsm")))
    assert len(tables) == 4 and calls == [10]


def test_unknown_words_in_python() -> None:
    with pytest.raises(UserError, match="nothing to diagnose"):
        list(diagnose([], ["margins"]))
