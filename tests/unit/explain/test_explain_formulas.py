"""Formulas, programmes and algorithms: every node of the language has a form, in both notations, and the LaTeX holds together."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.explain import algorithm, explain, explain_latex, programme
from lossdsl.explain.algorithm import Algorithm
from lossdsl.explain.formulas import Formulas
from lossdsl.explain.notation import Latex, Plain
from lossdsl.explain.programme import Programme
from lossdsl.front import load, parse_recipe
from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.lang.specs import SOLVERS
from lossdsl.source import Source
from lossdsl.syntax import tree as t
from lossdsl.syntax.parse import parse
from tests.golden import explain as golden

SHIPPED = [*recipe_paths(), *attack_paths(), *game_paths()]


def expression(text: str) -> t.Expr:
    parsed = parse(Source(f"recipe r\nlet e = {text}", "case"))
    assert not parsed.diagnostics, text
    let = parsed.file.declarations[0].items[0]
    assert isinstance(let, t.Let)
    return let.value


@pytest.mark.parametrize(
    ("text", "plain", "latex"),
    [
        ("CE(f(x'), y)", "CE(f_θ(x′), y)", r"\operatorname{CE}(f_{\theta}(x'), y)"),
        ("KL(p(x) || p(x'))", "KL(p_θ(x) ‖ p_θ(x′))", r"\operatorname{KL}(p_{\theta}(x) \,\|\, p_{\theta}(x'))"),
        ("f{w}(x)[y]", "f_w(x)_y", r"f_{w}(x)_{y}"),
        ("p[g](x)", "p_g(x)", "p_{g}(x)"),
        ("max(j != y: f(x)[j]) - f(x)[y]", "max_[j ≠ y] f_θ(x)_j - f_θ(x)_y", r"\max_{j \ne y} f_{\theta}(x)_{j} - f_{\theta}(x)_{y}"),
        ("sum(k in 0..m-1: k)", "Σ_[k = 0..m - 1] k", r"\sum_{k = 0}^{m - 1} k"),
        ("(a + b) * c", "(a + b) · c", r"(a + b) \, c"),
        ("(a * b)^2", "(a · b)²", r"{(a \, b)}^{2}"),
        ("(a/b)^2", "(a/b)²", r"{\left(\frac{a}{b}\right)}^{2}"),
        ("a - (b - c)", "a - (b - c)", "a - (b - c)"),
        ("a/(b * c)", "a/(b · c)", r"\frac{a}{b \, c}"),
        ("-x^2", "-x²", "-{x}^{2}"),
        ("x'@3", "x′⁽³⁾", "{x'}^{(3)}"),
        ("norm(x' - x, inf)", "‖x′ - x‖_∞", r"\left\|x' - x\right\|_{\infty}"),
        ("grad(v = x + eta: CE(f(v), y))", "∇_v CE(f_θ(v), y) at v = x + η", r"\nabla_{v} \operatorname{CE}(f_{\theta}(v), y)\Big|_{v = x + \eta}"),
        ("if(a > 0, b, c)", "[b if a > 0 else c]", r"\begin{cases} b & \text{if } a > 0 \\ c & \text{else} \end{cases}"),
        ("batch_mean(e where known(y))", "E_B[e | y known]", r"\mathbb{E}_{\mathcal{B}}\left[e \,\middle|\, y\text{ known}\right]"),
        ("not (a and b) or 0 <= c < 1", "¬ (a ∧ b) ∨ 0 ≤ c < 1", r"\neg (a \wedge b) \vee 0 \le c < 1"),
        ("stop(b_cle)", "sg(b_cle)", r"\operatorname{sg}(b_{\mathrm{cle}})"),
        ("logsumexp(j: z[j])", "log Σ_[j] exp(z_j)", r"\operatorname{log} \sum_{j} \operatorname{exp}(z_{j})"),
        ("softmax(j != y: mu * z[j])", "softmax_[j ≠ y](μ · z_j)", r"\operatorname{softmax}_{j \ne y}(\mu \, z_{j})"),
        ("onehot(y)", "e_y", "e_{y}"),
        ("5e-4", "5e-4", r"5 \cdot 10^{-4}"),
    ],
)  # fmt: skip
def test_a_formula(text: str, plain: str, latex: str) -> None:
    assert Formulas(Plain()).of(expression(text)) == plain
    assert Formulas(Latex()).of(expression(text)) == latex


def test_every_node_has_a_form() -> None:
    for node in get_args(t.Expr):
        assert callable(getattr(Formulas, "_" + node.__name__.lower(), None)), node


@pytest.mark.parametrize("name", [*OPERATIONS, *BINDERS])
def test_every_operation_has_a_form(name: str) -> None:
    example = OPERATIONS[name].example if name in OPERATIONS else f"{name}(j != y: f(x)[j])"
    for notation in (Plain(), Latex()):
        text = Formulas(notation).of(expression(example))
        assert text and "||" not in text and "!=" not in text


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_an_update(name: str) -> None:
    row = SOLVERS[name]
    options = ", ".join(f"{key} = 1" for key, field in row.options.model_fields.items() if field.is_required())
    start = "at = x + 0.01" if name == "prox" else "start = x + normal(0.1)"
    text = f"recipe r\nlower x' in linf(x, 0.1) maximize CE(f(x'), y) by {name}({', '.join(filter(None, (options, start)))})\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    try:
        recipe = parse_recipe(text)
    except Exception:
        pytest.skip(f"{name} belongs to attack suites or needs other options")
    steps = list(Algorithm(recipe, Programme(recipe, Plain())).steps())
    assert any("x′ ←" in line or row.update in line for _, line in steps)


@pytest.mark.parametrize("name", SHIPPED)
def test_everything_shipped_is_explained(name: str) -> None:
    recipe = load(name)
    text, document = explain(recipe), explain_latex(recipe)
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads[1:3] == [{"recipe": "programme", "attack": "attacks", "game": "game"}[recipe.kind], "algorithm"]
    assert well_formed(document) == ""


def well_formed(document: str) -> str:
    """What is wrong with a LaTeX document: unbalanced braces, fences, environments or dollars, characters it cannot print."""
    bare = document.replace("\\\\", "").replace("\\{", "").replace("\\}", "").replace("\\$", "")
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return "a brace closes what is not open"
    if depth or bare.count("$") % 2:
        return "braces or dollars are open"
    if len(re.findall(r"\\left\b", bare)) != len(re.findall(r"\\right\b", bare)):
        return "left and right do not match"
    if sorted(re.findall(r"\\begin\{(.*?)\}", bare)) != sorted(re.findall(r"\\end\{(.*?)\}", bare)):
        return "environments do not match"
    return "" if document.isascii() else f"not ASCII: {[c for c in document if not c.isascii()]}"


def test_what_is_wrong_would_be_found() -> None:
    for wrong in (r"{a", r"\left( a", r"\begin{x}", "$a", "θ", "a}{"):
        assert well_formed(wrong)


def test_names_are_those_of_papers() -> None:
    assert [Plain().name(n) for n in ("lambda", "eps", "x'", "s1", "b_cle", "Lambda", "worst")] == ["λ", "ε", "x′", "s₁", "b_cle", "Λ", "worst"]
    step = parse_recipe("recipe r\nparam step = 0.1\nupper minimize step * CE(f(x), y) by sgd(lr = 0.1)")
    both = parse_recipe("recipe r\nparam step = 0.1, alpha = 2\nupper minimize step * alpha * CE(f(x), y) by sgd(lr = 0.1)")
    assert "α = 0.1" in explain(step) and "step = 0.1, α = 2" in explain(both)


def test_a_value_from_outside_is_shown() -> None:
    lines = programme.plain(list(Programme(load("trades").with_params(eps=0.5), Plain()).lines()))
    assert "ε = 0.5" in lines[-1] and "λ = 6" in lines[-1]


def test_golden() -> None:
    for path, text in golden.outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: if the new text is better: python -m tests.golden.explain"


def test_the_order_of_the_algorithm_is_that_of_the_plan() -> None:
    recipe = load("trades_awp")
    text = "\n".join(algorithm.plain(list(Algorithm(recipe, Programme(recipe, Plain())).steps())))
    assert text.index("x′ ←") < text.index("w ← θ") < text.index("L ←") < text.index("θ ← SGD")
