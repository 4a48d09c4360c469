"""Points where the field vanishes, and what the flow does around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.games.field import Field
from lossdsl.games.regions import Projection

BOX, COUNT, STEPS = 2.5, 256, 80
TOLERANCE = 1e-10


@dataclass(frozen=True)
class CriticalPoint:
    """V(z) = 0. `eigenvalues` are of the Jacobian of V there: real parts above 0 draw the flow -V in, below 0 push it away."""

    z: tuple[float, ...]
    eigenvalues: tuple[complex, ...]

    @property
    def character(self) -> str:
        """ "attracts", "repels", "saddle", or "centre" where the linear part alone decides nothing."""
        real = [e.real for e in self.eigenvalues]
        slack = 1e-9 * (1 + max(abs(e) for e in self.eigenvalues))
        if any(abs(r) <= slack for r in real):
            return "centre"
        return "attracts" if min(real) > 0 else "repels" if max(real) < 0 else "saddle"


def eigenvalues(field: Field, z: Tensor) -> tuple[complex, ...]:
    """Of the Jacobian at one point [d], by real part, then imaginary part."""
    found = torch.linalg.eigvals(field.jacobian(z.unsqueeze(0))[0])
    return tuple(sorted((complex(e) for e in found), key=lambda e: (e.real, e.imag)))


def critical_points(field: Field, starts: Tensor | None = None) -> list[CriticalPoint]:
    """The critical points that Newton's method reaches from `starts` [N, d] (default: 256 fixed points of [-2.5, 2.5]^d and 0),
    inside the sets of the players; each once, nearest to 0 first. A connected set of them shows as several."""
    if starts is None:
        random = torch.rand(COUNT, field.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        starts = torch.cat((torch.zeros(1, field.dimension, dtype=torch.float64), BOX * (2 * random - 1)))
    z = starts.clone()
    for _ in range(STEPS):
        value = field(z)
        if bool((value.norm(dim=1) <= TOLERANCE / 100).all()):
            break
        step = _newton(field.jacobian(z), value)
        length = step.norm(dim=1, keepdim=True)
        z = z - step * (1.0 / length).clamp(max=1.0)
    good = (field(z).norm(dim=1) <= TOLERANCE) & z.isfinite().all(1)
    good &= (Projection(field)(z) - z).norm(dim=1) <= 1e-9
    found: list[Tensor] = []
    for point in sorted(z[good], key=lambda row: float(row.norm())):
        if all(float((point - other).norm()) > 1e-5 for other in found):
            found.append(point)
    return [CriticalPoint(tuple(map(float, p)), eigenvalues(field, p)) for p in found]


def _newton(jacobian: Tensor, value: Tensor) -> Tensor:
    """J^-1 V, by least squares with a little damping so that a singular Jacobian gives a finite step."""
    transposed = jacobian.mT
    scale = jacobian.flatten(1).norm(dim=1).square().clamp_min(1e-30)[:, None, None]
    eye = torch.eye(jacobian.shape[1], dtype=jacobian.dtype)
    step: Tensor = torch.linalg.solve(transposed @ jacobian + 1e-14 * scale * eye, transposed @ value.unsqueeze(2)).squeeze(2)
    return step
