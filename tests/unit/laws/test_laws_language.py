"""What laws can say: domains, families, recipes and games, and the page that describes it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from law_tools import assignment, law, problem, random_numbers, rows

from lossdsl.cli import main
from lossdsl.diagnostics import RecipeError
from lossdsl.front import check_source
from lossdsl.laws.catalogue import laws_of, load_laws
from lossdsl.laws.past import Past
from lossdsl.laws.python_laws import check_python_law, python_laws
from lossdsl.laws.search import Effort
from lossdsl.laws.shapes import shapes
from lossdsl.laws.testing import law_tests, laws_at
from lossdsl.laws.workers import reports
from lossdsl.source import Source
from lossdsl.syntax.format import format_text

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "laws_language.md").read_text(encoding="utf-8")
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines())
    for block in re.findall(r"(?<=\n\n)((?:    .*\n)(?:(?:    .*)?\n)*)", PAGE)
    if block.startswith("    law ")
]


def test_the_page_has_its_examples() -> None:
    assert sum(block.count("law ") for block in BLOCKS) >= 6


@pytest.mark.parametrize("block", BLOCKS, ids=[b.split()[1] for b in BLOCKS])
def test_an_example_of_the_page_is_right(block: str) -> None:
    found = check_source(Source(block, "laws_language.md"))
    assert not found.diagnostics and all(c.typed is not None for c in found.checks)


def test_a_formatted_law_says_the_same() -> None:
    text = "law l for K in {2,3},z[1..K] in logits(K),x in input(2) where x[0]>0 and not(x[1]==1) refute max(i in 1..K:z[i][0])<=x[0] claim 0<1"
    formatted = format_text(text)
    assert format_text(formatted) == formatted
    assert "for K in {2, 3}, z[1..K] in logits(K), x in input(2)\n" in formatted
    assert check_source(Source(formatted)).parsed.file == check_source(Source(text)).parsed.file


def test_what_is_enumerated() -> None:
    found = law("for n in 1..3, i in 1..n, c in {0.5, 2}, f in network(relu), x in input\nclaim f(x)[0] * c <= i")
    assert found.first.options == {
        "n": (1, 2, 3), "i": (1,), "c": (0.5, 2), "f": ("relu 1",), "K": (3, 2, 4), "dimension": (2, 1, 3),
    }  # fmt: skip
    assert found.at({"n": 3, "i": 3, "K": 4}).choices["i"] == 3
    assert found.at({"n": 1, "i": 3}).choices["i"] == 1  # no option any more
    seen = [tuple(t.choices.items()) for t in shapes(found, 0, 40)]
    assert len(set(seen)) == len(seen) >= 30


def test_a_ball_and_an_interval_hold_what_is_chosen_for_them() -> None:
    text = "for x in input(2), eps in [0, 1], {0} in {1}(x, eps), t in [x[0], 1]\nclaim norm({0} - x, {2}) <= eps and min(i in 0..1: {0}[i]) >= 0 and x[0] <= t <= 1"
    for ball, order in (("linf", "inf"), ("l2", "2"), ("l1", "1")):
        found = problem(text.format("x'", ball, order))
        flat = random_numbers(found, 20)
        assert not found.evaluate(flat).suspicious.any() or all(not found.confirm(rows(found, flat, n)).refuted for n in range(20))


def test_a_member_may_be_found_by_argmax() -> None:
    found = problem("for K in {2}, z[1..3] in logits(K), y in label(K)\nlet s = argmax(i in 1..3: z[i][0])\nclaim z[s][1] == 7")
    values = {"z[1]": (0.0, 1.0), "z[2]": (5.0, 7.0), "z[3]": (5.0, 9.0), "y": (0,)}
    given = assignment()
    given = type(given)(values)
    assert found.confirm(given).holds is True
    assert float(found.evaluate(found.tensors([given])).violation[0]) == 0


def test_equal_objectives_of_recipes() -> None:
    text = "for f in network, x in input, x' in linf(x, 0.1), y in label\n"
    same = problem(text + "claim objective(bat, m = 1, beta = 6) == objective(trades, lambda = 6)")
    other = problem(text + "claim objective(bat, m = 1, beta = 6) == objective(trades, lambda = 5)")
    flat = random_numbers(same, 10)
    assert not same.evaluate(flat).suspicious.any() or all(same.confirm(rows(same, flat, n)).holds for n in range(10))
    assert any(other.confirm(rows(other, flat, n)).refuted for n in range(10))


def test_a_number_may_stand_for_a_draw() -> None:
    """ELLE's point between two others, at one of them."""
    text = "for f in network, x in input, d in linf(0, 0.1), a in linf(0, 0.1), b in linf(0, 0.1), t in {0, 1, 1/2}, y in label\n"
    ends, middle = (problem(text + "claim objective(elle, lambda = 9) == CE(f(x + d), y)", t=t) for t in (1, 1 / 2))
    flat = random_numbers(ends, 6)
    assert all(ends.confirm(rows(ends, flat, n)).holds for n in range(6))
    assert middle.evaluate(flat).suspicious.any() and any(middle.confirm(rows(middle, flat, n)).refuted for n in range(6))


