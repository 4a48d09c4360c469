"""The upper objectives of the golden cases, written by hand: (model, x, y, solutions) -> a number. Plain softmax, no log space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Solutions = dict[str, Tensor]
Formula = Callable[[nn.Module, Tensor, Tensor, Solutions], Tensor]
FORMULAS: dict[str, Formula] = {}


def formula(name: str) -> Callable[[Formula], Formula]:
    """Enter the formula of the case `name`."""

    def enter(function: Formula) -> Formula:
        FORMULAS[name] = function
        return function

    return enter


def p(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    return -p(logits)[torch.arange(len(y)), y].log()


def kl(target: Tensor, prediction: Tensor) -> Tensor:
    """Both as logits."""
    return (p(target) * (p(target).log() - p(prediction).log())).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    return -(p(logits) * p(logits).log()).sum(-1)


def members(y: Tensor, classes: int) -> list[list[int]]:
    """The classes j != y of each example, ascending."""
    return [[j for j in range(classes) if j != label] for label in y.tolist()]


@formula("bridge_ends")
def bridge_ends(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    middle = (x + s["x'"]) / 2
    return (ce(f(x), y) + 5 * (kl(f(x), f(middle)) + kl(f(middle), f(s["x'"])))).mean()


@formula("start_plus_nothing")
def start_plus_nothing(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + kl(f(x), f(s["z"]))).mean()


@formula("refuses")
def refuses(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (2 * ce(f(x), y) + entropy(f(-x))).mean()


@formula("one_pass_per_point")
def one_pass_per_point(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    hard = 1 - p(f(x))[torch.arange(len(y)), y]
    return (ce(f(x), y) + hard * kl(f(x), f(s["x'"])) + entropy(f(x)) + hard * ce(f(s["x'"]), y)).mean()


@formula("draws_and_modes")
def draws_and_modes(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    steady, a, b = f(x).detach(), x + s["a"], x + s["b"]
    return (ce(f(x), y) + kl(steady, f(s["x'"])) + kl(steady, f(a)) + kl(f(a), f(b))).mean()


@formula("nested_binders")
def nested_binders(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    clean, moved = f(x), f(s["x'"])
    total = torch.zeros((), dtype=x.dtype)
    for n, others in enumerate(members(y, clean.shape[1])):
        for j in others:
            total = total + max(clean[n, i] * moved[n, j] for i in range(clean.shape[1]) if i != j) * p(clean)[n, j]
        total = total + max((p(moved)[n] * clean[n, j]).sum() - clean[n, y[n]] for j in others)
    return total / len(y)


@formula("clean_side")
def clean_side(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + 6 * kl(f(x), f(s["x'"]))).mean()


FORMULAS["train_mode_stays"] = FORMULAS["untracked_stays"] = clean_side


@formula("family")
def family(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    moved = s["x'"]
    worst = []
    for n, others in enumerate(members(y, f(x).shape[1])):
        scores = [float(f(moved[n, i : i + 1]).detach()[0, j]) for i, j in enumerate(others)]
        worst.append(moved[n, scores.index(max(scores))])
    return ce(f(torch.stack(worst)), y).mean()


@formula("three_levels")
def three_levels(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + kl(f(x), f(s["x'"])) + kl(f(x), f(s["z"])) + kl(f(x), f(s["w"]))).mean()


@formula("train_mode_apart")
def train_mode_apart(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return sum((ce(f(s[name]), y).mean() for name in ("x'", "z", "v", "w")), torch.zeros(()))


@formula("untracked_apart")
def untracked_apart(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(s["x'"]), y) + ce(f(s["z"]), y)).mean()


@formula("family_and_point")
def family_and_point(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    count = s["x'"].shape[1]
    return (ce(f(s["z"]), y) + sum(ce(f(s["x'"][:, i]), y) for i in range(count)) / count).mean()


@formula("leftovers")
def leftovers(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + 5 * kl(f(x), f(s["x'"]))).mean()


@formula("keeps")
def keeps(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return ce(f(s["z"]), y).mean()


FORMULAS["lower_levels"] = keeps


@formula("constants_above")
def constants_above(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    rows = torch.arange(len(y))
    right = f(x)[rows, y] > 0
    kept = ce(f(s["x'@2"]), y)[right]
    branch = torch.where(f(s["x'@0"])[rows, y].detach() > 0, entropy(f(s["x'"])), 1.0)
    return (kl(f(x).detach(), f(s["x'"])) + branch).mean() + (kept.mean() if len(kept) else 0)


@formula("everything_wanted")
def everything_wanted(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    clean, moved = f(x), f(s["x'"])
    return (ce(moved, y) + 5 * kl(clean, moved) * (1 - p(clean)[torch.arange(len(y)), y]) + kl(clean, moved)).mean()


# --- gradients as values ---


def slope(values: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of each example's number, with its graph."""
    v = at if at.requires_grad else at.clone().requires_grad_()
    return torch.autograd.grad(values(v).sum(), v, create_graph=True)[0]


