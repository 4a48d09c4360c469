"""Operations as torch functions: one kernel per operation of the plan, under the same name.

Shapes: Real and Class [B, *axes], Logits, Prob (log-probabilities) and Vector [B, *axes, K], Input [B, *axes, *input],
Const []. The closures align the axes before a kernel is called; what a kernel sees broadcasts.
Derivatives are those of the formulas, finite for float32 logits up to 1e4. At a tie max and min pass the gradient to the
lowest class (of two numbers: to the first).
"""

from lossdsl.engine.kernels import arithmetic, batches, classes, geometry, networks, probability, sets
from lossdsl.engine.kernels.arithmetic import COMPARISONS
from lossdsl.engine.kernels.table import KERNELS, REGISTERED, Kernel, kernel

__all__ = [
    "COMPARISONS",
    "KERNELS",
    "REGISTERED",
    "Kernel",
    "arithmetic",
    "batches",
    "classes",
    "geometry",
    "kernel",
    "networks",
    "probability",
    "sets",
]