def test_iterates_are_members_of_a_family() -> None:
    """FAIT with the separating iterate at x is TRADES."""
    text = "for f in network, x in input, x'[0..10] in linf(x, 0.1), y in label\nclaim objective(fait, lambda = 6, I = 2) >= 0"
    found = law(text).first
    assert [q.name for q in found.quantities if q.form == "ball"] == [f"x'[{n}]" for n in range(11)]


def test_solutions_are_those_of_the_engine_and_do_not_depend_on_the_batch() -> None:
    found = problem("for f in network(smooth), x in input, y in label\nlet v = solution(pgd_at, eps = 0.1, step = 0.05)\nclaim norm(v - x, inf) <= 0.1\nclaim CE(f(v), y) <= 0.5", 1)
    flat = random_numbers(found, 5)
    together = found.evaluate(flat).violation
    for n in range(5):
        alone = found.evaluate({name: v[n : n + 1] for name, v in flat.items()}).violation
        assert float(alone[0]) == float(together[n])


def test_a_solution_at_weights_beyond_float64_is_no_number() -> None:
    found = problem("for f in network, x in input, y in label\nclaim norm(solution(pgd_at, eps = 0.1, step = 0.05) - x, inf) <= 0.1")
    flat = random_numbers(found, 4)
    flat["theta"][1] = 1e300
    assert found.evaluate(flat).violation.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(("recipe", "reason"), [("fat", "its examples leave early"), ("free_at", "it starts where the last batch ended")])
