"""The two ways in which formulas are written: LaTeX, and plain text with the symbols of papers."""

from __future__ import annotations

from collections.abc import Sequence

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "eta": "η", "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ",
    "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω", "Lambda": "Λ", "Phi": "Φ",
    "Psi": "Ψ", "Delta": "Δ", "Gamma": "Γ",
}  # fmt: skip
_SUPER = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
_SUB = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SIGNS = {
    "*": ("·", r"\cdot"), "<=": ("≤", r"\le"), ">=": ("≥", r"\ge"), "!=": ("≠", r"\ne"), "==": ("=", "="), "<": ("<", "<"),
    ">": (">", ">"), "and": ("∧", r"\wedge"), "or": ("∨", r"\vee"), "+": ("+", "+"), "-": ("-", "-"), "in": ("∈", r"\in"),
    "from": ("←", r"\leftarrow"), "drawn": ("~", r"\sim"), "cap": ("∩", r"\cap"), "to": ("→", r"\to"),
    "bars": (" ‖ ", r" \,\|\, "), "not": ("¬", r"\neg"), "..": ("..", r"\ldots"),
}  # fmt: skip


def _split(name: str) -> tuple[str, str, str]:
    """A name as its stem, what stands below it, and its primes: b_cle is b with cle, s1 is s with 1."""
    stem = name.rstrip("'")
    primes = name[len(stem) :]
    head, _, below = stem.partition("_")
    if not below and len(head) > 1 and head[-1].isdigit() and head.rstrip("0123456789").isalpha():
        bare = head.rstrip("0123456789")
        head, below = bare, head[len(bare) :]
    return head, below, primes


class Plain:
    """Text that a terminal shows."""

    latex = False

    def sign(self, name: str) -> str:
        return _SIGNS[name][0]

    def name(self, name: str) -> str:
        head, below, primes = _split(name)
        digits = below.translate(_SUB) if below.isdigit() else f"_{below}" if below else ""
        return GREEK.get(head, head) + digits + "′" * len(primes)

    def word(self, text: str) -> str:
        """The name of a function."""
        return text

    def words(self, text: str) -> str:
        """Words inside a formula."""
        return text

    def number(self, text: str) -> str:
        return text

    def below(self, base: str, index: str) -> str:
        digits = index.translate(_SUB) if index.isdigit() else ""
        return base + (digits or (f"_{index}" if index.isalnum() or len(index.strip("′")) == 1 else f"_[{index}]"))

    def above(self, base: str, exponent: str) -> str:
        raised = exponent.translate(_SUPER)
        return f"{base}{raised}" if set(raised) <= set("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻") else f"{base}^{exponent if exponent.isalnum() else f'({exponent})'}"

    def iterate(self, base: str, step: str) -> str:
        return f"{base}⁽{step.translate(_SUPER)}⁾" if step.isdigit() else f"{base}^({step})"

    def fraction(self, a: str, b: str) -> str:
        return f"{a}/{b}"

    def product(self, a: str, b: str) -> str:
        return f"{a} · {b}"

    def group(self, body: str) -> str:
        return f"({body})"

    def call(self, function: str, args: Sequence[str], between: str = ", ") -> str:
        return f"{function}({between.join(args)})"

    def big(self, operation: str, low: str, high: str, body: str) -> str:
        """An operation over an index: sum, max, ..."""
        over = f"{low}..{high}" if high else low
        sign = {"sum": "Σ", "argmax": "argmax", "argmin": "argmin"}.get(operation, operation)
        return f"{sign}_[{over}] {body}"

    def norm(self, body: str, order: str) -> str:
        return f"‖{body}‖{ {'inf': '_∞'}.get(order, order.translate(_SUB)) }"

    def absolute(self, body: str) -> str:
        return f"|{body}|"

    def letter(self, letter: str) -> str:
        """A letter for a distribution or the batch."""
        return letter

    def elements(self, listed: str) -> str:
        """A finite set."""
        return f"{{{listed}}}"

    def root(self, body: str) -> str:
        return f"√({body})"

    def positive(self, body: str) -> str:
        return f"[{body}]₊"

    def inner(self, a: str, b: str) -> str:
        return f"⟨{a}, {b}⟩"

    def gradient(self, variable: str, body: str, point: str = "") -> str:
        return f"∇_{variable} {body}" + (f" at {variable} = {point}" if point else "")

    def expectation(self, body: str, condition: str = "", over: str = "") -> str:
        given = f" | {condition}" if condition else ""
        return f"E{over and '_' + over}[{body}{given}]"

    def cases(self, condition: str, a: str, b: str) -> str:
        return f"[{a} if {condition} else {b}]"

    def indicator(self, body: str) -> str:
        return f"1[{body}]"

    def ball(self, kind: str, center: str, radius: str) -> str:
        return f"B{ {'linf': '∞', 'l2': '₂', 'l1': '₁'}[kind] }({center}, {radius})"

    def simplex(self, classes: str) -> str:
        return f"Δ({classes})"

    def box(self, low: str, high: str) -> str:
        return f"[{low}, {high}]ᵈ"

    def projection(self, region: str, body: str) -> str:
        return f"Π[{region}]({body})"

    def normal(self, scale: str) -> str:
        return f"N(0, {self.above(scale if scale.replace('.', '').isalnum() else f'({scale})', '2')} I)"

    def model(self, letter: str, index: str) -> str:
        """f or p, of the parameters or of another model."""
        return f"{letter}_{index}"

    def math(self, formula: str) -> str:
        """A formula inside text."""
        return formula

    def text(self, words: str) -> str:
        return words


