"""The lints of theory: what each says, where it comes from, the laws behind it, and when it is silent.

Codes up to T06 are notes: they say what is known of a method, and published methods have them. From T07 on they are warnings: the text can
hardly mean what it says. A law's verdict is that of the law file with this id in recipes/laws; `refuted` are laws that the papers state and
that are false, so that a lint may not repeat them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lint:
    """One row. `laws` are laws that hold, `refuted` laws whose refutation the lint rests on."""

    code: str
    claim: str
    reference: str
    silent: str
    laws: tuple[str, ...] = ()
    refuted: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        return "note" if self.code <= "T06" else "warning"


LINTS: dict[str, Lint] = {
    row.code: row
    for row in (
        Lint(
            "T01",
            "the attacker maximises a surrogate of the 0-1 error, and its maximiser can leave the example correctly classified although an "
            "adversarial example exists",
            "Robey et al., sec. 3.1 and Prop. 1",
            "where what is maximised is larger at every misclassified point than at any other: the margin, hinge, DLR, cross-entropy with "
            "K = 2; for nine targets or more; where nothing ties it to a surrogate; "
            "where the attack stops at the first misclassified point",
            ("A07", "A10", "A13"),
            ("A08",),
        ),
        Lint(
            "T02",
            "the upper objective is not an upper bound of the robust 0-1 error",
            "Robey et al., eq. 2 and 8; Bridged AT, sec. 4.2",
            "where it is at least 1 times the robust error; without an attack",
            ("A01", "A03", "A09"),
            ("A02", "E21"),
        ),
        Lint(
            "T03",
            "what the attack maximises is not what the upper level minimises, and its solution is a constant of the upper level: the "
            "derivative of the solution by theta (the implicit gradient) is dropped",
            "Fast-BAT, eq. 3",
            "where the upper objective depends on the solution only through what the attack maximises, and never falls with it (Danskin); "
            "with through implicit or unrolling; for one sign step, whose derivative is 0; where `find` sets the distance, since the "
            "gradient of a margin is that of the loss there (MMA)",
            ("F16", "F24", "C02"),
            ("F20",),
        ),
        Lint(
            "T04",
            "the attack starts at random and may end at one of several maximisers; "
            "the gradient at one of them can be an ascent direction of the maximum",
            "Latorre et al., ICLR 2023; Cevher, slides",
            "with through danskin; where the solution is not a maximiser of the upper objective (T03); "
            "after one step, and from a fixed start",
            ("C01", "C04"),
            ("C03",),
        ),
        Lint(
            "T05",
            "one step at this radius and no term for local linearity: training can end in catastrophic overfitting, "
            "with full accuracy under this attack and none under more steps",
            "Andriushchenko & Flammarion, NeurIPS 2020; Abad Rocamora et al. (ELLE), ICLR 2024; Fast-BAT, fig. 1",
            "with a term of input gradients or of linear interpolation; with through implicit; from the previous perturbation; for small "
            "radii: up to 8/255 of the input range from a random start, below 8/255 (0.03) from a fixed one",
            ("C07",),
        ),
        Lint(
            "T06",
            "a KL smoothness term from the clean to the attacked point can oppose the margin: where the attack lowers p(x)[y], a step that "
            "lowers the KL through p(x) can lower it too",
            "Bridged AT, sec. 3.3 and eq. 5",
            "where a point between the two splits the term",
            ("E04", "E07"),
            ("E08",),
        ),
        Lint(
            "T07",
            "steps * step < radius: the attack cannot reach the border of its set",
            "Madry et al., ICLR 2018",
            "where the start is drawn from the set",
        ),
        Lint(
            "T08",
            "the radius or step is larger than the input domain: pixel units (8 instead of 8/255)",
            "the units of x",
            "without a domain",
        ),
        Lint(
            "T09",
            "something has no effect: a name that is not used, a term of the objective that is constant in theta, "
            "an ascent of a divergence that starts where its gradient is zero",
            "Zhang et al. (TRADES), ICML 2019 (the small normal start)",
            "where the start is random",
            (),
            ("E03",),
        ),
        Lint(
            "T10",
            "the settings of an attack suite are weaker than its name, or the suite that it extends, promises",
            "Croce & Hein, ICML 2020; Robey et al., fig. 1; Fast-BAT, sec. 5",
            "for names that promise nothing",
        ),
    )
}