def test_solutions_that_depend_on_other_examples_or_batches(recipe: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        laws_of(Source(f"law l\nfor f in network, x in input, y in label\nclaim norm(solution({recipe}) - x, inf) <= 1\n", "l.loss"))


def test_the_last_point_of_a_game() -> None:
    found = problem("for z in vector(2)\nclaim norm(final(bilinear, solver = gda, step = 0.1, iterations = 1, start = z), 2)^2 == 1.01 * norm(z, 2)^2")
    assert found.confirm(assignment(z=[3.0, 4.0])).holds is True


# --- the command, tests of a user, Python ---


def test_the_command_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.loss"
    path.write_text("law good\nfor a in [0, 1]\nclaim a^2 <= a\nlaw bad\nfor a in [0, 1]\nclaim a^2 >= a\nlaw empty\nfor a in [0, 1]\nwhere a > 2\nclaim a > 0\n")
    one = ["laws", str(path), "--jobs", "1", "--id"]
    assert main([*one, "good"]) == 0
    assert main([*one, "bad"]) == 1
    assert main([*one, "empty"]) == 1
    said = capsys.readouterr().out
    assert "refuted" in said and "vacuous" in said
    assert main([*one, "godo"]) == 2
    assert "did you mean good?" in capsys.readouterr().err


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Laws of both kinds, errors and past counterexamples go to the workers and back; two statements are two tasks."""
    text, script = tmp_path / "mine.loss", tmp_path / "mine.py"
    text.write_text("law two\nfor a in [0, 1]\nclaim a^2 <= a\nclaim a^2 >= a\n")
    script.write_text("import lossdsl\n@lossdsl.law('for n in 1..3')\ndef small(n):\n    return n, '<=', 2\n")
    laws = [*load_laws([str(text)]), *python_laws(script)]
    said = []
    for jobs in (1, 2):
        past = Past(tmp_path / f"{jobs}.json")
        found = list(reports(laws, Effort(work=1e5, examples=5, seconds=float("inf")), past, jobs))
        said.append([(r.name, v.outcome, v.tried.examples, v.counterexample and v.counterexample.values) for r in found for v in r.verdicts])
        assert [v.outcome for r in found for v in r.verdicts] == ["holds", "refuted", "refuted"]
    assert said[0] == said[1]
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


def test_errors_of_laws_go_from_one_process_to_another() -> None:
    with pytest.raises(RecipeError) as caught:
        laws_of(Source("law l\nfor a in [0, 1]\nclaim a\n", "l.loss"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_laws_in_a_users_test_suite(tmp_path: Path) -> None:
    (tmp_path / "a.loss").write_text("law one\nfor a in [0, 1]\nclaim a <= 1\nlaw two\nfor a in [0, 1]\nclaim a < 1\n")
    test = law_tests(tmp_path, seconds=2.0)
    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    one, two = mark.args[1]
    test(one)
    with pytest.raises(AssertionError, match="a = 1"):
        test(two)


def test_laws_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import lossdsl\n"
        "@lossdsl.law('for n in 1..3, v in vector(n), s in [0, 1]')\n"
        "def shrinking(n, v, s):\n"
        "    return (s * v).norm(), '<=', v.norm()\n"
        "@lossdsl.law('for K in 2..3, q in simplex(K), z[1..2] in logits(K), y in label(K), f in network, x in input')\n"
        "def wrong(K, q, z, y, f, x):\n"
        "    assert abs(float(q.sum()) - 1) < 1e-12 and len(z) == 2 and f(x).shape == (K,)\n"
        "    return q[y], '<=', 0.5\n"
    )
    assert [law.name for law in python_laws(path)] == ["shrinking", "wrong"]
    assert main(["laws", str(path), "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "confirmed in float64" in said
    assert "ok    shrinking" in said and "FAIL  wrong" in said


def test_shipped_laws_are_well_typed() -> None:
    assert load_laws()


def test_all_errors_of_a_file_at_once() -> None:
    with pytest.raises(Exception, match="E036"):
        laws_of(Source("law l\nfor a in [0, 1]\nclaim a\n", "l.loss"))


def test_a_name_is_a_file_of_the_language_and_one_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    names = [law.name for law in laws_at("slides")]
    assert "slides_c05_counterexample" in names and "slides_c17_iterates_circle" in names
    assert main(["list", "--laws"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{name} +slides\.(loss|py) ", listed, re.MULTILINE) for name in names)
    assert main(["laws", "slides", "--id", "slides_c05*", "--quiet", "--time", "0.1"]) in (0, 1)
    assert "1 laws" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [("1 / 0\n", "ZeroDivisionError: division by zero (line 1)"), ("import lossdsl\n", "declares no law"),
     ("import lossdsl\n@lossdsl.law('for a in [0, 1]')\ndef l(b):\n    return b, '<=', 1\n", "unexpected keyword argument 'a'")],
)  # fmt: skip
def test_a_python_file_that_fails_is_an_error_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["laws", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error and str(path) in error
    assert main(["laws", "slidse"]) == 2
    assert "did you mean slides?" in capsys.readouterr().err


def test_an_infinite_side_of_a_law_in_python_is_not_within_its_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('import lossdsl\n\n@lossdsl.law("for a in [0, 1]")\ndef endless(a):\n    """nothing is infinite"""\n    return float("inf"), "<=", a\n')
    (found,) = python_laws(path)
    assert not check_python_law(found, Effort(shapes=1, examples=2)).passed
