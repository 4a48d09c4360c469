"""The shape of the code: who imports whom, no cycles, short functions and files, and commands that stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lossdsl"
MAX_FUNCTION, MAX_FILE = 50, 400

TABLE: dict[str, tuple[str, ...]] = {
    # One row per part: the parts it may import, itself always among them. A row for a module goes before the row of its package.
    "lossdsl.source": (),
    "lossdsl.diagnostics": ("lossdsl.source",),
    "lossdsl.assets": (),
    "lossdsl.render": ("lossdsl.source", "lossdsl.diagnostics"),
    "lossdsl.lang": ("lossdsl.source", "lossdsl.diagnostics"),
    "lossdsl.syntax": ("lossdsl.source", "lossdsl.diagnostics", "lossdsl.assets"),
    "lossdsl.check": ("lossdsl.source", "lossdsl.diagnostics", "lossdsl.lang", "lossdsl.syntax.tree"),
    "lossdsl.plan": ("lossdsl.source", "lossdsl.diagnostics", "lossdsl.lang", "lossdsl.check.typed"),
    "lossdsl.checked": ("lossdsl.diagnostics", "lossdsl.check", "lossdsl.syntax"),
    "lossdsl.front": (
        "lossdsl.source",
        "lossdsl.diagnostics",
        "lossdsl.assets",
        "lossdsl.lang",
        "lossdsl.syntax",
        "lossdsl.check",
        "lossdsl.checked",
        "lossdsl.plan",
        "lossdsl.explain",
    ),
    # Reads a checked recipe, its syntax tree (for formulas with the names of params), the tables and the cost of a plan.
    "lossdsl.explain": (
        "lossdsl.check.typed",
        "lossdsl.check.flow",
        "lossdsl.check.game_typed",
        "lossdsl.check.margins",
        "lossdsl.lang",
        "lossdsl.syntax.tree",
        "lossdsl.syntax.format",
        "lossdsl.plan.cost",
    ),
    # Reads the syntax trees of checked recipes, so that params keep their names.
    "lossdsl.compare": ("lossdsl.diagnostics", "lossdsl.lang", "lossdsl.syntax.tree", "lossdsl.syntax.format"),
    # Reads typed recipes and the table of operations; suites are compared with their syntax trees.
    "lossdsl.theory": (
        "lossdsl.source",
        "lossdsl.diagnostics",
        "lossdsl.lang",
        "lossdsl.check",
        "lossdsl.syntax.tree",
    ),
    # Reads a checked recipe and its tree, and writes another text.
    "lossdsl.adaptive": ("lossdsl.diagnostics", "lossdsl.front", "lossdsl.check.typed", "lossdsl.syntax.tree", "lossdsl.syntax.format"),
    "lossdsl.catalog": (),
    # --- torch line: nothing above imports torch ---
    "lossdsl.solve": ("lossdsl.lang.specs", "lossdsl.lang.options", "lossdsl.lang.search_options", "lossdsl.diagnostics"),
    # front and assets: engine.api compiles suites by name, and a training step its recipe of a later epoch.
    "lossdsl.engine": (
        "lossdsl.source",
        "lossdsl.diagnostics",
        "lossdsl.assets",
        "lossdsl.lang",
        "lossdsl.check.typed",
        "lossdsl.plan",
        "lossdsl.solve",
        "lossdsl.front",
    ),
    "lossdsl.run": ("lossdsl.source", "lossdsl.diagnostics", "lossdsl.lang", "lossdsl.engine", "lossdsl.front", "lossdsl.solve"),
    # Judges models by attacks written in the language.
    "lossdsl.sanity": ("lossdsl.diagnostics", "lossdsl.lang", "lossdsl.front", "lossdsl.engine", "lossdsl.run"),
    # Values and words of a sweep are understood before torch is loaded.
    "lossdsl.sweep.grid": ("lossdsl.diagnostics", "lossdsl.front", "lossdsl.arguments"),
    "lossdsl.sweep": (
        "lossdsl.diagnostics",
        "lossdsl.front",
        "lossdsl.engine",
        "lossdsl.run",
        "lossdsl.sanity",
        "lossdsl.diagnose.figures",
    ),
    # Games of numbers and vectors, and of models; their closures are the engine's.
    "lossdsl.games": (
        "lossdsl.source",
        "lossdsl.diagnostics",
        "lossdsl.lang",
        "lossdsl.check.typed",
        "lossdsl.check.game_typed",
        "lossdsl.syntax.tree",
        "lossdsl.plan",
        "lossdsl.front",
        "lossdsl.solve",
        "lossdsl.engine",
        "lossdsl.run",
    ),
    # The table of diagnostics, for the command line.
    "lossdsl.diagnose.catalog": ("lossdsl.diagnostics",),
    "lossdsl.diagnose": (
        "lossdsl.source",
        "lossdsl.diagnostics",
        "lossdsl.lang",
        "lossdsl.syntax.tree",
        "lossdsl.syntax.format",
        "lossdsl.plan.cost",
        "lossdsl.front",
        "lossdsl.solve",
        "lossdsl.engine",
        "lossdsl.run",
    ),
    # Pages of stored runs: their recipes explained, their diagnostics drawn.
    "lossdsl.report": ("lossdsl.diagnostics", "lossdsl.front", "lossdsl.explain", "lossdsl.run", "lossdsl.diagnose"),
    "lossdsl.laws": ("lossdsl",),
    # --- the doors ---
    "lossdsl.arguments": ("lossdsl.source", "lossdsl.diagnostics", "lossdsl.front"),
    "lossdsl.check_commands": ("lossdsl",),
    "lossdsl.run_commands": ("lossdsl",),
    "lossdsl.diagnose_commands": ("lossdsl",),
    "lossdsl.play_commands": ("lossdsl",),
    "lossdsl.report_commands": ("lossdsl",),
    "lossdsl.law_commands": ("lossdsl",),
    "lossdsl.sanity_commands": ("lossdsl",),
    "lossdsl.sweep_commands": ("lossdsl",),
    "lossdsl.cli": ("lossdsl",),
    "lossdsl.__main__": ("lossdsl.cli",),
    "lossdsl": (),
}

EXCEPTIONS = {
    # str(RecipeError) must show its findings to whoever prints it, and a bare traceback does; the import is inside __str__.
    ("lossdsl.diagnostics", "lossdsl.render"),
}

WITHOUT_TORCH = (
    "lossdsl.source",
    "lossdsl.diagnostics",
    "lossdsl.assets",
    "lossdsl.render",
    "lossdsl.lang",
    "lossdsl.syntax",
    "lossdsl.check",
    "lossdsl.plan",
    "lossdsl.checked",
    "lossdsl.front",
    "lossdsl.explain",
    "lossdsl.compare",
    "lossdsl.theory",
    "lossdsl.catalog",
    "lossdsl.adaptive",
    "lossdsl.arguments",
    "lossdsl.check_commands",
    "lossdsl.run_commands",
    "lossdsl.play_commands",
    "lossdsl.report_commands",
    "lossdsl.sweep.grid",
    "lossdsl.sanity_commands",
    "lossdsl.sweep_commands",
    "lossdsl.diagnose.catalog",
    "lossdsl.diagnose_commands",
    "lossdsl.law_commands",
    "lossdsl.cli",
    "lossdsl.__main__",
    "lossdsl",
)
ONLY_IMPORTERS = {"lark": ("lossdsl.syntax.parse", "lossdsl.syntax.build"), "hypothesis": ("lossdsl.laws.strategies",)}


@dataclass(frozen=True)
class Import:
    """`module` imports `target`; `at_load`: as soon as the module itself is imported."""

    module: str
    target: str
    line: int
    at_load: bool


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _statements(body: list[ast.stmt], at_load: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement, and whether it runs when the module is imported; blocks for type checkers only are left out."""
    for node in body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node, at_load
        inside = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, field, []), inside)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body, inside)
        for case in getattr(node, "cases", []):
            yield from _statements(case.body, inside)


