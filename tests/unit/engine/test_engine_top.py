"""`j in top(n, i != y: score)`: the classes with the largest scores at the clean input, in eval mode, chosen once."""

from __future__ import annotations

import pytest
import torch
from engine_tools import BY, Logits, batchnorm, data, gradients, mlp, moody, seeded, step_of, upper
from torch import Tensor, nn
from torch.nn import functional as F

import lossdsl
from lossdsl.engine.kernels import KERNELS
from lossdsl.engine.reference import Reference
from lossdsl.plan.ir import codes

TOP = "top(2, i != y: f(x)[i])"
FAMILY = f"lower x'[j in {TOP}] in linf(x, 0.1) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 2, step = 0.1, start = uniform)"
WORST = f"let worst = argmax(j in {TOP}: f(x'[j])[j] - f(x'[j])[y]) with f in eval\n"


def best(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The classes other than y by descending logit in eval mode."""
    modes = model.training
    scores = model.eval()(x).detach().scatter(1, y.unsqueeze(1), -torch.inf)
    model.train(modes)
    return scores.topk(count).indices


def test_the_kernel_orders_by_score_and_ties_by_class() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    classes = torch.tensor([[0, 2, 3, 4], [1, 2, 3, 4]])
    assert KERNELS["class_top"](scores, classes, 3).tolist() == [[2, 3, 0], [1, 2, 3]]
    assert KERNELS["class_top"](scores, classes, 9).tolist() == [[2, 3, 0, 4], [1, 2, 3, 4]], "fewer if there are fewer"


def test_a_family_has_one_point_per_chosen_class() -> None:
    model, (x, y) = moody(), data()
    solutions = step_of(f"{FAMILY}\n{WORST}upper minimize CE(f(x'[worst]), y) {BY}", model).solve(x, y, generator=seeded())
    assert solutions["x'"].shape == (6, 2, 5)
    assert torch.equal(solutions["x'@classes"], best(model, x, y, 2))


def counts(classes: Tensor) -> list[float]:
    return [float((classes == c).sum()) for c in range(4)]


def test_the_classes_stay_those_the_family_was_solved_for() -> None:
    """Statistics that move between the family's level and the use of its header do not change them."""
    model, (x, y) = batchnorm(), data()
    model.layers[1].momentum = 1.0  # type: ignore[union-attr, index]
    later = "lower z in linf(x, 0.1) maximize CE(f(z), y) by pgd(steps = 3, step = 0.1, start = uniform) with f in train\n"
    logs = "".join(f"log c{c} = batch_sum(sum(j in {TOP}: onehot(j)[{c}]))\n" for c in range(4))
    step = step_of(f"{FAMILY}\n{later}{WORST}{logs}upper minimize CE(f(x'[worst]), y) + CE(f(z), y) {BY}", model)
    chosen = counts(best(model, x, y, 2))
    loss = step(x, y, generator=seeded())
    assert [float(loss.logs[f"c{c}"]) for c in range(4)] == chosen
    assert counts(best(model, x, y, 2)) != chosen, "chosen again, they would be others"
    assert sum(i.op == "class_top" for code in codes(step.plan) for i in code) == 1


def test_given_classes_are_those_the_objective_uses() -> None:
    model, (x, y) = mlp(), data()
    step = step_of(f"{FAMILY}\nupper minimize max(j in {TOP}: f(x'[j])[j]) {BY}", model)
    solutions = step.solve(x, y, generator=seeded())
    turned = dict(solutions, **{"x'@classes": (solutions["x'@classes"] + 1) % 4})
    members = torch.stack([model(solutions["x'"][:, n]) for n in range(2)], 1)
    for given in (solutions, turned):
        expected = members.gather(2, given["x'@classes"].unsqueeze(-1)).amax((1, 2)).mean()
        torch.testing.assert_close(step.objective(x, y, given).detach(), expected.detach())


EXPRESSIONS = {
    "largest": f"max(j in {TOP}: f(x'[j])[j] - f(x'[j])[y])",
    "weights": f"sum(j in {TOP}: softmax(j in {TOP}: f(x)[j])[j] * CE(f(x'[j]), j))",
    "the chosen member": "CE(f(x'[worst]), y)",
    "an iterate": f"sum(j in {TOP}: norm(x'[j]@1 - x'[j], 1))",
    "another header": "max(j in top(3, i: p(x)[i]): f(x)[j]) + sort(j in top(9, i != y: -f(x)[i]): f(x)[j])[1]",
    "sorted": f"sort(j in {TOP}: p(x'[j])[j])[2]",
    "score of a vector": "mean(j in top(2, i: softmax(k: 2 * f(x)[k])[i]): p(x)[j])",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_against_the_reference(name: str) -> None:
    model, (x, y) = mlp(), data()
    step = step_of(f"{FAMILY}\n{WORST}upper minimize CE(f(x), y) + {EXPRESSIONS[name]} {BY}", model)
    solutions = step.solve(x, y, generator=seeded())
    loss, expected = step.objective(x, y, solutions), Reference(step.recipe.typed, model, 4).objective(x, y, solutions)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-11)
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_header_without_a_family_scores_in_eval_mode() -> None:
    model, (x, y) = moody(), data()
    logs = "".join(f"log c{c} = batch_sum(sum(j in {TOP}: onehot(j)[{c}]))\n" for c in range(4))
    loss = upper("CE(f(x), y)", model, before=logs)(x, y, generator=seeded())
    assert [float(loss.logs[f"c{c}"]) for c in range(4)] == counts(best(moody(), x, y, 2))


def test_no_gradient_leaves_through_the_choice() -> None:
    model, (x, y) = mlp(), data()
    loss = upper("sum(j in top(2, i != y: f(x)[i]): stop(f(x))[j]) + CE(f(x), y)", model)(x, y)
    for a, b in zip(gradients(loss, model), gradients(F.cross_entropy(model(x), y), model), strict=True):
        torch.testing.assert_close(a, b)


def test_chunks_do_not_change_it() -> None:
    model, (x, y) = mlp(), data()
    text = f"{FAMILY.replace('uniform', 'x')}\nupper minimize max(j in {TOP}: f(x'[j])[j]) {BY}"
    whole, parts = (step_of(text, model, chunk=n).solve(x, y) for n in (4096, 3))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("classes", "members"), [(4, 3), (6, 5), (12, 9)])
