"""`lossdsl diff`: what counts as a difference, where it is reported, and that both directions say the same."""

from __future__ import annotations

import json
import random
import typing
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.cli import main
from lossdsl.compare.difference import Comparison, compare
from lossdsl.compare.fields import HANDLERS
from lossdsl.compare.written import LARGEST
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.front import Recipe, load, parse_recipe
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_text

SHIPPED = [*recipe_paths(), *attack_paths(), *game_paths()]
LOADED: dict[str, Recipe] = {}

BASE = """recipe base
param lambda = 6, eps = 8/255, n = 2 in 1..9, tau = 0 then 1 from epoch 5
sample s ~ uniform(-1, 1) over x
model g frozen
def gap(v) = max(j != y: f(v)[j]) - f(v)[y]
let e = CE(f(x), y)

lower x' in linf(x, eps)
  maximize gap(x')
  by pgd(steps = 10, step = eps/4, start = x + eps * s, until fooled(tau))
  with f in train

find t in [0, 1] where gap(x + t * (x' - x)) == 0 by bisection(steps = 8)
state now = 0 then 0.9 * now + batch_mean(e)
memory r = 0 then t
log count = now

upper
  minimize e + lambda * KL(p(x) || p(x'@n)) - 0.1 * r * CE(g(x'), y) + now * t
  by sgd(lr = 0.1, momentum = 0.9)

train epochs = 30, batch = 128, schedule = drop(at = [15, 20])
"""
GAME = """game base
param c = 0.5
data (a, b) = (1, 2), (3, 4)
model h(v) = sin(c * v)

player u = 0.5 in [0, 1] minimize u * v + (h(a) - b) * u + u^2
player v = 0.25 maximize u * v

log size = u

solve gda(step = 0.1, iterations = 100)
"""
NEURAL = """game held
model critic : Input -> Real
model h : Latent -> Input
keep critic in clip(0.01)
sample z ~ normal(1) over latent(8)
player critic maximize critic(x) - critic(h(z)) by rmsprop(lr = 5e-5, steps = 5)
player h minimize -critic(h(z)) by rmsprop(lr = 1e-3)
solve alternating(iterations = 2000, batch = 64)
"""
ATTACK = """attack base
param eps = 8/255
run one : x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 20, step = eps/4, start = uniform)
count worst
"""


def loaded(name: str) -> Recipe:
    if name not in LOADED:
        LOADED[name] = load(name)
    return LOADED[name]


def rows(found: Comparison) -> list[tuple[str, str, str | None, str | None]]:
    return [(r.section, r.name, r.old, r.new) for r in found.differences]


def changed(base: str, *edits: tuple[str, str]) -> list[tuple[str, str, str | None, str | None]]:
    """The differences after replacing parts of a text, each of which it has once."""
    text = base
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return rows(compare(parse_recipe(base), parse_recipe(text)))


def objective(text: str, before: str = "") -> Recipe:
    frame = "recipe r param lambda = 6, b = 2 lower x' in linf(x, 0.1) maximize CE(f(x'), y) by linear(start = x) {} upper minimize {} by sgd(lr = 0.1)"
    return parse_recipe(frame.format(before, text))