@cache
def imports() -> tuple[Import, ...]:
    """Every import in the package; `from package import module` counts as an import of the module."""
    found = []
    for module, path in MODULES.items():
        for node, at_load in _statements(tree(path).body, True):
            if isinstance(node, ast.Import):
                found += [Import(module, alias.name, node.lineno, at_load) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative import"
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    found.append(Import(module, target if target in MODULES else node.module, node.lineno, at_load))
    return tuple(found)


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def row(module: str) -> str:
    """The row of the table that speaks of a module."""
    return next(part for part in TABLE if _within(module, part) and (part != "lossdsl" or module == "lossdsl"))


def test_every_module_has_a_row() -> None:
    missing = [module for module in MODULES if not any(_within(module, part) for part in TABLE if part != "lossdsl" or module == "lossdsl")]
    assert not missing, f"add to TABLE: {missing}"


def test_imports_go_one_way() -> None:
    wrong = []
    for i in imports():
        if not _within(i.target, "lossdsl") or i.target == "lossdsl" or (i.module, i.target) in EXCEPTIONS:
            continue
        own = row(i.module)
        if not any(_within(i.target, part) for part in (own, *TABLE[own])):
            wrong.append(f"{MODULES[i.module]}:{i.line}: {i.module} imports {i.target}")
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_still_needed_and_not_at_load() -> None:
    for module, target in EXCEPTIONS:
        uses = [i for i in imports() if (i.module, i.target) == (module, target)]
        assert uses and not any(i.at_load for i in uses), f"{module} -> {target}"


def test_the_front_half_never_imports_torch() -> None:
    heavy = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "hypothesis", "safetensors")
    wrong = [
        f"{MODULES[i.module]}:{i.line}: imports {i.target}"
        for i in imports()
        if row(i.module) in WITHOUT_TORCH and i.target.partition(".")[0] in heavy
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_a_package_behind_one_door(package: str) -> None:
    wrong = [i for i in imports() if i.target.partition(".")[0] == package and i.module not in ONLY_IMPORTERS[package]]
    assert not wrong, f"only {ONLY_IMPORTERS[package]} import {package}: {wrong}"


def test_no_import_cycles_at_load() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in imports():
        if i.at_load and i.target in MODULES:
            graph[i.module].add(i.target)
    assert not (found := _cycle(graph)), " -> ".join(found)


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for target in sorted(graph[module]):
            if found := visit(target):
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module))), [])


