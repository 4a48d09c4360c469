"""`until fooled(tau)`, `survived`, `first_fooled`, noise in the step, and a radius and step for every example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_tools import BY, batchnorm, data, mlp, seeded, step_of
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import LossdslError

CE = nn.functional.cross_entropy
STEP = 0.03


def friendly(steps: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and a batch of which some are wrong at once, some after a few steps and some never."""
    x, y = data(12)
    model = mlp()
    with torch.no_grad():
        model.layers[2].weight.mul_(4)
        predicted = model(x).argmax(1)
    y[:8] = predicted[:8]
    return model, x, y


def text(options: str, objective: str = "CE(f(x'), y)", upper: str = "CE(f(x'), y)", mode: str = "eval", start: str = "x") -> str:
    solver = f"pgd(steps = 6, step = {STEP}, start = {start}{options})"
    return f"lower x' in linf(x, 0.25) maximize {objective} by {solver} with f in {mode}\nupper minimize {upper} {BY}"


def alone(
    model: nn.Module, x: Tensor, y: Tensor, tau: int | None, start: Tensor | None = None, steps: int = 6
) -> tuple[list[Tensor], int, int]:
    """One example [1, d]: its iterates, the checks it survived and the first it failed, by a loop over the words of the definition."""
    v, path, survived, first, counter, left = x if start is None else start, [], 0, steps, tau, False
    path.append(v)
    for k in range(steps):
        wrong = left or bool(model(v).argmax(1) != y)
        survived += not wrong
        first = min(first, k) if wrong else first
        if wrong and counter is not None:
            left = left or counter == 0
            counter -= not left
        if not left:
            leaf = v.detach().requires_grad_()
            (slope,) = torch.autograd.grad(CE(model(leaf), y, reduction="sum"), leaf)
            v = (v + STEP * slope.sign()).clamp(x - 0.25, x + 0.25).clamp(0, 1).detach()
        path.append(v)
    return path, survived, first


LOGGED = "CE(f(x'), y) + 0 * (survived(x') + first_fooled(x') + norm(x'@3 - x, 2) + norm(x'@0 - x, 2))"


@pytest.mark.parametrize("chunk", [5, 4096])
@pytest.mark.parametrize("tau", [None, 0, 1, 3, 6])
def test_every_example_by_itself(tau: int | None, chunk: int) -> None:
    """Points, iterates and counts; in chunks, and with the examples that have left out of the computation, the same."""
    model, x, y = friendly()
    step = step_of(text("" if tau is None else f", until fooled({tau})", upper=LOGGED), model, chunk=chunk)
    found = step.solve(x, y)
    firsts = set()
    for i in range(len(x)):
        path, survived, first = alone(model, x[[i]], y[[i]], tau)
        assert (found["x'"][i] - path[-1][0]).abs().max() < 1e-14
        assert (found["x'@3"][i] - path[3][0]).abs().max() < 1e-14
        assert (float(found["x'@survived"][i]), float(found["x'@first_fooled"][i])) == (survived, first)
        firsts.add(first)
    assert {0, 6} < firsts


def test_tau_for_every_example() -> None:
    model, x, y = friendly()
    step = step_of(text(", until fooled(max(tau, 0))", upper=LOGGED) + "\nmemory tau = 0 then tau + 2", model)
    taus = torch.arange(12.0, dtype=torch.float64) % 4
    step.load_state_dict({"memory.tau": taus})
    found = step.solve(x, y, index=torch.arange(12))["x'"]
    for i in range(12):
        path, *_ = alone(model, x[[i]], y[[i]], int(taus[i]))
        assert (found[i] - path[-1][0]).abs().max() < 1e-14


def test_those_who_have_left_are_not_computed_again() -> None:
    """Sizes of the attack's batches fall; when all have left, the attack ends."""
    model, x, y = friendly()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])))
    step = step_of(text(", until fooled(0)"), model)
    step.solve(x, y)
    assert sizes[0] == 12 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 8
    sizes.clear()
    wrong = mlp()(x).argmin(1)
    step.solve(x, wrong)
    assert sizes[0] == 12 and len(sizes) <= 2