_TALL = ("\\frac", "\\sum", "\\begin", "\\Big", "\\sqrt")
"""What parentheses around it must grow with."""


class Latex(Plain):
    """LaTeX with amsmath and amssymb."""

    latex = True

    def sign(self, name: str) -> str:
        return _SIGNS[name][1]

    def name(self, name: str) -> str:
        head, below, primes = _split(name)
        word = {"eps": r"\epsilon"}.get(head) or (f"\\{head}" if head in GREEK else head if len(head) == 1 else f"\\mathit{{{head}}}")
        under = f"_{{{below if below.isdigit() else self.words(below)}}}" if below else ""
        return word + under + "'" * len(primes)

    def word(self, text: str) -> str:
        return f"\\operatorname{{{_escaped(text)}}}"

    def words(self, text: str) -> str:
        return f"\\mathrm{{{_escaped(text)}}}" if " " not in text else f"\\text{{{_escaped(text)}}}"

    def number(self, text: str) -> str:
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa} \\cdot 10^{{{int(exponent)}}}" if e else text

    def below(self, base: str, index: str) -> str:
        return f"{base}_{{{index}}}" if base[-1:] != "'" else f"{{{base}}}_{{{index}}}"

    def above(self, base: str, exponent: str) -> str:
        return f"{{{base}}}^{{{exponent}}}"

    def iterate(self, base: str, step: str) -> str:
        return f"{{{base}}}^{{({step})}}"

    def fraction(self, a: str, b: str) -> str:
        return f"\\frac{{{a}}}{{{b}}}"

    def product(self, a: str, b: str) -> str:
        return f"{a} \\cdot {b}" if b[:1].isdigit() else f"{a} \\, {b}"

    def group(self, body: str) -> str:
        return f"\\left({body}\\right)" if any(word in body for word in _TALL) else f"({body})"

    def call(self, function: str, args: Sequence[str], between: str = ", ") -> str:
        return function + self.group(between.join(args))

    def big(self, operation: str, low: str, high: str, body: str) -> str:
        sign = {"sum": "\\sum", "max": "\\max", "min": "\\min"}.get(operation, f"\\operatorname*{{{operation}}}")
        return f"{sign}_{{{low}}}{f'^{{{high}}}' if high else ''} {body}"

    def norm(self, body: str, order: str) -> str:
        return f"\\left\\|{body}\\right\\|_{{{ {'inf': chr(92) + 'infty'}.get(order, order) }}}"

    def absolute(self, body: str) -> str:
        return f"\\left|{body}\\right|"

    def letter(self, letter: str) -> str:
        return f"\\mathcal{{{letter}}}"

    def elements(self, listed: str) -> str:
        return f"\\{{{listed}\\}}"

    def root(self, body: str) -> str:
        return f"\\sqrt{{{body}}}"

    def positive(self, body: str) -> str:
        return f"\\left[{body}\\right]_+"

    def inner(self, a: str, b: str) -> str:
        return f"\\left\\langle {a}, {b} \\right\\rangle"

    def gradient(self, variable: str, body: str, point: str = "") -> str:
        at = f"\\Big|_{{{variable} = {point}}}" if point else ""
        return f"\\nabla_{{{variable}}} {body}{at}"

    def expectation(self, body: str, condition: str = "", over: str = "") -> str:
        given = f" \\,\\middle|\\, {condition}" if condition else ""
        return f"\\mathbb{{E}}{f'_{{{over}}}' if over else ''}\\left[{body}{given}\\right]"

    def cases(self, condition: str, a: str, b: str) -> str:
        return f"\\begin{{cases}} {a} & \\text{{if }} {condition} \\\\ {b} & \\text{{else}} \\end{{cases}}"

    def indicator(self, body: str) -> str:
        return f"\\mathbf{{1}}\\left[{body}\\right]"

    def ball(self, kind: str, center: str, radius: str) -> str:
        return f"\\mathbb{{B}}_{{{ {'linf': chr(92) + 'infty', 'l2': '2', 'l1': '1'}[kind] }}}({center}, {radius})"

    def simplex(self, classes: str) -> str:
        return f"\\Delta_{{{classes}}}"

    def box(self, low: str, high: str) -> str:
        return f"[{low}, {high}]^d"

    def projection(self, region: str, body: str) -> str:
        return f"\\Pi_{{{region}}}" + self.group(body)

    def normal(self, scale: str) -> str:
        return f"\\mathcal{{N}}\\left(0, {{{scale}}}^{{2}} I\\right)"

    def model(self, letter: str, index: str) -> str:
        return f"{letter}_{{{index}}}"

    def math(self, formula: str) -> str:
        return f"${formula}$"

    def text(self, words: str) -> str:
        return _escaped(words)


_SPECIAL = {c: "\\" + c for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_SPECIAL |= {"<": r"$<$", ">": r"$>$", "|": r"$|$", "'": "'", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "é": r"\'e"}


def _escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_SPECIAL.get(c, c) for c in text)