# --- what is no difference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_differs_from_itself_however_it_is_laid_out(name: str) -> None:
    recipe = loaded(name)
    for other in (recipe, parse_recipe(format_text(recipe.source.text)), parse_recipe(recipe.text)):
        assert rows(compare(recipe, other)) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CE(f(x), y) + lambda * KL(p(x) || p(x'))", "KL(p(x) || p(x')) * lambda + CE(f(x), y)"),
        ("CE(f(x), y) + CE(f(x'), y)", "let a = CE(f(x), y), c = CE(f(x'), y) : c + a"),
        ("let a = CE(f(x), y) : 2 * a", "def a(v) = CE(f(v), y) : a(x) * 2"),
        ("CE(f(x), y) - lambda * (H(p(x)) - b * H(p(x')))", "b * lambda * H(p(x')) + CE(f(x), y) - lambda * H(p(x))"),
        ("(CE(f(x), y) + CE(f(x'), y))/2", "0.5 * CE(f(x), y) + CE(f(x'), y)/2"),
        ("CE(f(x), y) * (1 - p(x)[y])", "CE(f(x), y) - p(x)[y] * CE(f(x), y)"),
        ("CE(f(x), y) + CE(f(x), y)", "2 * CE(f(x), y)"),
        ("CE(f(x), p(x'))", "CE(p(x') || f(x))"),
        ("CE(f(x), y) + batch_mean(lambda * H(p(x)))", "batch_mean(CE(f(x), y)) + lambda * batch_mean(H(p(x)))"),
        ("max(j != y: f(x)[j])", "max(k != y: f(x)[k])"),
        ("if(H(p(x)) < 1 and b > 0, H(p(x)), 0)", "if(0 < b and 1 > H(p(x)), H(p(x)), 0)"),
        ("norm(grad(x: CE(f(x), y)), 2)", "norm(grad(v = x: CE(f(v), y)), 2)"),
        ("def g(v) = grad(v: CE(f(v), y)) : norm(g(x'), 2)", "norm(grad(x': CE(f(x'), y)), 2)"),
        ("norm(grad(v = x + 0.1 * x': CE(f(v), y)), 2)", "norm(grad(u = x'/10 + x: CE(f(u), y)), 2)"),
        ("CE(f(0.5 * x + 0.5 * x'), y)", "CE(f((x + x')/2), y)"),
        ("def m(q) = max(j != y: q[j]) : sum(j: f(x)[j] * m(f(x')))", "sum(i: f(x)[i] * max(k != y: f(x')[k]))"),
        ("16/4^2 * CE(f(x), y)", "CE(f(x), y)"),
        ("lambda/b * CE(f(x), y)", "CE(f(x), y) * lambda/b"),
    ],
)
def test_the_same_in_other_words(first: str, second: str) -> None:
    a, b = (objective(*reversed(text.split(" : "))) for text in (first, second))
    assert rows(compare(a, b)) == [] == rows(compare(b, a))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("KL(p(x) || p(x'))", "KL(p(x') || p(x))"),
        ("CE(f(x), y) - H(p(x))", "H(p(x)) - CE(f(x), y)"),
        ("CE(f(x), p(x'))", "CE(p(x) || f(x'))"),
        ("lambda/b * CE(f(x), y)", "b/lambda * CE(f(x), y)"),
        ("CE(f(x), y)^2", "2 * CE(f(x), y)"),
        ("sum(j: f(x)[j] * max(k: f(x')[j]))", "sum(j: f(x)[j] * max(k: f(x')[k]))"),
        ("max(j != y: f(x)[j])", "max(j: f(x)[j])"),
        ("if(H(p(x)) < 1, H(p(x)), 0)", "if(H(p(x)) <= 1, H(p(x)), 0)"),
        ("if(H(p(x)) < 1, H(p(x)), 0)", "if(H(p(x)) > 1, H(p(x)), 0)"),
        ("CE(f(x), y) * stop(p(x)[y])", "CE(f(x), y) * p(x)[y]"),
        ("batch_mean(CE(f(x), y) where known(y))", "CE(f(x), y)"),
        ("batch_mean(CE(f(x), y) where known(y))", "batch_mean(CE(f(x), y) where p(x)[y] > 0.5)"),
        ("CE(f(x), y) * batch_mean(p(x)[y])", "CE(f(x), y) * p(x)[y]"),
        ("norm(f(x), 2)", "norm(f(x), 1)"),
        ("norm(grad(x: CE(f(x), y)), 2)", "norm(grad(v = x: CE(f(v), y) + H(p(x))), 2)"),
        ("let a = argmax(j: f(x)[j]) : CE(f(x'), a)", "let a = argmax(j: f(x)[j]) with f in eval : CE(f(x'), a)"),
    ],
)
def test_what_is_not_the_same(first: str, second: str) -> None:
    a, b = (objective(*reversed(text.split(" : "))) for text in (first, second))
    assert {row[0] for row in rows(compare(a, b))} == {"upper"}


def test_defaults_written_out_are_no_difference() -> None:
    edits = [
        ("by sgd(lr = 0.1,", "by sgd(nesterov = false, weight_decay = 0, lr = 0.10,"),
        ("step = eps/4,", "restarts = 1, keep = last, step = 0.25 * eps,"),
        ("drop(at = [15, 20])", "drop(factor = 1e-1, at = [15, 20]), warmup = 0, clip = none".removesuffix(", clip = none")),
        ("model g frozen", "input x in [0, 1] model g frozen"),
    ]
    assert changed(BASE, *edits) == []


