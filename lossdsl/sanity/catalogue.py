"""The table of checks. A new one is a function of the subject with `@check(...)` in one of the modules that `gate` imports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lossdsl.sanity.findings import Check, Verdict
from lossdsl.sanity.subject import Subject

Needs = Literal["nothing", "logits", "attack"]
Body = Callable[[Subject], Verdict]


@dataclass(frozen=True)
class Row:
    """A check, what must hold before it can run, and how it is done."""

    check: Check
    needs: Needs
    body: Body


ROWS: dict[str, Row] = {}


def check(code: str, title: str, needs: Needs, *, claim: str, remedy: str, reference: str) -> Callable[[Body], Body]:
    """Enter a check into the table. `needs`: "logits" means finite outputs [N, K]; "attack" means also gradients, a radius above 0
    and enough correctly classified examples."""

    def enter(body: Body) -> Body:
        ROWS[code] = Row(Check(code, title, claim, remedy, reference), needs, body)
        return body

    return enter


ATHALYE = "Athalye, Carlini & Wagner, ICML 2018, sec. 3.1"
CARLINI = "Carlini et al., On evaluating adversarial robustness, 2019"
CROCE = "Croce & Hein, ICML 2020"
TRAMER = "Tramer et al., On adaptive attacks to adversarial example defenses, NeurIPS 2020"