def test_in_train_mode_everybody_stays_in_the_batch() -> None:
    """BatchNorm sees whole batches; who has left stands still."""
    _, x, y = friendly()
    model = batchnorm()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])))
    step = step_of(text(", until fooled(0)", upper=LOGGED, mode="untracked"), model)
    found = step.solve(x, y)
    assert set(sizes) == {12}
    assert torch.equal(found["x'@survived"], found["x'@first_fooled"])
    gone = found["x'@first_fooled"] <= 3
    assert gone.any() and not gone.all()
    assert torch.equal(found["x'"][gone], found["x'@3"][gone]) and not torch.equal(found["x'"][~gone], found["x'@3"][~gone])


def test_counts_of_a_family_are_those_of_its_members() -> None:
    """Class by class: the run x'[j] of one class alone."""
    model, x, y = friendly()
    solver = "by pgd(steps = 6, step = 0.05, start = x, until fooled(1))"
    whole = f"lower x'[j != y] in linf(x, 0.25) maximize f(x'[j])[j] - f(x'[j])[y] {solver}"
    upper = f"upper minimize max(j != y: CE(f(x'[j]), y) + 0 * survived(x'[j]) + 0 * first_fooled(x'[j])) {BY}"
    found = step_of(whole + "\n" + upper, model).solve(x, y)
    assert found["x'@survived"].shape == found["x'@first_fooled"].shape == (12, 3)
    for c in range(4):
        single = f"lower u in linf(x, 0.25) maximize f(u)[{c}] - f(u)[y] {solver}"
        class_alone = step_of(f"{single}\nupper minimize CE(f(u), y) + 0 * survived(u) + 0 * first_fooled(u) {BY}", model)
        one = class_alone.solve(x, torch.where(y == c, (y + 1) % 4, y))
        for i in range(12):
            if y[i] == c:
                continue
            place = [j for j in range(4) if j != y[i]].index(c)
            assert (found["x'"][i, place] - one["u"][i]).abs().max() < 1e-14
            assert found["x'@survived"][i, place] == one["u@survived"][i]
            assert found["x'@first_fooled"][i, place] == one["u@first_fooled"][i]