def test_of_a_statement_only_one_has_its_defaults_are_not_shown() -> None:
    bare = parse_recipe(BASE[: BASE.index("train epochs")])
    found = [("epochs", "30"), ("batch", "128"), ("schedule", "drop(at = [15, 20])")]
    assert rows(compare(bare, parse_recipe(BASE))) == [("train", name, None, value) for name, value in found]


def test_a_def_does_not_capture_the_class_of_a_binder_around_it() -> None:
    """The j of the def and the j of the sum are two, and both stay readable."""
    recipe = objective("sum(j: m(f(x)[j]))", "def m(q) = max(j != y: q * f(x')[j])")
    other = objective("sum(j: max(j1 != y: f(x)[j] * f(x')[j1]))")
    assert rows(compare(recipe, other)) == []
    wrong = objective("sum(j: max(k != y: f(x)[k] * f(x')[k]))")
    assert rows(compare(recipe, wrong))[0][2] == "sum(j: max(j1 != y: f(x)[j] * f(x')[j1]))"


def test_lets_that_double_at_every_step_are_refused() -> None:
    lets = "let a0 = CE(f(x), y) " + " ".join(f"let a{n + 1} = a{n} * a{n}" for n in range(30))
    with pytest.raises(UserError, match=r"a\d+ is too long to compare"):
        compare(objective("a30", lets), objective("CE(f(x), y)"))
    assert LARGEST >= 1000


# --- where a difference is reported -----------------------------------------------------------------------------------


def test_laws_differ_in_domains_hypotheses_and_claims() -> None:
    text = "law a\nfor K in 2..5, z[1..3] in logits(K), y in label(K)\nwhere z[1][y] > 0\nclaim CE(z[1], y) >= 0"
    assert rows(compare(parse_recipe(text), parse_recipe(text.replace("law a", "law b")))) == []
    other = text.replace("2..5", "2..6").replace("> 0", "> 1").replace("claim", "refute")
    assert {row[0] for row in rows(compare(parse_recipe(text), parse_recipe(other)))} == {"for", "where", "claim", "refute"}


def test_every_kind_of_item_is_compared() -> None:
    assert set(HANDLERS) == set(typing.get_args(t.Item)), "say in compare.fields what the new kind of item says"