def test_functions_are_short() -> None:
    long = []
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    long = {str(path): n for path in MODULES.values() if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE}
    assert not long, f"more than {MAX_FILE} lines: {long}"


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {entry.partition(">")[0].strip() for entry in (*project["dependencies"], *extras)}
    distribution = {"sklearn": "scikit-learn"}
    used = {i.target.partition(".")[0] for i in imports()} - set(sys.stdlib_module_names) - {"lossdsl"}
    assert {distribution.get(name, name) for name in used} <= declared


@pytest.mark.parametrize(
    "command",
    [
        ["check", "recipes/trades.loss"],
        ["plan", "trades"],
        ["explain", "trades"],
        ["theory", "trades"],
        ["list"],
        ["diff", "trades", "trades"],
        ["attack-from", "trades"],
        ["--help"],
        ["train", "--help"],
    ],
)
def test_commands_that_do_not_compute_load_no_torch(command: list[str]) -> None:
    code = (
        "import sys; from lossdsl.cli import main\n"
        f"try: code = main({command!r})\n"
        "except SystemExit as end: code = end.code\n"
        "print([name for name in ('torch', 'numpy', 'hypothesis', 'matplotlib') if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_importing_the_facade_loads_no_torch() -> None:
    code = "import sys, lossdsl; lossdsl.load('trades'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
