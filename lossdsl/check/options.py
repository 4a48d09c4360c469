"""Named arguments of solvers, optimizers, schedules and `train`, validated by the models of `lang.specs`."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lossdsl.check.infer import Context, Inference
from lossdsl.check.scope import Scope
from lossdsl.diagnostics import did_you_mean
from lossdsl.lang.specs import SCHEDULES, Options, TrainOptions
from lossdsl.source import Span
from lossdsl.syntax import tree as t


def validated(
    self: Inference, model: type[Options], what: str, args: tuple[t.Argument, ...], span: Span, scope: Scope, at: Context
) -> Any | None:
    """The options object, or None after one finding per fault."""
    fields = [name for name in model.model_fields if name != "kind"]
    values: dict[str, Any] = {}
    good = True
    for arg in args:
        if arg.name is None:
            self.report.error("E014", f"arguments of {what} are named", arg.span, f"its arguments: {', '.join(fields)}")
            good = False
        elif arg.name not in fields:
            self.report.error("E030", f"{what} has no argument {arg.name}", arg.span, did_you_mean(arg.name, fields))
            good = False
        elif arg.name in values:
            self.report.error("E011", f"{arg.name} is given twice", arg.span, "keep one of them")
            good = False
        else:
            value = _value(self, model, arg, scope, at)
            good = good and value is not None
            values[arg.name] = value
    if not good:
        return None
    try:
        return model(**values)
    except ValidationError as error:
        _explain(self, error, what, args, span)
        return None


def _value(self: Inference, model: type[BaseModel], arg: t.Argument, scope: Scope, at: Context) -> Any | None:
    """A number, a word the option knows, a list of numbers, or a schedule."""
    assert arg.name is not None
    if model is TrainOptions and arg.name == "schedule":
        return schedule(self, arg, scope, at)
    words = _words(model, arg.name)
    if isinstance(arg.value, t.Name) and (arg.value.id in words or (words and scope.get(arg.value.id) is None)):
        if arg.value.id not in words:
            self.report.error("E030", f"{arg.name} cannot be {arg.value.id}", arg.value.span, did_you_mean(arg.value.id, words))
            return None
        return {"true": True, "false": False}.get(arg.value.id, arg.value.id)
    if isinstance(arg.value, t.Sequence):
        numbers = [self.number(i, scope, at, arg.name) for i in arg.value.items]
        return None if None in numbers else tuple(numbers)
    return self.number(arg.value, scope, at, arg.name)


def _words(model: type[BaseModel], name: str) -> tuple[str, ...]:
    annotation = model.model_fields[name].annotation
    if annotation is bool:
        return ("true", "false")
    return tuple(a for a in get_args(annotation) if isinstance(a, str))


def schedule(self: Inference, arg: t.Argument, scope: Scope, at: Context) -> Any | None:
    """`schedule = drop(at = [75, 90], factor = 0.1)`."""
    call = arg.value if isinstance(arg.value, t.Call) else t.Call(arg.value, (), span=arg.value.span)
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name == "phases":
        self.report.not_yet("schedules in phases", call.span)
        return None
    if name not in SCHEDULES:
        self.report.error("E030", f"there is no schedule {name}".rstrip(), call.span, did_you_mean(name, SCHEDULES))
        return None
    return validated(self, SCHEDULES[name], name, call.args, call.span, scope, at)


def _explain(self: Inference, error: ValidationError, what: str, args: tuple[t.Argument, ...], span: Span) -> None:
    by_name = {a.name: a for a in args}
    for fault in error.errors():
        name = next((str(part) for part in fault["loc"] if str(part) in by_name), str(fault["loc"][0]) if fault["loc"] else "")
        if fault["type"] == "missing":
            self.report.error("E018", f"{what} needs {name}", span, f"write {what}({name} = ..., ...)")
            continue
        place = by_name[name].value.span if name in by_name else span
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if isinstance(fault["input"], dict) else f", and this is {fault['input']}"
        text = f"{what}: {message}" if not name else f"{name} of {what}: {message[0].lower() + message[1:]}{given}"
        self.report.error("E016", text, place)