@pytest.mark.parametrize(
    ("edit", "row"),
    [
        (("eps = 8/255", "eps = 4/255"), ("params", "eps", "8/255", "4/255")),
        (("in 1..9", "in 1..8"), ("params", "n", "2 in 1..9", "2 in 1..8")),
        (("from epoch 5", "from epoch 6"), ("params", "tau", "0 then 1 from epoch 5", "0 then 1 from epoch 6")),
        (("uniform(-1, 1) over x", "uniform(-1, 1)"), ("samples", "s", "uniform(-1, 1) over x", "uniform(-1, 1)")),
        (("model g frozen", "model g"), ("models", "g", "frozen", "trained")),
        (("model g frozen", "input x in reals model g frozen"), ("input", "x in", "[0, 1]", "reals")),
        (("linf(x, eps)", "l2(x, eps)"), ("lower x'", "in", "linf(x, eps)", "l2(x, eps)")),
        (("linf(x, eps)", "linf(x, 2 * eps)"), ("lower x'", "in radius", "eps", "2 * eps")),
        (("maximize gap(x')", "minimize gap(x')"), ("lower x'", "objective", "maximize max(j != y: f(x')[j]) - f(x')[y]", "minimize max(j != y: f(x')[j]) - f(x')[y]")),
        (("by pgd(", "by ascent("), ("lower x'", "by", "pgd(steps = 10, step = eps/4, start = x + eps * s, until fooled(tau))", "ascent(steps = 10, step = eps/4, start = x + eps * s, until fooled(tau))")),
        (("steps = 10, step", "steps = 10, restarts = 2, step"), ("lower x'", "restarts", "1", "2")),
        (("start = x + eps * s,", "start = uniform,"), ("lower x'", "start", "x + eps * s", "uniform")),
        ((", until fooled(tau)", ""), ("lower x'", "until", "fooled(tau)", None)),
        (("with f in train", "with f in untracked"), ("lower x'", "with f in", "train", "untracked")),
        (("with f in train", "with f in train through unrolling"), ("lower x'", "through", "nothing", "unrolling")),
        (("in [0, 1] where", "in [0, 2] where"), ("find t", "in", "[0, 1]", "[0, 2]")),
        (("bisection(steps = 8)", "bisection(steps = 9)"), ("find t", "steps", "8", "9")),
        (("0.9 * now", "0.8 * now"), ("states", "now", "0 then 0.9 * now + batch_mean(CE(f(x), y))", "0 then 0.8 * now + batch_mean(CE(f(x), y))")),
        (("memory r = 0 then t", "memory r = 1 then t"), ("states", "r", "memory, one number per example: 0 then t", "memory, one number per example: 1 then t")),
        (("log count = now", "log count = 2 * now"), ("logs", "count", "now", "2 * now")),
        (("lambda * KL", "3 * KL"), ("upper", "minimize", "lambda * KL(p(x) || p(x'@n))", "3 * KL(p(x) || p(x'@n))")),
        (("now * t", "now * t * CE(f(x), y)"), ("upper", "minimize", "now * t", "now * t * CE(f(x), y)")),
        (("- 0.1 * r", "- 0.2 * r"), ("upper", "minimize", "-0.1 * r * CE(g(x'), y)", "-0.2 * r * CE(g(x'), y)")),
        (("momentum = 0.9)", "momentum = 0.9) with f in untracked"), ("upper", "with f in", "train", "untracked")),
        (("momentum = 0.9", "momentum = 0.8"), ("optimizer", "momentum", "0.9", "0.8")),
        (("sgd(lr = 0.1, momentum = 0.9)", "adam(lr = 0.1)"), ("optimizer", "by", "sgd(lr = 0.1, momentum = 0.9)", "adam(lr = 0.1)")),
        (("[15, 20]", "[15, 25]"), ("train", "schedule", "drop(at = [15, 20])", "drop(at = [15, 25])")),
        (("batch = 128", "batch = 128, ema = 0.99"), ("train", "ema", "none", "0.99")),
        (("max(j != y: f(v)[j]) - f(v)[y]", "max(j: f(v)[j])"), ("lower x'", "objective", "maximize max(j != y: f(x')[j]) - f(x')[y]", "maximize max(j: f(x')[j])")),
    ],
)  # fmt: skip
def test_a_change_is_reported_where_it_is(edit: tuple[str, str], row: tuple[str, str, str | None, str | None]) -> None:
    found = changed(BASE, edit)
    assert row in found
    assert len(found) == (2 if "max(j != y" in edit[0] else 1), "the def is in the search for a root, too"


@pytest.mark.parametrize(
    ("base", "edit", "row"),
    [
        (GAME, ("c = 0.5", "c = 0.4"), ("params", "c", "0.5", "0.4")),
        (GAME, ("(3, 4)", "(3, 5)"), ("data", "b", "[2, 4]", "[2, 5]")),
        (GAME, ("sin(c * v)", "sin(2 * v)"), ("models", "h", "h(v) = sin(c * v)", "h(v) = sin(2 * v)")),
        (GAME, ("u = 0.5 in", "u = 0.75 in"), ("player u", "start", "0.5", "0.75")),
        (GAME, ("in [0, 1]", "in [0, 2]"), ("player u", "in", "[0, 1]", "[0, 2]")),
        (GAME, ("+ u^2", "+ 3 * u^2"), ("player u", "objective", "u^2", "3 * u^2")),
        (GAME, ("maximize u * v", "minimize u * v"), ("player v", "sense", "maximize", "minimize")),
        (GAME, ("log size = u", "log size = v"), ("logs", "size", "u", "v")),
        (GAME, ("step = 0.1", "step = 0.2"), ("solve", "step", "0.1", "0.2")),
        (GAME, ("iterations = 100", "iterations = 100, noise = normal(2)"), ("solve", "noise", "0", "normal(2)")),
        (ATTACK, ("steps = 20", "steps = 50"), ("run one", "steps", "20", "50")),
        (ATTACK, ("count worst", "count each"), ("count", "count", "worst", "each")),
    ],
)
def test_games_and_attacks(base: str, edit: tuple[str, str], row: tuple[str, str, str | None, str | None]) -> None:
    assert changed(base, edit) == [row]


def test_players_that_are_models() -> None:
    """`model NAME : A -> B`, `keep`, the optimizer of a player and its number of updates, `over latent(n)`."""
    edits = ("clip(0.01)", "clip(0.02)"), ("steps = 5", "steps = 6"), ("rmsprop(lr = 1e-3)", "adam(lr = 1e-3)"), ("latent(8)", "latent(9)")
    assert changed(NEURAL, *edits) == [
        ("samples", "z", "normal(1) over latent(8)", "normal(1) over latent(9)"),
        ("player critic", "steps", "5", "6"),
        ("player h", "by", "rmsprop(lr = 1e-3)", "adam(lr = 1e-3)"),
        ("keep", "critic", "clip(0.01)", "clip(0.02)"),
    ]