def test_targeted_dlr_as_in_autoattack(classes: int, members: int) -> None:
    """A run against the nine best other classes; each run chooses for itself."""
    model, (x, _) = mlp(classes=classes), data()
    y = torch.arange(6) % classes
    run = "x'[j in top(9, i != y: f(x)[i])] in linf(x, 0.1) maximize DLR(f(x'[j]), y, j) by pgd(steps = 2, step = 0.1, start = x)"
    suite = lossdsl.parse(f"attack a\nrun one : {run}\nrun two : {run.replace('steps = 2', 'steps = 1')}\ncount worst")
    attack = lossdsl.compile(suite, model, num_classes=classes)
    for only in (None, "two"):
        found = attack.run(x, y, only=only)
        point, _ = found["two"]
        assert point.shape == (6, members, 5) and list(found) == (["two"] if only else ["one", "two"])
    target = best(model, x, y, members)
    for n in range(members):
        start = x.clone().requires_grad_()
        slope = torch.autograd.grad(KERNELS["DLR"](model(start), y, target[:, n]).sum(), start)[0]
        torch.testing.assert_close(point[:, n], (x + 0.1 * slope.sign()).clamp(0, 1))


def test_dlr_with_a_target_needs_four_classes() -> None:
    text = f"lower x'[j in {TOP}] in linf(x, 1) maximize DLR(f(x'[j]), y, j) by linear(start = x)\nupper minimize max(j in {TOP}: f(x'[j])[j]) {BY}"
    with pytest.raises(lossdsl.UserError, match="needs 4 classes, and there are 3"):
        step_of(text, Logits(), 3)
