"""The alarm of catastrophic overfitting: one-step attacks fail while many-step attacks succeed. Free of torch.

Wong et al. (ICLR 2020, sec. 5.4) describe it: within an epoch the accuracy under PGD falls to 0 while that under FGSM rises; their code
stops when the PGD accuracy has fallen by more than 0.2. Cevher (2024, slides): 100 % under FGSM, 0 % under PGD-20.
"""

from __future__ import annotations

from collections.abc import Sequence

DROP = 0.2
"""How far the accuracy under PGD must have fallen: the threshold of Wong et al.'s code."""


def alarms(fgsm: Sequence[float], pgd: Sequence[float]) -> list[bool]:
    """For every epoch whether the alarm holds, from the accuracies under FGSM and under PGD, in [0, 1], epoch by epoch.

    With b the epoch so far with the largest PGD accuracy (the first of equals): the PGD accuracy is more than 0.2 below that of b, and
    the FGSM accuracy is not below that of b. A collapse of both is not this alarm, nor is a slow decline of both (robust overfitting).
    Raises ValueError for lists of different length.
    """
    found = []
    best: tuple[float, float] | None = None
    for one, many in zip(fgsm, pgd, strict=True):
        if best is None or many > best[1]:
            best = one, many
        found.append(best[1] - many > DROP and one >= best[0])
    return found


def message(epoch: int, fgsm: Sequence[float], pgd: Sequence[float]) -> str:
    """What to tell a person at the epoch where the alarm begins."""
    top = max(range(len(pgd)), key=lambda n: pgd[n])
    return (
        f"epoch {epoch}: catastrophic overfitting: accuracy under PGD fell from {pgd[top]:.1%} (epoch {epoch - len(pgd) + top + 1}) to "
        f"{pgd[-1]:.1%}, under FGSM it went from {fgsm[top]:.1%} to {fgsm[-1]:.1%}; the best checkpoint is of before"
    )
