"""Log-ratios of probabilities (D10) and entropies (D15) of every example."""

from __future__ import annotations

import torch

from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table, column_rows
from lossdsl.run.rng import derive, generator

_TARGET = "argmax(j != y: p(x')[j])"


def ratios(subject: Subject, options: Options | None = None) -> Table:
    """D10: log a_y = log(p_y/p*_y) and -log a_t = -log(p_t/p*_t) of every example, with p = p(x), p* = p(x*) and the target class
    t = argmax over i != y of p*_i; in nats, any real number. `options.radii`: at each of these radii of the attack.

    They weigh the gradients of p and p* in KL(p || p*): grad KL = (grad p)^T log a - (grad p*)^T a (prop. 1). Source: Kim et al.
    (Bridged AT), fig. 5, at 8/255 and 16/255.
    """
    radii = options.radii if options and options.radii else (subject.radius,)
    expressions = {"label": "log(p(x)[y]) - log(p(x')[y])", "target": f"log(p(x')[{_TARGET}]) - log(p(x)[{_TARGET}])"}
    rows: list[tuple[Cell, ...]] = []
    for eps in radii:
        found = subject.under(eps=eps).values(expressions)
        rows += [(eps, *pair) for pair in zip(found["label"].tolist(), found["target"].tolist(), strict=True)]
    columns = (
        Column("eps", "units of x", "radius"),
        Column("label", "nats", "$\\log(p_y / p^*_y)$, label"),
        Column("target", "nats", "$-\\log(p_t / p^*_t)$, target"),
    )
    return Table("ratios", "Log-ratios of probabilities", "Kim et al. (Bridged AT), fig. 5", columns, tuple(rows), (subject.about,))


def entropies(subject: Subject, options: Options | None = None) -> Table:
    """D15: the entropy H(p) at x, at one uniform point u of the ball and at x*, in nats, in [0, ln K]; what is predicted at u.

    Clean and robust accuracy are in the notes: def. 3.1 of the FAIT paper compares entropies of models that predict the same on the
    balls. u depends on the seed alone, so that models are seen at the same points.
    """
    random = generator(subject.x.device, derive(subject.seed, "entropies"))
    noise = 2 * torch.rand(subject.x.shape, dtype=subject.x.dtype, device=subject.x.device, generator=random) - 1
    near = subject.x + subject.radius * noise
    points = {"u": near, "x'": subject.adversarial}
    found = subject.values({"clean": "H(p(x))", "near": "H(p(u))", "attacked": "H(p(x'))"}, points)
    rows = column_rows([found["clean"].tolist(), found["near"].tolist(), found["attacked"].tolist(), subject.predicted(near).tolist()])
    columns = (
        Column("clean", "nats", "$H(p(x))$"),
        Column("near", "nats", "$H(p(u))$, $u$ uniform in the ball"),
        Column("attacked", "nats", "$H(p(x^*))$"),
        Column("predicted", about="class predicted at u"),
    )
    clean, robust = (float(mask.double().mean()) for mask in (subject.clean, subject.robust))
    means = ", ".join(f"{name} {float(found[name].mean()):.4f}" for name in ("clean", "near", "attacked"))
    notes = (subject.about, f"mean entropy: {means}; clean accuracy {clean:.1%}, robust {robust:.1%}")
    return Table("entropies", "Entropies", "Wu et al. (FAIT), def. 3.1", columns, rows, notes, {"classes": subject.num_classes})
