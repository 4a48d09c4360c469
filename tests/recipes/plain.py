"""Every shipped recipe as plain PyTorch, written from the papers' formulas; nothing of lossdsl is imported here.

A method is an attack (the lower level) and a loss (the upper one). Attacks give the solutions by name, "x'" [B, *input] or for BETA
[B, K - 1, *input], and the iterate "x'@I" where the method keeps one. Losses run the model in train mode, in the order of the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Params = Mapping[str, float]
Solutions = dict[str, Tensor]
EPS, STEP = 8 / 255, 2 / 255

# --- quantities, one number per example -------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def kl(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(softmax target || softmax prediction), summed over classes."""
    return F.kl_div(F.log_softmax(prediction, 1), F.softmax(target, 1), reduction="none").sum(1)


def entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return -(p * p.log()).sum(1)


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Between probability vectors."""
    return ((a - b) ** 2).sum(1)


def others(y: Tensor, classes: int) -> Tensor:
    """The classes j != y in ascending order, [B, K - 1]."""
    return torch.tensor([[j for j in range(classes) if j != int(label)] for label in y])


# --- the lower level --------------------------------------------------------------------------------------------------


def clip(v: Tensor, x: Tensor, eps: float) -> Tensor:
    """Projection on the linf ball around x and on [0, 1]."""
    return torch.max(torch.min(v, x + eps), x - eps).clamp(0, 1)


def pgd(objective: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, step: float, steps: int) -> list[Tensor]:
    """The iterates x'@0 .. x'@steps of sign steps; the objective is one number per example."""
    v = clip(start, x, eps).detach()
    iterates = [v]
    for _ in range(steps):
        v.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(v).sum(), v)
        v = clip(v.detach() + step * gradient.sign(), x, eps)
        iterates.append(v)
    return [v.detach() for v in iterates]


def normal_start(x: Tensor, g: Generator) -> Tensor:
    return x + 0.001 * torch.randn(x.shape, generator=g, dtype=x.dtype)


def uniform_start(x: Tensor, eps: float, g: Generator) -> Tensor:
    return x + (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1) * eps


def attack_ce(f: nn.Module, x: Tensor, y: Tensor, start: Tensor, q: Params, steps: int, step: float | None = None) -> Solutions:
    path = pgd(lambda v: cross_entropy(f(v), y), x, start, q["eps"], q["step"] if step is None else step, steps)
    return {"x'": path[-1]}


def no_attack(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    return {}


def attack_fgsm(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.eval()
    return attack_ce(f, x, y, x, q, steps=1, step=q["eps"])


def attack_fast(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.train()
    return attack_ce(f, x, y, uniform_start(x, q["eps"], g), q, steps=1)


def attack_pgd2(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.train()
    return attack_ce(f, x, y, uniform_start(x, q["eps"], g), q, steps=2)


def attack_pgd(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.eval()
    return attack_ce(f, x, y, uniform_start(x, q["eps"], g), q, steps=10)


def attack_mart(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.eval()
    return attack_ce(f, x, y, normal_start(x, g), q, steps=10)


def attack_kl(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.eval()
    clean = f(x).detach()
    path = pgd(lambda v: kl(clean, f(v)), x, normal_start(x, g), q["eps"], q["step"], 10)
    return {"x'": path[-1]} | ({f"x'@{q['I']}": path[int(q["I"])]} if "I" in q else {})


def attack_se(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    f.eval()
    clean = f(x).detach().softmax(1)
    path = pgd(lambda v: squared_error(f(v).softmax(1), clean), x, normal_start(x, g), q["eps"], q["step"], 10)
    return {"x'": path[-1]} | ({f"x'@{q['I']}": path[int(q["I"])]} if "I" in q else {})


def attack_beta(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Solutions:
    """For every j != y from its own uniform point of the box: ascend f_j - f_y."""
    f.eval()
    classes = f(x[:1]).shape[1]
    j = others(y, classes)
    wide, label, target = x.repeat_interleave(classes - 1, 0), y.repeat_interleave(classes - 1), j.flatten()
    low, high = (wide - q["eps"]).clamp(min=0), (wide + q["eps"]).clamp(max=1)
    start = low + (high - low) * torch.rand(wide.shape, generator=g, dtype=x.dtype)
    rows = torch.arange(len(wide))

    def margin(v: Tensor) -> Tensor:
        logits = f(v)
        return logits[rows, target] - logits[rows, label]

    return {"x'": pgd(margin, wide, start, q["eps"], q["step"], 10)[-1].reshape(len(x), classes - 1, *x.shape[1:])}


# --- the upper level --------------------------------------------------------------------------------------------------


def loss_clean(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    f.train()
    return cross_entropy(f(x), y).mean()


def loss_adversarial(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    f.train()
    return cross_entropy(f(s["x'"]), y).mean()


def loss_trades(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """FAIT eq. 3; with b_cle and b_adv eq. 10."""
    f.train()
    clean, adversarial = f(x), f(s["x'"])
    loss = cross_entropy(clean, y) + q["lambda"] * kl(clean, adversarial)
    return (loss - q.get("b_cle", 0) * entropy(clean) - q.get("b_adv", 0) * entropy(adversarial)).mean()


def loss_fait(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """FAIT sec. 4.1; with b_cle and b_adv eq. 10."""
    f.train()
    clean, middle, adversarial = f(x), f(s[f"x'@{q['I']}"]), f(s["x'"])
    loss = cross_entropy(clean, y) + q["lambda"] * (kl(clean, middle) + kl(middle, adversarial))
    return (loss - q.get("b_cle", 0) * entropy(clean) - q.get("b_adv", 0) * entropy(adversarial)).mean()


def loss_mart(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """BCE(p(x'), y) + lambda * KL(p(x) || p(x')) * (1 - p_y(x)); the released code runs the clean batch first."""
    f.train()
    clean, adversarial = f(x), f(s["x'"])
    p, rows = adversarial.softmax(1), torch.arange(len(x))
    runner_up = p.masked_fill(F.one_hot(y, p.shape[1]).bool(), -1).max(1).values
    bce = -p[rows, y].log() - (1 - runner_up).log()
    return (bce + q["lambda"] * kl(clean, adversarial) * (1 - clean.softmax(1)[rows, y])).mean()


def loss_score(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """SE(p(x), e_y) + lambda * SE(p(x'), p(x)); the entropy of MER becomes -S(p), S(p) = sum_i p_i^2."""
    f.train()
    clean, adversarial = f(x).softmax(1), f(s["x'"]).softmax(1)
    onehot = F.one_hot(y, clean.shape[1]).to(clean.dtype)
    loss = squared_error(clean, onehot) + q["lambda"] * squared_error(adversarial, clean)
    return (loss + q.get("b_cle", 0) * (clean**2).sum(1) + q.get("b_adv", 0) * (adversarial**2).sum(1)).mean()


def loss_fait_s(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    f.train()
    clean, middle, adversarial = f(x).softmax(1), f(s[f"x'@{q['I']}"]).softmax(1), f(s["x'"]).softmax(1)
    onehot = F.one_hot(y, clean.shape[1]).to(clean.dtype)
    robust = squared_error(clean, middle) + squared_error(middle, adversarial)
    return (squared_error(clean, onehot) + q["lambda"] * robust).mean()


def loss_bridge(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """Bridged AT alg. 1: m bridges on the segment, each point of the path seen once."""
    f.train()
    m = int(q["m"])
    path = [f(x)] + [f((1 - k / m) * x + k / m * s["x'"]) for k in range(1, m + 1)]
    return (cross_entropy(path[0], y) + q["beta"] * sum(kl(path[k], path[k + 1]) for k in range(m))).mean()


def margins(f: nn.Module, v: Tensor, y: Tensor) -> Tensor:
    """M(v_j, y)_j = f(v_j)_j - f(v_j)_y for every j != y, [B, K - 1], in eval mode and without gradient."""
    f.eval()
    batch, n = v.shape[:2]
    with torch.no_grad():
        logits = f(v.flatten(0, 1)).reshape(batch, n, -1)
    j = others(y, n + 1)
    return logits.gather(2, j.unsqueeze(2)).squeeze(2) - logits.gather(2, y.view(-1, 1, 1).expand(-1, n, 1)).squeeze(2)


def loss_beta(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """CE at the perturbation of the class with the largest margin."""
    worst = margins(f, s["x'"], y).argmax(1)
    f.train()
    return cross_entropy(f(s["x'"][torch.arange(len(x)), worst]), y).mean()


def loss_sbeta(f: nn.Module, x: Tensor, y: Tensor, s: Solutions, q: Params) -> Tensor:
    """CE at every perturbation, weighted by the softmax of mu times the margins (constants)."""
    weights = (q["mu"] * margins(f, s["x'"], y)).softmax(1)
    f.train()
    batch, n = s["x'"].shape[:2]
    losses = cross_entropy(f(s["x'"].flatten(0, 1)), y.repeat_interleave(n)).reshape(batch, n)
    return (weights * losses).sum(1).mean()


# --- the methods and their params -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    attack: Callable[[nn.Module, Tensor, Tensor, Generator, Params], Solutions]
    loss: Callable[[nn.Module, Tensor, Tensor, Solutions, Params], Tensor]
    params: Params


BOX = {"eps": EPS, "step": STEP}
METHODS: dict[str, Method] = {
    "erm": Method(no_attack, loss_clean, {}),
    "fgsm_at": Method(attack_fgsm, loss_adversarial, {"eps": EPS}),
    "fast_at": Method(attack_fast, loss_adversarial, {"eps": EPS, "step": 1.25 * EPS}),
    "pgd_at": Method(attack_pgd, loss_adversarial, BOX),
    "pgd2_at": Method(attack_pgd2, loss_adversarial, {"eps": EPS, "step": EPS / 2}),
    "trades": Method(attack_kl, loss_trades, BOX | {"lambda": 6}),
    "mart": Method(attack_mart, loss_mart, BOX | {"lambda": 5}),
    "fait": Method(attack_kl, loss_fait, BOX | {"lambda": 12, "I": 2}),
    "trades_mer": Method(attack_kl, loss_trades, BOX | {"lambda": 21, "b_cle": 1, "b_adv": 0}),
    "fait_mer": Method(attack_kl, loss_fait, BOX | {"lambda": 30, "I": 2, "b_cle": 1, "b_adv": 0}),
    "score": Method(attack_se, loss_score, BOX | {"lambda": 4}),
    "fait_s": Method(attack_se, loss_fait_s, BOX | {"lambda": 8, "I": 2}),
    "trades_mer_s": Method(attack_se, loss_score, BOX | {"lambda": 10, "b_cle": 1, "b_adv": 0}),
    "bat": Method(attack_pgd, loss_bridge, BOX | {"beta": 5, "m": 2}),
    "beta_at": Method(attack_beta, loss_beta, BOX),
    "sbeta_at": Method(attack_beta, loss_sbeta, BOX | {"mu": 10}),
}
