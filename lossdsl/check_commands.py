"""`lossdsl check` and `lossdsl theory`: what is wrong with a text, and what theory says about it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path
from typing import IO

from lossdsl.arguments import FINDINGS, OK, USAGE, Parser, add_set, parse_settings, standard_input, whole_number
from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.check.typed import TypedRecipe
from lossdsl.checked import CheckedFile
from lossdsl.diagnostics import Diagnostic, Edit, UserError, did_you_mean
from lossdsl.front import check_declaration, check_source, load, read_source
from lossdsl.render import render_json, render_line, render_summary, render_text
from lossdsl.source import Source
from lossdsl.syntax import tree as t
from lossdsl.theory.report import Report, lint, report

# --- input and output, also for other commands -------------------------------------------------------------------------


def source_of(name: str) -> Source:
    """A file, a shipped recipe by name, or standard input. An existing file goes before a recipe of its name."""
    if name == "-":
        return standard_input()
    shipped = {**attack_paths(), **game_paths(), **recipe_paths()}
    if Path(name).exists() or name.endswith(".loss") or os.sep in name:
        return read_source(Path(name))
    if name in shipped:
        return read_source(shipped[name])
    raise UserError("there is no such file or recipe", where=name, fix=f"{did_you_mean(name, shipped)}; a file ends in .loss")


def colored(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")


def print_findings(source: Source, diagnostics: Sequence[Diagnostic], stream: IO[str]) -> None:
    """Errors and warnings with their lines, then notes, a line for each."""
    color = colored(stream)
    for d in diagnostics:
        if d.severity != "note":
            print(render_text(source, d, color), file=stream, end="\n\n")
    for d in diagnostics:
        if d.severity == "note":
            print(render_line(source, d, color), file=stream)


def print_difference(before: str, after: str, old: str, new: str) -> None:
    """A unified diff of two texts."""
    lines = unified_diff(before.splitlines(True), after.splitlines(True), old, new)
    print("".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines), end="")


def rewrite(path: Path, text: str) -> None:
    """Write the whole file or nothing: to a neighbour first, then in its place. A link stays a link, and the mode what it was."""
    target = path.resolve()
    neighbour = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        neighbour.write_text(text, encoding="utf-8", newline="\n")
        neighbour.chmod(target.stat().st_mode)
        neighbour.replace(target)
    except OSError as error:
        neighbour.unlink(missing_ok=True)
        raise UserError(f"the file cannot be written: {error.strerror}", where=str(path)) from error


# --- check ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One file with everything that was found in it."""

    source: Source
    diagnostics: tuple[Diagnostic, ...]


def check_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .loss file, the name of a shipped recipe, or - for standard input")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json is for editors")
    parser.add_argument("--code", action="append", default=[], metavar="CODE", help="only findings of this code: --code T06 --code T09")
    parser.add_argument("--no-notes", action="store_true", help="leave out what theory notes about a method (T01 to T06)")
    parser.add_argument(
        "--fix", action="store_true", help="apply the corrections of errors and warnings (and of every --code) to the files"
    )
    add_set(parser)


def run_check(arguments: argparse.Namespace) -> int:
    """Every finding of every file; 1 if there are errors or warnings. Notes do not count."""
    settings = parse_settings(arguments.set)
    found: list[Found] = []
    unread = 0
    for name in arguments.files:
        try:
            if arguments.fix:
                _fix(name, settings, arguments)
            found.append(_asked(findings_of(source_of(name), settings), arguments))
        except UserError as error:
            unread += 1
            print(f"error: {error}", file=sys.stderr)
    everything = [d for one in found for d in one.diagnostics]
    if arguments.format == "json":
        print(json.dumps([entry for one in found for entry in json.loads(render_json(one.source, one.diagnostics))], indent=2))
    else:
        for one in found:
            print_findings(one.source, one.diagnostics, sys.stdout)
        if found:
            print(render_summary(everything) + _pointer(everything))
    return USAGE if unread else FINDINGS if any(d.severity != "note" for d in everything) else OK


def _pointer(diagnostics: Sequence[Diagnostic]) -> str:
    return "  (lossdsl theory gives the reasons)" if any(d.severity == "note" for d in diagnostics) else ""


def findings_of(source: Source, settings: Mapping[str, float]) -> Found:
    """Everything found in a source, in the order of the text."""
    file = check_source(source, settings)
    _check_settings(source, file, settings)
    found = {(d.code, d.span, d.message): d for d in (*file.diagnostics, *_theory(file, settings))}
    return Found(file.parsed.source, tuple(sorted(found.values(), key=lambda d: (d.span.file, d.span.start, d.code))))


def _asked(found: Found, arguments: argparse.Namespace) -> Found:
    """The findings that --code and --no-notes ask for."""
    codes, quiet = arguments.code, arguments.no_notes
    return Found(
        found.source, tuple(d for d in found.diagnostics if (not codes or d.code in codes) and not (quiet and d.severity == "note"))
    )


