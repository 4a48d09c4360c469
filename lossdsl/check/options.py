"""Named arguments of solvers, optimizers, schedules and `train`, validated by the models of `lang.specs`."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lossdsl.check.infer import Context, Inference
from lossdsl.check.scope import Scope
from lossdsl.check.typed import number_text
from lossdsl.diagnostics import suggest
from lossdsl.lang.options import Options
from lossdsl.lang.search_options import ApgdOptions
from lossdsl.lang.specs import SCHEDULES, Mix, SolverOptions, TrainOptions
from lossdsl.source import Span
from lossdsl.syntax import tree as t


def validated(
    self: Inference,
    model: type[Options],
    what: str,
    args: tuple[t.Argument, ...],
    span: Span,
    scope: Scope,
    at: Context,
    also: tuple[str, ...] = (),
) -> Any | None:
    """The options object, or None after one finding per fault. `also`: arguments that the caller has taken out already."""
    fields = [name for name in model.model_fields if name != "kind"]
    values: dict[str, Any] = {}
    given = {arg.name for arg in args} | set(also)
    strange = [arg for arg in args if arg.name not in fields]
    for arg in strange:
        _strange(self, model, what, arg, given)
    good = not strange
    for arg in args:
        if arg.name is None or arg in strange:
            continue
        if arg.name in values:
            self.report.error("E011", f"{arg.name} is given twice", arg.span, "keep one of them")
            good = False
            continue
        value = _value(self, model, arg, scope, at)
        good = good and value is not None
        values[arg.name] = value
    known = {name: value for name, value in values.items() if value is not None}
    try:
        options = model(**known)
    except ValidationError as error:
        # What is missing is the same mistake as a strange argument, and said there.
        faults = [f for f in error.errors() if f["type"] != "missing" or not (strange or f["loc"][0] in values)]
        _explain(self, model, faults, what, {str(a.name): a.value for a in args}, span)
        return None
    return options if good else None


def _strange(self: Inference, model: type[Options], what: str, arg: t.Argument, given: set[str | None]) -> None:
    """An argument without a name, or with one that the table does not have."""
    fields = [name for name in (*model.model_fields, *_expressions(model)) if name != "kind"]
    free = [name for name in fields if name not in given]
    missing = [name for name in free if name not in model.model_fields or model.model_fields[name].is_required()]
    if arg.name is None:
        first = (missing or free or fields)[0]
        self.report.error(
            "E014", f"arguments of {what} are named", arg.span, f"write for example {first} = ...; {what} takes {', '.join(fields)}"
        )
        return
    best = suggest(arg.name, missing) or suggest(arg.name, free)
    otherwise = f"{what} takes {', '.join(fields)}" + (f"; {', '.join(missing)} must be given" if missing else "")
    place = Span(arg.span.start, arg.span.start + len(arg.name), arg.span.file)
    self.report.misnamed("E030", f"{what} has no argument {arg.name}", place, best, otherwise)


def _expressions(model: type[Options]) -> tuple[str, ...]:
    """Arguments that are expressions and not options: every lower-level solver has a start."""
    return ("start",) if issubclass(model, SolverOptions | ApgdOptions) else ()


def binder_as_call(self: Inference, e: t.Expr) -> bool:
    """`sgd(lr: 0.1)` reads as a binder: report it as the argument it was meant to be."""
    if not isinstance(e, t.Binder):
        return False
    self.report.error("E014", f"an argument of {e.func} is written with =", e.header.span, f"write {e.header.var} = ...")
    return True


def _value(self: Inference, model: type[BaseModel], arg: t.Argument, scope: Scope, at: Context) -> Any | None:
    """A number, a word the option knows, a list of numbers, or a schedule."""
    assert arg.name is not None
    if model is TrainOptions and arg.name == "schedule":
        return schedule(self, arg, scope, at)
    if model is TrainOptions and arg.name == "data":
        return mixture(self, arg, scope, at)
    words = _words(model, arg.name)
    if isinstance(arg.value, t.Name) and (arg.value.id in words or (words and scope.get(arg.value.id) is None)):
        if arg.value.id not in words:
            best, otherwise = suggest(arg.value.id, words), f"{arg.name} is one of {', '.join(words)}"
            self.report.misnamed("E030", f"{arg.name} cannot be {arg.value.id}", arg.value.span, best, otherwise)
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
    if binder_as_call(self, arg.value):
        return None
    call = arg.value if isinstance(arg.value, t.Call) else t.Call(arg.value, (), span=arg.value.span)
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in SCHEDULES:
        otherwise = "the schedules are " + ", ".join(SCHEDULES)
        self.report.misnamed("E030", f"there is no schedule {name}".rstrip(), call.func.span, suggest(name, SCHEDULES), otherwise)
        return None
    return validated(self, SCHEDULES[name], name, call.args, call.span, scope, at)


def mixture(self: Inference, arg: t.Argument, scope: Scope, at: Context) -> Any | None:
    """`data = mix(labelled, pseudo, fraction = 0.5)`."""
    call = arg.value
    streams = tuple(a.value for a in call.args if a.name is None) if isinstance(call, t.Call) else ()
    if not isinstance(call, t.Call) or call.func != t.Name("mix") or streams != (t.Name("labelled"), t.Name("pseudo")):
        help = "write data = mix(labelled, pseudo, fraction = 0.5): the share of every batch that has pseudo-labels"
        self.report.error("E030", "data mixes a labelled and a pseudo-labelled stream", arg.value.span, help)
        return None
    return validated(self, Mix, "mix", tuple(a for a in call.args if a.name is not None), call.span, scope, at)


def _explain(self: Inference, model: type[BaseModel], faults: list[Any], what: str, given: dict[str, t.Expr], span: Span) -> None:
    """Faults that pydantic found, in our words and at the argument."""
    for fault in faults:
        name = next((str(part) for part in fault["loc"] if str(part) in given), str(fault["loc"][0]) if fault["loc"] else "")
        if fault["type"] == "missing":
            where = "the train statement" if what == "train" else what
            self.report.error("E018", f"{where} needs {name}", span, f"add {name} = ..., {_allowed(model, name)}")
        elif not name:
            self.report.error(
                "E016", f"{what}: {fault['msg'].removeprefix('Value error, ')}", span, f"the arguments of {what} are {_arguments(model)}"
            )
        else:
            value = fault["input"]
            shown = number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
            place = given[name].span if name in given else span
            self.report.error("E016", f"{name} of {what} cannot be {shown}", place, f"{name} is {_allowed(model, name)}")


def _arguments(model: type[BaseModel]) -> str:
    return ", ".join(name for name in model.model_fields if name != "kind")


def _allowed(model: type[BaseModel], name: str) -> str:
    """What an option may be, in words: "a whole number from 1", "a number above 0"."""
    field = model.model_fields[name]
    kinds, limits = _parts(field.annotation, list(field.metadata))
    words = [str(k) for k in kinds if isinstance(k, str)]
    if words:
        return "one of " + ", ".join(words)
    if tuple in kinds:
        whole = "int" in str(field.annotation)
        return "a list of whole numbers from 1, such as [75, 90]" if whole else "a list of numbers from 0, such as [0, 1, 0.1]"
    exact = [k for k in kinds if isinstance(k, int)]
    if exact:
        return f"always {exact[0]}"
    if not {int, float} & set(kinds):
        return {"bool": "true or false", "schedule": "a schedule, such as drop(at = [75, 90], factor = 0.1)"}.get(
            "bool" if bool in kinds else name, "a value"
        )
    ends = [
        f"{word} {limit}"
        for attribute, word in _LIMITS
        if (limit := next((getattr(m, attribute) for m in limits if hasattr(m, attribute)), None)) is not None
    ]
    return " ".join(["a whole number" if int in kinds else "a number", " and ".join(ends)]).rstrip()


_LIMITS = (("ge", "from"), ("gt", "above"), ("le", "up to"), ("lt", "below"))


def _parts(annotation: Any, limits: list[Any]) -> tuple[list[Any], list[Any]]:
    """The types, words and limits inside an annotation."""
    if get_origin(annotation) is tuple:
        return [tuple], limits
    inside = get_args(annotation)
    if not inside:
        return [annotation], limits
    kinds: list[Any] = []
    if get_origin(annotation) is Annotated:
        return _parts(inside[0], [*limits, *(limit for part in inside[1:] for limit in getattr(part, "metadata", [part]))])
    for part in inside:
        if isinstance(part, str | int):
            kinds.append(part)
        else:
            more, limits = _parts(part, limits)
            kinds += more
    return kinds, limits