def test_what_fait_changes_in_trades() -> None:
    found = compare(loaded("trades"), loaded("fait"))
    assert [(r.change, r.section, r.name, r.old, r.new) for r in found.rows] == [
        ("changed", "params", "lambda", "6", "12"),
        ("added", "params", "I", None, "2 in 1..9"),
        ("same", "upper", "minimize", "CE(f(x), y)", "CE(f(x), y)"),
        ("removed", "upper", "minimize", "lambda * KL(p(x) || p(x'))", None),
        ("added", "upper", "minimize", None, "lambda * KL(p(x) || p(x'@I))"),
        ("added", "upper", "minimize", None, "lambda * KL(p(x'@I) || p(x'))"),
        ("changed", "optimizer", "lr", "0.1", "0.4"),
        ("changed", "train", "batch", "128", "512"),
        ("changed", "train", "warmup", "0", "5"),
    ]


def test_a_level_over_weights_and_a_model_are_added() -> None:
    found = rows(compare(loaded("trades"), loaded("trades_awp")))
    level = [
        ("in", "layerwise(theta, gamma, only = matrices)"),
        ("objective", "maximize CE(f{w}(x), y) + lambda * KL(p{w}(x) || p{w}(x'))"),
    ]
    assert [(n, new) for s, n, old, new in found if s == "lower w" and old is None] == [
        *level,
        ("by", "linear"),
        ("with f in", "untracked"),
    ]
    assert ("upper", "at", None, "w") in found and not any(n == "minimize" for _, n, _, _ in found)
    hat = rows(compare(loaded("trades"), loaded("hat")))
    assert ("models", "g", None, "frozen") in hat
    assert ("upper", "minimize", None, "gamma * CE(f(x + h * (x' - x)), argmax(j: g(x')[j]))") in hat


def test_a_term_with_another_factor_is_changed_and_not_replaced() -> None:
    found = [r for r in compare(loaded("trades"), loaded("mart")).rows if r.section == "upper"]
    pair = ("lambda * KL(p(x) || p(x'))", "lambda * KL(p(x) || p(x')) * (1 - p(x)[y])")
    assert [(r.old, r.new) for r in found if r.change == "changed"] == [pair]


def test_the_nearest_term_is_the_partner() -> None:
    """Before one that shares as many factors goes one that differs in its coefficient alone."""
    first = objective("lambda * H(p(x)) * norm(x, 2) + TV(p(x) || p(x'))")
    second = objective("CE(f(x), y) * H(p(x)) * norm(x, 2) + 3 * H(p(x)) * norm(x, 2) + b * JS(p(x) || p(x'))")
    assert rows(compare(first, second)) == [
        ("upper", "minimize", None, "CE(f(x), y) * H(p(x)) * norm(x, 2)"),
        ("upper", "minimize", "lambda * H(p(x)) * norm(x, 2)", "3 * H(p(x)) * norm(x, 2)"),
        ("upper", "minimize", "TV(p(x) || p(x'))", None),
        ("upper", "minimize", None, "b * JS(p(x) || p(x'))"),
    ]


def mirrored(row: tuple[str, str, str | None, str | None]) -> tuple[str, str, str | None, str | None]:
    return row[0], row[1], row[3], row[2]


def test_both_directions_say_the_same() -> None:
    names = list(recipe_paths())
    pairs = random.Random(5).sample([(a, b) for a in names for b in names if a < b], 60)
    games = list(game_paths())
    for a, b in [*pairs, *((p, q) for p in games for q in games if p < q)]:
        there, back = rows(compare(loaded(a), loaded(b))), rows(compare(loaded(b), loaded(a)))
        assert sorted(map(repr, there)) == sorted(repr(mirrored(row)) for row in back), (a, b)
        assert there, f"{a} and {b} are two methods"


# --- one number ---------------------------------------------------------------------------------------------------------


Places = set[tuple[str, str]]


def numbers(name: str) -> list[tuple[t.Number, Places]]:
    """Every number of a recipe's canonical text, with the only rows that may speak of it (none: any)."""
    parts = [part for item in parse_recipe(loaded(name).text).declaration.items for part in places(item)]
    return [(n, where) for node, where in parts for n in t.walk(node) if isinstance(n, t.Number)]