def _theory(file: CheckedFile, settings: Mapping[str, float]) -> Iterator[Diagnostic]:
    """What theory finds in every declaration, and what more in the later epochs in which its params change."""
    for check in file.checks:
        base = _base(file, check.declaration.name)
        seen: set[Diagnostic] = set()
        for epoch in (1, *sorted(check.epochs)) if check.typed is not None else ():
            one = check if epoch == 1 else check_declaration(check.declaration, file.shared, settings, epoch)
            new = [f.diagnostic for f in lint(one.typed, one.declaration, base)] if isinstance(one.typed, TypedRecipe) else []
            yield from (d if epoch == 1 else replace(d, message=f"{d.message} (from epoch {epoch})") for d in new if d not in seen)
            seen.update(new)


def _base(file: CheckedFile, name: str) -> TypedRecipe | None:
    """The declaration that another one of the file extends: in the same file, or shipped."""
    base = next((d.base for d in file.parsed.file.declarations if d.name == name), None)
    if base is None:
        return None
    here = next((c.typed for c in file.checks if c.declaration.name == base), None)
    if here is None and base in {**attack_paths(), **recipe_paths()}:
        here = load(base).typed
    return here if isinstance(here, TypedRecipe) else None


def _check_settings(source: Source, file: CheckedFile, settings: Mapping[str, float]) -> None:
    """A --set name that no declaration of the file has is an error; params lost with a broken statement are not judged."""
    known = {item.name for check in file.checks for item in check.declaration.items if isinstance(item, t.Param)}
    unknown = next((name for name in settings if name not in known | file.parsed.lost_words), None)
    if unknown is not None:
        raise UserError(f"no declaration has a param {unknown}", where=source.name, fix=did_you_mean(unknown, known))


def _fix(name: str, settings: Mapping[str, float], arguments: argparse.Namespace) -> None:
    """Apply the corrections to one file and print what changed. Nothing is written where they would bring errors in."""
    if name == "-" or not Path(name).is_file():
        raise UserError("only a file can be corrected", where=name, fix="give the path of a .loss file")
    path = Path(name)
    found = _asked(findings_of(read_source(path), settings), arguments)
    chosen = [d.edit for d in found.diagnostics if d.edit is not None and (arguments.code or d.severity != "note")]
    before = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    after = corrected(before, [e for e in chosen if e.span.file in ("", found.source.name)])
    if after == before:
        return
    errors = {d.message for d in check_source(Source(after, name), settings).diagnostics if d.severity == "error"}
    new = errors - {d.message for d in check_source(Source(before, name), settings).diagnostics}
    if new:
        raise UserError(f"the corrections together would be wrong: {min(new)}", where=name, fix="apply them one at a time with --code")
    print_difference(before, after, name, f"{name} (corrected)")
    rewrite(path, after)


def corrected(text: str, edits: Sequence[Edit]) -> str:
    """The text with edits applied from its end to its start; of two that overlap the first in the text."""
    kept: list[Edit] = []
    for edit in sorted(set(edits), key=lambda e: (e.span.start, e.span.end)):
        if not kept or edit.span.start >= kept[-1].span.end:
            kept.append(edit)
    for edit in reversed(kept):
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    return text


# --- theory -----------------------------------------------------------------------------------------------------------------


def theory_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .loss file, the name of a shipped recipe or attack, or - for standard input")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json has the same as data")
    parser.add_argument("--classes", type=whole_number, metavar="K", help="the number of classes, for what holds for few")
    add_set(parser)


def run_theory(arguments: argparse.Namespace) -> int:
    """Bounds and lints of every recipe and suite of a file, with their reasons."""
    if arguments.classes == 1:
        raise UserError("there are at least two classes", where="--classes 1")
    settings = parse_settings(arguments.set)
    source = source_of(arguments.recipe)
    file = check_source(source, settings)
    _check_settings(source, file, settings)
    errors = [d for d in file.diagnostics if d.severity == "error"]
    if errors:
        print_findings(file.parsed.source, errors, sys.stderr)
        return USAGE
    reports = list(_reports(file, arguments.classes, settings))
    if not reports:
        raise UserError("theory speaks of recipes and attack suites, and there is none", where=arguments.recipe, fix="see: lossdsl list")
    if arguments.format == "json":
        print(json.dumps([one.as_json() for one in reports], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(one.as_text() for one in reports))
    return OK


def _reports(file: CheckedFile, classes: int | None, settings: Mapping[str, float]) -> Iterator[Report]:
    """One for every declaration, and one for every later epoch in which its params change what is said."""
    for check in file.checks:
        last: dict[str, object] = {}
        for epoch in (1, *sorted(check.epochs)):
            one = check if epoch == 1 else check_declaration(check.declaration, file.shared, settings, epoch)
            if isinstance(one.typed, TypedRecipe):
                found = report(one.typed, one.declaration, _base(file, check.declaration.name), classes, epoch)
                said = {key: value for key, value in found.as_json().items() if key != "epoch"} if check.epochs else {}
                if said != last or epoch == 1:
                    yield found
                last = said
