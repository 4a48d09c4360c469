"""Laws in Python, for what the language does not say: the same quantifiers, search and report, judged in float64 with a tolerance.

    @lossdsl.law("for n in 2..4, v in vector(n), s in [0.1, 1]", source="Robbins and Monro, 1951")
    def my_descent(n, v, s):
        \"\"\"What the law says, in a sentence: it stands in the report.\"\"\"
        return norm(step(v, s)), "<=", norm(v)          # or None where a hypothesis fails

The function gets every name of the header: whole numbers and labels as int, reals as float, vectors, logits and probabilities as float64
tensors [n], families as lists, a network as a function from an input [d] to logits [K].
"""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossdsl.check.law_typed import Network, TypedLaw
from lossdsl.diagnostics import LossdslError, UserError
from lossdsl.engine.kernels.networks import network
from lossdsl.lang.types import Kind
from lossdsl.laws.catalogue import Law, laws_of
from lossdsl.laws.domains import value_in
from lossdsl.laws.exact import Comparison, Confirmation
from lossdsl.laws.numbers import mpf
from lossdsl.laws.problem import Assignment, Problem
from lossdsl.laws.search import Effort
from lossdsl.laws.shapes import shapes
from lossdsl.laws.strategies import explore
from lossdsl.laws.verdict import Counterexample, LawReport, Tried, Verdict
from lossdsl.source import Source

_HOLDS: dict[str, Callable[[float, float, float], bool]] = {
    "<=": lambda a, b, slack: a <= b + slack,
    ">=": lambda a, b, slack: a >= b - slack,
    "<": lambda a, b, slack: a < b + slack,
    ">": lambda a, b, slack: a > b - slack,
    "==": lambda a, b, slack: a == b or abs(a - b) <= slack,
}


@dataclass(frozen=True)
class PythonLaw:
    """A law whose relation is a function. tolerance: of its sides, relative to 1 + |left| + |right|."""

    name: str
    title: str
    source_note: str
    header: str
    function: Callable[..., Any]
    refuted: bool
    tolerance: float
    place: str

    def __reduce__(self) -> tuple[Callable[..., PythonLaw], tuple[str, str]]:
        """For another process: its file is run there."""
        return _again, (self.place.rpartition(":")[0], self.name)

    @property
    def said(self) -> str:
        """claim or refute, and the sentence of the function."""
        return f"{'refute' if self.refuted else 'claim'} " + " ".join((self.function.__doc__ or self.name).split())

    @cached_property
    def quantified(self) -> Law:
        """Its quantifiers as a law of the language. Raises RecipeError for a header with errors."""
        (found,) = laws_of(Source(f"law {self.name}\n{self.header}\nclaim 0 <= 0\n", self.place))
        return found


_KNOWN: dict[str, PythonLaw] = {}


