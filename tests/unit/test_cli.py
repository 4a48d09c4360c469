"""The command line: exit codes, where output goes, and what --set, fmt and list do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lossdsl
from lossdsl.arguments import parse_number, parse_settings, whole_number
from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.cli import COMMANDS, build_parser, main
from lossdsl.diagnostics import UserError
from lossdsl.syntax.format import format_text

GOOD = """recipe mine
  title "Mine"

param eps = 8/255 in [0, 1]

lower x' in linf(x, eps)
  maximize CE(f(x'), y)
  by pgd(steps = 10, step = eps/4, start = uniform)

upper
  minimize CE(f(x'), y)
  by sgd(lr = 0.1)

train epochs = 2, batch = 16
"""
WRONG = GOOD.replace("CE(f(x'), y)\n  by pgd", "CE(f(z), y)\n  by pgd")
BROKEN = GOOD.replace("param eps = 8/255", "param eps = = 8/255")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("good", GOOD), ("wrong", WRONG), ("broken", BROKEN), ("ragged", GOOD.replace("param eps", "param    eps"))):
        (tmp_path / f"{name}.loss").write_text(text, encoding="utf-8")
    return tmp_path


def fed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("0.5", 0.5),
        ("5e-4", 5e-4),
        ("8/255", 8 / 255),
        ("6/2", 3.0),
        (" 1 / 4 ", 0.25),
        ("-8/255", -8 / 255),
        ("1e3", 1000.0),
    ],
)
def test_numbers(text: str, value: float) -> None:
    found = parse_number(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["", "1/0", "a", "1/2/3", ".5", "5.", "inf", "nan", "1e999", "8 255", "__import__('os')", "0x10", "1e999999999/3", "1_000"]
)
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [(["eps"], "sets nothing"), (["=3"], "sets nothing"), (["eps=big"], "'big' is not a number"), (["a=1", "a=2"], "a is set twice")],
)
def test_wrong_settings(given: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        parse_settings(given)
    assert caught.value.where.startswith("--set") and caught.value.fix


def test_settings_keep_whole_numbers_whole() -> None:
    assert parse_settings(["I=2", "lambda = 6.0"]) == {"I": 2, "lambda": 6.0}
    assert type(parse_settings(["I=2"])["I"]) is int


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "²"])
def test_whole_numbers_count_from_one(text: str) -> None:
    with pytest.raises(Exception, match="not a whole number from 1"):
        whole_number(text)


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_of_clean_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.loss", "trades", "pgd20", "--no-notes"]) == 0
    assert capsys.readouterr().out == "no errors\n"


def test_notes_are_lines_and_no_findings(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.loss", "pgd20"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(": note[T0" in line for line in lines) and {line.partition(":")[0] for line in lines} >= {"good.loss"}
    assert last == f"no errors, {len(lines)} notes  (lossdsl theory gives the reasons)"


def test_check_shows_the_findings_of_all_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "wrong.loss", "good.loss", "broken.loss", "--no-notes"]) == 1
    out, err = capsys.readouterr()
    assert "error[E010]: there is no z here\n --> wrong.loss:7:17\n" in out
    assert " --> broken.loss:4:13\n" in out
    assert out.endswith("\n2 errors\n") and err == ""


def test_a_warning_is_a_finding(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "unused.loss").write_text(GOOD.replace("param eps", "param spare = 1, eps"))
    assert main(["check", "unused.loss"]) == 1
    assert "warning[T09]: the param spare is never used" in capsys.readouterr().out


def test_a_missing_file_does_not_hide_findings(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nowhere.loss", "wrong.loss"]) == 2
    out, err = capsys.readouterr()
    assert "wrong.loss:7:17" in out
    assert err == "error: nowhere.loss: there is no such file\n"


def test_a_misspelt_recipe_name(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "tradse"]) == 2
    assert "error: tradse: there is no such file or recipe\n  help: did you mean trades?" in capsys.readouterr().err


def test_check_as_json_is_one_list(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "wrong.loss", "broken.loss", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(f["file"], f["code"], f["start"]["line"]) for f in found] == [("wrong.loss", "E010", 7), ("broken.loss", "E001", 4)]
    assert main(["check", "good.loss", "--format", "json", "--no-notes"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["check", "good.loss", "--format", "json"]) == 0
    assert {f["severity"] for f in json.loads(capsys.readouterr().out)} == {"note"}


def test_check_reads_standard_input(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fed(monkeypatch, WRONG.encode())
    assert main(["check", "-"]) == 1
    assert "<stdin>:7:17" in capsys.readouterr().out
    fed(monkeypatch, b"recipe r\xff")
    assert main(["check", "-"]) == 2
    assert "<stdin>: the text is not UTF-8 (byte 8)" in capsys.readouterr().err


def test_check_with_another_value(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.loss", "--set", "eps=0.5"]) == 0
    assert main(["check", "good.loss", "--set", "eps=3/2"]) == 1
    assert "eps = 1.5, given from outside, is outside its range" in capsys.readouterr().out
    assert main(["check", "good.loss", "--set", "epz=1"]) == 2
    assert "error: good.loss: no declaration has a param epz\n  help: did you mean eps?" in capsys.readouterr().err


def test_a_directory_is_not_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(files)]) == 2
    assert "the file cannot be read" in capsys.readouterr().err


# --- fmt ------------------------------------------------------------------------------------------------------------


def test_fmt_rewrites_in_place(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = files / "ragged.loss"
    path.chmod(0o640)
    assert main(["fmt", "ragged.loss"]) == 0
    assert path.read_text() == format_text(GOOD)
    assert path.stat().st_mode & 0o777 == 0o640
    assert main(["fmt", "ragged.loss"]) == 0
    assert capsys.readouterr().out == "ragged.loss reformatted\nragged.loss unchanged\n"
    assert sorted(p.name for p in files.iterdir()) == ["broken.loss", "good.loss", "ragged.loss", "wrong.loss"]


def test_fmt_follows_a_link(files: Path) -> None:
    (files / "link.loss").symlink_to("ragged.loss")
    assert main(["fmt", "link.loss"]) == 0
    assert (files / "link.loss").is_symlink() and (files / "ragged.loss").read_text() == format_text(GOOD)


def test_fmt_check_and_diff_write_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (files / "ragged.loss").read_text()
    (files / "good.loss").write_text(format_text(GOOD))
    assert main(["fmt", "--check", "good.loss"]) == 0
    assert main(["fmt", "--check", "good.loss", "ragged.loss"]) == 1
    assert capsys.readouterr().out == "ragged.loss would change\n"
    assert main(["fmt", "--diff", "ragged.loss"]) == 0
    assert "-param    eps" in capsys.readouterr().out
    assert main(["fmt", "--diff", "--check", "ragged.loss"]) == 1
    assert (files / "ragged.loss").read_text() == before


def test_fmt_leaves_a_broken_file_alone_and_goes_on(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fmt", "broken.loss", "ragged.loss"]) == 2
    out, err = capsys.readouterr()
    assert (files / "broken.loss").read_text() == BROKEN
    assert out == "ragged.loss reformatted\n" and "error[E001]" in err and "broken.loss:4:13" in err


def test_fmt_formats_what_has_only_type_errors(files: Path) -> None:
    assert main(["fmt", "wrong.loss"]) == 0


def test_fmt_of_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fed(monkeypatch, GOOD.replace("param eps", "param    eps").encode())
    assert main(["fmt", "-"]) == 0
    assert capsys.readouterr().out == format_text(GOOD)


def test_fmt_says_that_a_file_cannot_be_written(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    before = (files / "ragged.loss").read_text()
    monkeypatch.setattr(Path, "replace", refuse)
    assert main(["fmt", "ragged.loss"]) == 2
    assert capsys.readouterr().err == "error: ragged.loss: the file cannot be written: Permission denied\n"
    assert (files / "ragged.loss").read_text() == before
    assert not list(files.glob(".*"))


# --- plan, explain, list ----------------------------------------------------------------------------------------------


def test_plan_counts_the_passes_of_trades(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "trades"]) == 0
    assert capsys.readouterr().out.endswith("cost: 13 forward passes, 10 input-backward passes, 1 full backward pass\n")


def test_a_wrong_recipe_ends_other_commands_with_two(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["plan", "wrong.loss"], ["explain", "wrong.loss"], ["train", "wrong.loss", "--out", "run"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error[E010]: there is no z here\n --> wrong.loss:7:17\n") and "Traceback" not in err
    assert not (files / "run").exists()


def test_explain_spells_out_defaults(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "good.loss", "--set", "eps=0.1"]) == 0
    out = capsys.readouterr().out
    for line in (
        "  eps = 0.1  (set from outside; allowed: [0, 1])",
        "  x in       [0, 1]; radii are in these units  (default)",
        "  in         linf(x, 0.1): max |v - center| <= radius, cut to the input domain",
        "  with f in  eval: running statistics of normalisation, no dropout  (default)",
        "  through    nothing: x' is a constant of the upper level  (default)",
        "             start = uniform on the set",
        "             restarts = 1  (default)",
        "             step = 0.025",
        "             one number per example, averaged over the batch",
        "             momentum = 0  (default)",
        "  schedule = constant()  (default)",
        "  CE      -sum_i t_i log q_i: cross-entropy of a prediction under a target",
    ):
        assert line in out.splitlines(), line


@pytest.mark.parametrize("name", [*recipe_paths(), *attack_paths(), *game_paths()])
def test_every_shipped_file_can_be_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    out = capsys.readouterr().out
    assert name in out.splitlines()[0] and "(default)" in out


def test_explain_takes_other_clauses(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "good.loss", "--by", "adam(lr = 2e-3)", "--train", "epochs = 7"]) == 0
    out = capsys.readouterr().out
    assert "torch.optim.Adam" in out and "  epochs = 7\n" in out and "  batch = 16\n" in out


def test_list_has_one_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*recipe_paths(), *game_paths()]
    assert any(line.startswith("trades ") and " T6 " in line and "TRADES" in line and "Zhang et al., ICML 2019" in line for line in lines)
    assert main(["list", "--attacks"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(attack_paths())


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [*recipe_paths(), *game_paths()]
    trades = rows["trades"]
    assert trades["method"] == ["T6"] and trades["params"]["lambda"] == 6 and trades["title"] == "TRADES"
    assert trades["choices"] == ["A7", "A12"] and (trades["kind"], rows["forsaken"]["kind"]) == ("recipe", "game")
    assert Path(trades["file"]).read_text().count("\n") > trades["lines"] == 11
    assert {row["name"] for row in rows.values() if not row["method"]} <= {"alp", "free_at"}, "the rest are numbered in the methods"


# --- train, evaluate, plot --------------------------------------------------------------------------------------------


def test_an_attack_suite_cannot_be_trained(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pgd20", "--out", "run"]) == 2
    assert "error: pgd20: pgd20 is an attack suite and cannot be trained" in capsys.readouterr().err
    (files / "bare.loss").write_text(GOOD[: GOOD.index("train")])
    assert main(["train", "bare.loss", "--out", "run"]) == 2
    assert "error: bare.loss: mine is without a train statement and cannot be trained" in capsys.readouterr().err


def test_evaluate_of_something_else(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere/manifest.json: ")


@pytest.mark.slow
def test_a_run_from_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "train",
        "good.loss",
        "--set",
        "eps=0.1",
        "--by",
        "adam(lr = 2e-3)",
        "--batch",
        "256",
        "--epochs",
        "1",
        "--out",
        "run",
        "--quiet",
    ]
    assert main(command) == 0
    assert "robust (pgd20)" in capsys.readouterr().out
    manifest = json.loads((files / "run" / "manifest.json").read_text())["identity"]
    assert manifest["params"] == {"eps": 0.1} and manifest["optimizer"]["name"] == "adam"
    assert (manifest["train"]["epochs"], manifest["train"]["batch"]) == (1, 256)
    assert main(command) == 2
    assert "already holds this run, and it is finished" in capsys.readouterr().err
    assert main(["evaluate", "run", "--attack", "fgsm", "--limit", "20", "--format", "json", "--quiet"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["clean"]["total"] == 20 and result["settings"][0]["radius"] == 0.1
    assert main(["plot", "run", "--out", "curve.png"]) == 0
    assert capsys.readouterr().out.split() == ["curve.png", "curve.svg"]


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekc"], "there is no command chekc: did you mean check?"),
        (["check", "x.loss", "--fromat", "json"], "unrecognized argument --fromat: did you mean --format?"),
        (["train", "trades", "--out", "run", "--epoch", "3"], "unrecognized argument --epoch: did you mean --epochs?"),
        (["list", "trades"], "unrecognized argument trades"),
        (["train", "trades", "--out", "run", "--epochs", "0"], "'0' is not a whole number from 1"),
        (["plan"], "the following arguments are required: RECIPE"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"lossdsl {lossdsl.__version__}\n"


def test_every_option_has_help() -> None:
    _, commands = build_parser()
    assert set(commands) == set(COMMANDS)
    for name, parser in commands.items():
        text = parser.format_help()
        assert all(option in text for option in parser.options), name
        assert not [action.dest for action in parser._actions if not action.help]


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lossdsl.arguments.load", stop)
    assert main(["plan", "trades"]) == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-m", "lossdsl", "list"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_color_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossdsl.check_commands import colored

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colored(Terminal()) and not colored(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colored(Terminal())


def test_output_that_the_terminal_cannot_show_is_escaped(files: Path) -> None:
    (files / "unicode.loss").write_text(GOOD.replace("param eps", "param ε"), encoding="utf-8")
    settings = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(lossdsl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "lossdsl", "check", "unicode.loss"], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and r"the character \u03b5 has no meaning here" in done.stdout and done.stderr == ""


# --- the facade -------------------------------------------------------------------------------------------------------


def test_the_facade_is_small_and_complete() -> None:
    assert len(lossdsl.__all__) <= 14
    assert all(getattr(lossdsl, name) is not None for name in lossdsl.__all__)
    assert set(lossdsl.__all__) <= set(dir(lossdsl))
    assert lossdsl.parse(GOOD).params == {"eps": 8 / 255} and lossdsl.load("trades").name == "trades"
    with pytest.raises(AttributeError, match="module 'lossdsl' has no attribute 'trian'"):
        _ = lossdsl.trian  # type: ignore[attr-defined]


def test_training_says_what_the_checker_warns_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Warnings never block a run, and are not lost either: a radius in pixel units."""

    def stop(request: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lossdsl.run.train.train", stop)
    assert main(["train", "trades", "--set", "eps=8", "--set", "step=2", "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err
    assert "warning[T08]: the radius 8 is larger than the whole input domain" in said and "trades.loss:9:21" in said