def test_a_count_at_a_chosen_class() -> None:
    """survived(x'[c]) at the class of an argmax, inside the objective."""
    model, x, y = friendly()
    family = "lower x'[j != y] in linf(x, 0.25) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 6, step = 0.05, start = x)"
    lets = "let worst = argmax(j != y: f(x)[j]) with f in eval\nlet kappa = survived(x'[worst])"
    step = step_of(f"{family}\n{lets}\nupper minimize (1 + kappa) * CE(f(x'[worst]), y) {BY}", model)
    found = step.solve(x, y)
    logits = model(x).detach().scatter(1, y.unsqueeze(1), -1e9)
    place = torch.tensor([[j for j in range(4) if j != y[i]].index(int(logits[i].argmax())) for i in range(12)])
    rows = torch.arange(12)
    kappa = found["x'@survived"][rows, place]
    assert len(set(kappa.tolist())) > 1
    expected = ((1 + kappa) * CE(model(found["x'"][rows, place]), y, reduction="none")).mean()
    assert float(step(x, y).detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("tau", [None, 1])
def test_counts_are_those_of_the_kept_restart(tau: int | None) -> None:
    """Three restarts, each from its own draw: point, iterates and counts belong together."""
    model, x, y = friendly()
    options = ", restarts = 3" + ("" if tau is None else f", until fooled({tau})")
    found = step_of(text(options, upper=LOGGED, start="x + normal(0.1)"), model).solve(x, y, generator=seeded())
    generator = seeded()
    starts = [(x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).clamp(x - 0.25, x + 0.25).clamp(0, 1) for _ in range(3)]
    kept = set()
    for i in range(12):
        runs = [alone(model, x[[i]], y[[i]], tau, s[[i]]) for s in starts]
        values = [float(CE(model(path[-1]), y[[i]]).detach()) for path, *_ in runs]
        best = max(range(3), key=lambda r: (values[r], r))
        kept.add(best)
        path, survived, first = runs[best]
        assert (found["x'"][i] - path[-1][0]).abs().max() < 1e-14 and (found["x'@0"][i] - path[0][0]).abs().max() < 1e-14
        assert (float(found["x'@survived"][i]), float(found["x'@first_fooled"][i])) == (survived, first)
    assert len(kept) == 3


def test_fooled_asks_in_eval_mode_at_the_solution() -> None:
    _, x, y = friendly()
    model = batchnorm()
    step = step_of(text("", upper="(1 + fooled(x')) * CE(f(x'), y)"), model)
    found = step.solve(x, y)["x'"]
    plain = batchnorm()
    wrong = plain.eval()(found).argmax(1) != y
    assert wrong.any() and not wrong.all() and (plain.train()(found).argmax(1) != y).ne(wrong).any()
    losses = CE(plain(found), y, reduction="none")
    assert float(step(x, y).detach()) == pytest.approx(float((losses * (1 + wrong.double())).mean().detach()), rel=1e-12)


# --- noise, radius and step -------------------------------------------------------------------------------------------


def test_noise_is_drawn_anew_in_every_update() -> None:
    """With step 0 the iterates are sums of the draws, in the order of the generator; the projection comes after."""
    _, x, y = friendly()
    solver = "pgd(steps = 3, step = 0, start = x, noise = normal(0.05))"
    upper = "CE(f(x'), y) + 0 * (norm(x'@1, 2) + norm(x'@2, 2))"
    step = step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) by {solver}\nupper minimize {upper} {BY}", mlp())
    found = step.solve(x, y, generator=seeded())
    generator, v = seeded(), x
    for key in ("x'@1", "x'@2", "x'"):
        v = (v + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        assert (found[key] - v).abs().max() < 1e-15


def test_noise_does_not_depend_on_who_has_left() -> None:
    """The draws of those who stay are those of a run in which nobody leaves."""
    model, x, y = friendly()
    free = step_of(text(", noise = normal(0.01)"), model).solve(x, y, generator=seeded())["x'"]
    stopped = step_of(text(", noise = normal(0.01), until fooled(0)", upper=LOGGED), model).solve(x, y, generator=seeded())
    never = stopped["x'@first_fooled"] == 6
    assert never.any() and torch.equal(stopped["x'"][never], free[never]) and not torch.equal(stopped["x'"][~never], free[~never])


@pytest.mark.parametrize("chunk", [5, 4096])
@pytest.mark.parametrize("region", ["linf", "l2"])
@pytest.mark.parametrize("stop", ["", ", until fooled(1)"])
def test_a_radius_and_step_for_every_example(region: str, chunk: int, stop: str) -> None:
    """As many runs with numbers as there are examples."""
    model, x, y = friendly()
    solver = f"by pgd(steps = 4, step = 0.4 * r, start = x{stop})"
    whole = f"let r = 0.05 + 0.2 * p(x)[y]\nlower x' in {region}(x, r) maximize CE(f(x'), y) {solver}\nupper minimize CE(f(x'), y) {BY}"
    found = step_of(whole, model, chunk=chunk).solve(x, y)["x'"]
    radii = (0.05 + 0.2 * model(x).softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)).tolist()
    for i in range(12):
        one = f"param r = {radii[i]!r}\nlower x' in {region}(x, r) maximize CE(f(x'), y) {solver}\nupper minimize CE(f(x'), y) {BY}"
        assert (found[i] - step_of(one, model).solve(x[[i]], y[[i]])["x'"][0]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "solver",
    [
        "linear(start = x, until fooled(1))",
        "pgd(steps = 2, step = 0.05, start = x, noise = 0.1)",
        "pgd(steps = 2, step = 0.05, start = x, noise = x)",
    ],
)
def test_arguments_that_cannot_be_meant(solver: str) -> None:
    refused(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) by {solver}\nupper minimize CE(f(x'), y) {BY}")


@pytest.mark.parametrize("until", ["fooled(0 - 1)", "fooled(0.5)", "fooled(x)", "fooled()", "tired(1)"])
def test_stops_that_cannot_be_meant(until: str) -> None:
    refused(text(f", until {until}"))


@pytest.mark.parametrize("fact", ["survived(x)", "survived(y)", "first_fooled(w)", "survived()"])
def test_counts_that_cannot_be_meant(fact: str) -> None:
    refused(
        f"lower w in l2(theta, 1) maximize CE(f{{w}}(x), y) by linear\n{text('')}".replace("upper minimize", f"upper minimize {fact} * ")
    )


def refused(body: str) -> Any:
    with pytest.raises(LossdslError) as caught:
        lossdsl.parse("recipe r\n" + body).plan  # noqa: B018
    found = [d for d in caught.value.diagnostics if d.severity == "error"]  # type: ignore[attr-defined]
    assert len(found) == 1, found