def law(
    header: str, *, source: str = "", title: str = "", refute: bool = False, tolerance: float = 1e-9
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a function as a law, see the module's text. header: `for` statements of the language, and lets.

    refute: the law passes if a counterexample is found. Raises RecipeError at once if the header has errors.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        code = function.__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        found = PythonLaw(function.__name__, title or function.__name__, source, header, function, refute, tolerance, place)
        _ = found.quantified.first
        _KNOWN[found.name] = found
        return function

    return register


def python_laws(path: Path) -> list[PythonLaw]:
    """The laws of a Python file, in order. The file is run. Raises UserError if there is none, it fails, or declares no law, RecipeError
    for a header with errors."""
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), fix="name a .loss or .py file, or a shipped one (lossdsl list --laws)")
    before = dict(_KNOWN)
    _KNOWN.clear()
    try:
        spec = importlib.util.spec_from_file_location(f"lossdsl_laws_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        found = list(_KNOWN.values())
    except LossdslError:
        raise
    except Exception as error:
        raise _failed("the file", str(path), path, error) from error
    finally:
        _KNOWN.clear()
        _KNOWN.update(before)
    if not found:
        raise UserError("the file declares no law", where=str(path), fix='write @lossdsl.law("for a in [0, 1]") above a function')
    return found


def _failed(what: str, where: str, path: Path, error: Exception) -> UserError:
    """What user code raised, and the line of it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = f" (line {lines[-1]})" if lines else ""
    return UserError(f"{what} raised {type(error).__name__}: {error}{line}", where=where, fix="mend the Python file")


@cache
def _of_file(path: str) -> dict[str, PythonLaw]:
    return {law.name: law for law in python_laws(Path(path))}


def _again(path: str, name: str) -> PythonLaw:
    return _of_file(path)[name]


class _Judge:
    """Evaluates a Python law at one choice of whole numbers."""

    def __init__(self, law: PythonLaw, typed: TypedLaw, deadline: float) -> None:
        self.law, self.typed, self.deadline = law, typed, deadline
        self.problem = Problem(typed, typed.statements[0], law.quantified.source)
        self.examples = self.satisfied = 0

    def relation(self, assignment: Assignment) -> tuple[float, str, float] | None:
        """What the function says; None where a hypothesis fails."""
        arguments = self.arguments(assignment)
        try:
            found = self.law.function(**arguments)
        except Exception as error:
            path = Path(self.law.place.rpartition(":")[0])
            raise _failed(f"{self.law.name} at {', '.join(arguments)}", self.law.place, path, error) from error
        if found is None:
            return None
        if not (isinstance(found, tuple) and len(found) == 3 and found[1] in _HOLDS):
            fix = 'return left, "<=", right, or None where a hypothesis fails'
            raise UserError(f"{self.law.name} returned {found!r}", where=self.law.place, fix=fix)
        return float(found[0]), str(found[1]), float(found[2])

    def arguments(self, assignment: Assignment) -> dict[str, Any]:
        """By name: what the function gets."""
        frame = self.problem.frame(assignment)
        found: dict[str, Any] = {n: v for n, v in self.typed.choices.items() if n not in ("dimension",) and not isinstance(v, str)}
        thetas: dict[str, Tensor] = {}
        for q in self.typed.quantities:
            value = value_in(frame, q)[0].detach()
            if q.form == "weights":
                thetas[q.name] = value
                continue
            plain: Any = value.exp() if q.kind is Kind.PROB else value
            plain = int(plain) if q.kind is Kind.LABEL else float(plain) if q.kind is Kind.REAL else plain
            name, _, index = q.name.partition("[")
            if index:
                found.setdefault(name, []).append(plain)
            else:
                found[name] = plain
        for name, shape in self.typed.networks.items():
            found[name] = _network(shape, thetas["theta" if name == "f" else f"theta_{name}"])
        return found

    def judge(self, assignment: Assignment) -> tuple[float | None, bool]:
        """As lossdsl.laws.strategies.explore asks."""
        if time.monotonic() > self.deadline:
            return None, False
        self.examples += 1
        found = self.relation(assignment)
        if found is None or isnan(found[0]) or isnan(found[2]):
            return None, False
        self.satisfied += 1
        left, op, right = found
        scale = 1 + abs(left) + abs(right)
        gap = {"<=": left - right, "<": left - right, "==": abs(left - right)}.get(op, right - left) / scale
        return gap, not _HOLDS[op](left, right, self.law.tolerance * scale if isfinite(scale) else 0.0)


def _network(shape: Network, theta: Tensor) -> Callable[[Tensor], Tensor]:
    def logits(x: Tensor) -> Tensor:
        found: Tensor = network(theta, torch.as_tensor(x, dtype=torch.float64), shape)
        return found

    return logits


def check_python_law(law: PythonLaw, effort: Effort) -> LawReport:
    """The verdict, with the examples of hypothesis only."""
    began = time.monotonic()
    statement = law.quantified.first.statements[0]
    statement = type(statement)(statement.relation, law.refuted, (), statement.span)
    examples = satisfied = choices = 0
    for n, typed in enumerate(shapes(law.quantified, effort.seed, max(effort.shapes // 4, 1))):
        if n and time.monotonic() > began + effort.seconds:
            break
        judge = _Judge(law, typed, began + effort.seconds)
        found = explore(judge.problem, effort.seed + n, 3 * effort.examples, judge.judge)
        examples, satisfied, choices = examples + judge.examples, satisfied + judge.satisfied, choices + 1
        if found is not None:
            tried = Tried(satisfied, examples, 1, choices, time.monotonic() - began)
            return report_of(law, Verdict(statement, law.said, "refuted", tried, _counterexample(judge, found), measured=True))
    tried = Tried(satisfied, examples, 0, choices, time.monotonic() - began)
    return report_of(law, Verdict(statement, law.said, "holds" if satisfied else "vacuous", tried, measured=True))


def report_of(law: PythonLaw, verdict: Verdict) -> LawReport:
    """Of a law that is one statement."""
    return LawReport(law.name, law.title, law.source_note, law.place, (verdict,))


def _counterexample(judge: _Judge, found: Assignment) -> Counterexample:
    relation = judge.relation(found)
    assert relation is not None
    comparison = Comparison(False, mpf(relation[0]), mpf(relation[2]), 16)
    values = {n: str(_plain(v)) for n, v in judge.arguments(found).items() if not callable(v)}
    return Counterexample(judge.typed.choices, found, Confirmation(True, False, (comparison,)), values)


def _plain(v: Any) -> Any:
    return [_plain(e) for e in v] if isinstance(v, list) else v.tolist() if isinstance(v, Tensor) else v
