"""The alarm of catastrophic overfitting: one-step attacks fail while many-step attacks succeed. Free of torch.

Wong et al. (ICLR 2020, sec. 5.4) describe it: within an epoch the accuracy under PGD falls to 0 while that under FGSM rises; their code
stops when the accuracy under PGD has fallen by more than 0.2. Cevher (2024, slides): 100 % under FGSM, 0 % under PGD-20.
"""

from __future__ import annotations

from collections.abc import Sequence

GAP = 0.2
"""How far the two accuracies must have come apart: the threshold of Wong et al.'s code, which looks at PGD alone."""
RULE = "the best epoch under PGD is past, FGSM is not below its value there, and the gap between the two is more than 0.2 wider"


def alarms(fgsm: Sequence[float], pgd: Sequence[float]) -> list[bool]:
    """For every epoch whether the alarm holds, from the accuracies under FGSM and under PGD, in [0, 1], epoch by epoch.

    With b the epoch so far with the largest PGD accuracy (the first of equals): PGD is below its value at b, FGSM is not, and the gap
    FGSM - PGD has grown by more than 0.2 since b. A collapse of both is not this alarm, nor is a slow decline of both (robust
    overfitting). Raises ValueError for lists of different length.
    """
    found = []
    best: tuple[float, float] | None = None
    for one, many in zip(fgsm, pgd, strict=True):
        if best is None or many > best[1]:
            best = one, many
        wider = (one - many) - (best[0] - best[1])
        found.append(many < best[1] and one >= best[0] and wider > GAP)
    return found


def message(epoch: int, fgsm: Sequence[float], pgd: Sequence[float]) -> str:
    """What to tell a person at the epoch where the alarm begins; the lists end with that epoch."""
    top = max(range(len(pgd)), key=lambda n: pgd[n])
    return (
        f"epoch {epoch}: catastrophic overfitting: since epoch {epoch - len(pgd) + top + 1} PGD accuracy fell from {pgd[top]:.1%} to "
        f"{pgd[-1]:.1%}, FGSM accuracy went from {fgsm[top]:.1%} to {fgsm[-1]:.1%}"
    )
