"""A plan as text."""

from __future__ import annotations

from lossdsl.check.typed import number_text
from lossdsl.lang.specs import SOLVERS
from lossdsl.plan.cost import branches, cost
from lossdsl.plan.ir import Code, Find, Plan, Solve, codes


def render(plan: Plan) -> str:
    """The plan as text, the same each time: values are numbered in the order they appear."""
    names: dict[int, str] = {}
    for code in codes(plan):
        for i in code:
            names[i.id] = f"%{len(names) + 1}"
    lines = [f"plan {plan.name}"]
    if plan.samples.instrs:
        lines += ["", "draw once per batch", *_lines(plan.samples, names)]
    for s in plan.solves:
        lines += ["", *(_solve_lines(s, names) if isinstance(s, Solve) else _find_lines(s, names))]
    if plan.upper:
        lines += ["", "upper", *_lines(plan.upper.code, names)]
        for term, result in zip(plan.upper.terms, plan.upper.code.results, strict=False):
            lines.append(f"  term {names[result]:<5} {term}")
        rest = plan.upper.code.results[len(plan.upper.terms) :]
        for log, result in zip(plan.upper.logs, rest, strict=False):
            lines.append(f"  log  {names[result]:<5} {log}")
        for state, result in zip(plan.upper.states, rest[len(plan.upper.logs) :], strict=False):
            lines.append(f"  next {names[result]:<5} {state}")
        lines.append("  full backward" + (f", for each of {branches(plan)} maximisers" if branches(plan) > 1 else ""))
    if plan.sampling.instrs:
        lines += ["", "the law of the next batch's classes", *_lines(plan.sampling, names)]
    return "\n".join([*lines, "", str(cost(plan)), ""])


def _find_lines(s: Find, names: dict[int, str]) -> list[str]:
    lines = [f"find {s.var} in [{names[s.low]}, {names[s.high]}]"]
    if s.before.instrs:
        lines += ["  once per batch, without gradient", *_lines(s.before, names, 4)]
    return [*lines, f"  {s.steps} bisections and both ends", *_lines(s.body, names, 4), f"    root of {names[s.body.results[0]]}"]


def _solve_lines(s: Solve, names: dict[int, str]) -> list[str]:
    level, solver = s.level, s.level.solver
    name = level.var + (f"[{level.axis.domain.text}]" if level.axis else "")
    lines = [
        f"solve {name} in {level.set.name}({names[s.center]}, {names[s.radius]})" + (" and the input domain" if level.set.boxed else "")
    ]
    if s.before.instrs:
        lines += ["  once per batch, without gradient", *_lines(s.before, names, 4)]
    kinds = {"previous": "    the perturbations of the last batch", "own": "    the solver's own start"}
    own = kinds.get(solver.start_kind, f"    the set's own {solver.start_kind} draw")
    start = own if not s.start.results else f"    start at {names[s.start.results[0]]}"
    projected = "" if solver.start_kind != "expression" else ", projected"
    lines += [f"  once per restart ({s.runs})", *_lines(s.start, names, 4), start + projected]
    shown = solver.options.model_dump(exclude={"steps", "restarts"})
    options = ", ".join(f"{k} = {v if isinstance(v, str) else number_text(v)}" for k, v in shown.items())
    lines += [f"  {solver.options.updates} updates by {solver.name}({options})", *_lines(s.body, names, 4)]
    lines += _loop_lines(s, names)
    backward = "full backward" if level.set.over == "weights" else "input-backward"
    lines.append(f"    {'no backward' if solver.name == 'square' else backward} of {names[s.body.results[0]]}, {level.sense}")
    if s.fused:
        lines.append("    the last update: from the upper level's backward pass")
    if s.evaluations:
        lines.append(f"  the objective once more at {s.evaluations} {'points' if SOLVERS[solver.name].searches else 'final points'}")
    if s.through:
        lines.append(f"  through {s.through}" + ("" if s.through != "danskin" else f": {s.runs} solutions, none selected"))
    if s.optimality.instrs:
        lines += ["    optimality conditions", *_lines(s.optimality, names, 4)]
    if s.captures:
        lines.append("  keep the iterates " + ", ".join(map(str, s.captures)))
    return lines


def _loop_lines(s: Solve, names: dict[int, str]) -> list[str]:
    """What shapes the loop of updates."""
    lines = ["    added to every step", *_lines(s.noise, names, 4)] if s.noise.instrs else []
    if s.step is not None:
        lines.append(f"    step {names[s.step]}, per example")
    if s.until is not None:
        lines.append(f"    an example leaves when fooled, after {names[s.until]} further updates")
    if s.stops:
        lines.append("    an example is done at its first success")
    return lines


def _lines(code: Code, names: dict[int, str], indent: int = 2) -> list[str]:
    out = []
    for i in code:
        args = " ".join(names.get(a, f"?{a}") for a in i.args)
        head = f"{names[i.id]:<4} = {i.op}"
        attrs = " ".join(number_text(a) if isinstance(a, int | float) else str(a) for a in i.attrs)
        mark = f" gradient: {i.gradient}" if i.gradient and i.op in ("forward", "grad") else ""
        text = " ".join(part for part in (head, args, attrs) if part) + mark
        shown = i.text if len(i.text) <= 60 else i.text[:57] + "..."
        out.append(f"{' ' * indent}{text:<44} # {shown}".rstrip() if shown else " " * indent + text)
    return out