def places(item: t.Item) -> list[tuple[t.Node, Places]]:
    match item:
        case t.Param(name=name):
            return [(item, {("params", name)})]
        case t.Train(options=options):
            return [(option, {("train", str(option.name))}) for option in options]
        case t.Upper(objective=goal, optimizers=optimizers):
            arguments = [a for o in optimizers for a in o.call.args]
            return [(goal, {("upper", "minimize")}), *((a, {("optimizer", str(a.name))}) for a in arguments)]
        case t.Level(var=var, objective=t.Node() as goal, solver=t.Call(args=args)):
            section = f"lower {var}"
            head = [(goal, {(section, "objective")}), (item.set, {(section, "in radius"), (section, "in center")})]
            return [*head, *((a, {(section, str(a.name))}) for a in args)]
        case t.Sample(names=(name, *_)):
            return [(item, {("samples", name)})]
        case t.State(name=name):
            return [(item, {("states", name)})]
    return [(item, set())] if isinstance(item, t.Let | t.Def) else []


NUMBERS = {name: found for name in recipe_paths() if (found := numbers(name))}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_number_is_one_difference(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(NUMBERS)))
    number, where = data.draw(st.sampled_from(NUMBERS[name]))
    text = loaded(name).text
    other = str(int(number.text) + data.draw(st.integers(1, 3))) if number.text.isdigit() else f"{number.value * 1.5:.6g}"
    assert text[number.span.start : number.span.end] == number.text
    try:
        changed_recipe = parse_recipe(text[: number.span.start] + other + text[number.span.end :])
    except RecipeError:
        assume(False)
        return
    found = rows(compare(loaded(name), changed_recipe))
    assert found, f"{name}: {number.text} became {other} and nothing differs"
    if not where:
        assert not any(section in ("params", "optimizer") for section, *_ in found)
    else:
        assert {row[:2] for row in found} <= where
        assert all(old is not None and new is not None for *_, old, new in found), "a changed number removes nothing"
        assert len(found) == 1 or where == {("upper", "minimize")}, "only a number before a sum of several terms is in several"


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diff", "trades", "hat"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "- trades  TRADES (Zhang et al., ICML 2019; FAIT, eq. 3)",
        "+ hat     HAT (Rade & Moosavi-Dezfooli, ICLR 2022; FAIT, table 4)",
    ]
    for line in (
        "  ~ lambda  6 -> 2.5",
        "  + gamma   0.5",
        "    minimize  CE(f(x), y)",
        "  + minimize  gamma * CE(f(x + h * (x' - x)), argmax(j: g(x')[j]))",
        "  ~ nesterov  false -> true",
    ):
        assert line in lines, line
    copy = tmp_path / "copy.loss"
    copy.write_text("# another comment\n" + load("trades").text, encoding="utf-8")
    assert main(["diff", "trades", str(copy)]) == 0
    assert capsys.readouterr().out.endswith("\n\nnothing differs\n")


def test_long_changes_are_shown_below_each_other() -> None:
    found = compare(loaded("elle"), loaded("elle_a")).as_text(width=80)
    assert all(len(line) <= 80 for line in found.splitlines()[2:])
    wrapped = found[found.index("  ~ minimize\n") :]
    assert "\n            - lambda * (" in wrapped and "\n            + now * (" in wrapped


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "pgd20", "pgd50x10", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["old"]["name"], found["new"]["title"], found["equal"]) == ("pgd20", "PGD-50-10", False)
    assert {"section": "run pgd", "name": "steps", "change": "changed", "old": "20", "new": "50"} in found["differences"]
    assert main(["diff", "bat", "bat", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True and found["differences"] == found["unchanged_terms"] == []
    assert main(["diff", "trades", "fait", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unchanged_terms"] == [{"section": "upper", "name": "minimize", "term": "CE(f(x), y)"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pgd20", "trades"], "error: diff: pgd20 is an attack suite, and trades is a recipe\n  help: compare two recipes"),
        (["trades", "tradse"], "error: there is no recipe tradse\n  help: did you mean trades?"),
        (["trades", "nowhere.loss"], "error: nowhere.loss: there is no such file"),
        (["-", "-"], "error: diff: standard input can be read once"),
    ],
)
def test_what_cannot_be_compared(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message)