def squares(g: Tensor) -> Tensor:
    return (g * g).sum(1)


@formula("one_pass_at_a_point")
def one_pass_at_a_point(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    g = slope(lambda v: ce(f(v), y), x)
    return (ce(f(x), y) + entropy(f(x)) + ((s["x'"] - x) * g).sum(1) + squares(g)).mean()


@formula("two_gradients")
def two_gradients(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    a, b = slope(lambda v: ce(f(v), y), x), slope(lambda v: entropy(f(v)), x)
    c = slope(lambda v: ce(f(v), y), s["x'"])
    return (ce(f(s["x'"]), y) + squares(a - c) + (a * b).sum(1)).mean()


@formula("held_constant")
def held_constant(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    here = f(s["x'"])
    g = slope(lambda v: kl(here, f(v)) + ce(f(v), y), s["x'"])
    return (ce(here, y) + squares(g)).mean()


@formula("gradient_of_a_gradient")
def gradient_of_a_gradient(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    inner = squares(slope(lambda u: ce(f(u), y), x)).sqrt()
    h = slope(lambda v: ce(f(v), y) * inner + (slope(lambda w: entropy(f(w)), v) * v).sum(1), x)
    return (ce(f(s["x'"]), y) + squares(h)).mean()


@formula("modes_apart")
def modes_apart(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + squares(slope(lambda v: ce(f(v), y), x)) + ce(f(s["x'"]), y)).mean()


@formula("inside_a_level")
def inside_a_level(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return ce(f(s["x'"]), y).mean()


@formula("gradient_at_x")
def gradient_at_x(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    clean = ce(f(x), y)
    g = slope(lambda v: ce(f(v), y), x)
    return (clean + (ce(f(s["x'"]), y) - clean - ((s["x'"] - x) * g).sum(1)).abs()).mean()


@formula("gradients")
def gradients(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    g, h = slope(lambda v: ce(f(v), y), x).detach(), slope(lambda v: ce(f(v), y), s["x'"])
    return (ce(f(s["x'"]), y) + squares(g - h)).mean()


# --- one batch, weights, states ---


@formula("four_points")
def four_points(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    a, b, t = x + s["a"], x + s["b"], s["t"]
    middle = (1 - t).unsqueeze(1) * a + t.unsqueeze(1) * b
    error = ce(f(middle), y) - (1 - t) * ce(f(a), y) - t * ce(f(b), y)
    return (ce(f(s["x'"]), y) + 2 * error**2 + entropy(f(s["x'"]))).mean()


def moved(f: nn.Module, w: Tensor) -> Callable[[Tensor], Tensor]:
    """f at theta + stop(w - theta)."""
    own = dict(f.named_parameters())
    parts = torch.split(w, [p.numel() for p in own.values()])
    at = {n: p + (v.reshape(p.shape) - p).detach() for (n, p), v in zip(own.items(), parts, strict=True)}
    return lambda v: torch.func.functional_call(f, at, (v,))  # type: ignore[no-any-return]


@formula("refuses_to_join")
def refuses_to_join(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + kl(f(x).detach(), f(s["x'"])) + ce(moved(f, s["w"])(s["x'"]), y)).mean()


@formula("family_joined")
def family_joined(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    count = s["x'"].shape[1]
    return (ce(f(x), y) + sum(ce(f(s["x'"][:, i]), y) for i in range(count)) / count).mean()


@formula("not_asked")
def not_asked(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(x), y) + ce(f(s["x'"]), y)).mean()


@formula("weights_stay")
def weights_stay(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    there = moved(f, s["w"])
    return (ce(there(s["x'"]), y) + kl(f(x), there(s["x'"]))).mean()


@formula("next_values")
def next_values(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return ce(f(s["x'"]), y).mean()


@formula("fooled_weight")
def fooled_weight(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    moved = f(s["x'"])
    return (ce(moved, y) * (1 + (moved.argmax(1) != y).double())).mean()


@formula("stays_behind")
def stays_behind(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    moved, clean = f(s["x'"]), f(x).detach()
    far = x + 0.1 * p(clean)[torch.arange(len(y)), y].unsqueeze(1)
    return (ce(moved, y) + kl(clean, moved) + kl(f(far).detach(), moved)).mean()


@formula("replayed")
def replayed(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (2 * ce(f(s["x'@2"]), y) + ce(f(x), y)).mean()


@formula("refuses_to_fuse")
def refuses_to_fuse(f: nn.Module, x: Tensor, y: Tensor, s: Solutions) -> Tensor:
    return (ce(f(s["x'@2"]), y) + kl(f(x), f(s["x'@2"]))).mean()
