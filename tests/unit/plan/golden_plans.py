"""The golden plans: where they lie, what they hold, and the command that writes them anew.

    python tests/unit/plan/golden_plans.py

tests/golden/plans/<pass>/<case>.loss has beside it <case>.before.txt, the plan after the passes that precede, and <case>.after.txt,
the plan with the pass. tests/golden/plans/recipes/<name>.txt is the whole plan of a shipped recipe or attack suite.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lossdsl.assets import attack_paths, recipe_paths
from lossdsl.front import Recipe, load
from lossdsl.plan.ir import Plan
from lossdsl.plan.pipeline import PASSES, Pass, make_plan

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "plans"
NAMES = tuple(change.__name__ for change in PASSES)
SHIPPED = (*recipe_paths(), *attack_paths())


def cases() -> list[Path]:
    """Every case of every pass, in the order of the passes."""
    return [path for name in dict.fromkeys(NAMES) for path in sorted((GOLDEN / name).glob("*.loss"))]


def change_of(case: Path) -> Pass:
    """The pass that a case is about."""
    return PASSES[NAMES.index(case.parent.name)]


def case_recipe(case: Path) -> Recipe:
    """The recipe of a case."""
    return load(str(case))


def plans(case: Path) -> tuple[Plan, Plan]:
    """Before the pass and after it."""
    recipe, at = case_recipe(case).typed, NAMES.index(case.parent.name)
    return make_plan(recipe, PASSES[:at]), make_plan(recipe, PASSES[: at + 1])


def with_plan(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with another plan in place of its own."""
    changed = replace(recipe)
    changed.__dict__["plan"] = plan
    return changed


def expected() -> dict[Path, str]:
    """The text of every golden file."""
    texts = {}
    for case in cases():
        before, after = plans(case)
        texts[case.with_suffix(".before.txt")], texts[case.with_suffix(".after.txt")] = str(before), str(after)
    for name in SHIPPED:
        texts[GOLDEN / "recipes" / f"{name}.txt"] = str(load(name).plan)
    return texts


def present() -> set[Path]:
    """The golden files that lie there."""
    return set(GOLDEN.glob("*/*.txt"))


def write() -> None:
    """Write what `expected` says, and remove golden files of cases that are gone."""
    texts = expected()
    for path in present() - set(texts):
        path.unlink()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"wrote {len(texts)} plans; look at the changes before you keep them: git diff {GOLDEN.relative_to(GOLDEN.parents[2])}")


if __name__ == "__main__":
    write()
