"""`lossdsl explain` shows every construct of a recipe, and marks what the text left to a default."""

from __future__ import annotations

import pytest

from lossdsl.assets import attack_paths, recipe_paths
from lossdsl.front import load, parse_recipe

LOWER = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x{}) {}\n"
WEIGHTS = "lower w in {}(theta, {}) maximize CE(f{{w}}(x), y) by {}\n"
UPPER = "upper minimize CE(f(x'), y) by sgd(lr = 0.1) {}\n"
CLEAN = "upper minimize CE(f(x), y) by sgd(lr = 0.1)\n"

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "states": (
        "state m = 0 then 0.9 * m + 0.1 * batch_mean(CE(f(x), y)) with f in eval\nstate w = zeros(K) then class_mean(error(f(x), y))\n"
        "memory r = 0 then CE(f(x), y)\nupper minimize CE(f(x), y) + m + r + w[y] by sgd(lr = 0.1)",
        (
            "kept across batches: new values are computed without gradient and act, all at once, from the next batch",
            "  m = 0, then 0.9 * m + 0.1 * batch_mean(CE(f(x), y)) (with f in eval): state",
            "  w = zeros(K), then class_mean(error(f(x), y)): state",
            "  r = 0, then CE(f(x), y): memory, one number per training example",
            "  class_mean mean over the examples of each class: a Vector: the mean over the batch's examples of each class; with `where c` over those that satisfy c",
        ),
    ),
    "find": (
        LOWER.format("", "") + "find t in [0, 1.5] where CE(f(x + t * (x' - x)), y) == 1 by bisection(steps = 7)\n"
        "upper minimize t * CE(f(x'), y) by sgd(lr = 0.1)",
        (
            "find t",
            "  in         [0, 1.5]",
            "  where      CE(f(x + t * (x' - x)), y) - 1 == 0",
            "             one equation per example; t is a constant of the upper level",
            "             steps = 7",
        ),
    ),
    "models": (
        "model g frozen\nmodel h\nmodel k\nupper minimize CE(f(x), y) + KL(p[g](x) || p(x)) + CE(h(x), y) + CE(k(x), y)\n"
        "by sgd(lr = 0.1) by adam(lr = 0.001) for h",
        (
            "models besides f, given when the recipe is compiled",
            "  g: frozen: in eval mode, its parameters are constants",
            "  h: trained: it joins the upper level",
            "  minimize   CE(f(x), y) + KL(p[g](x) || p(x)) + CE(h(x), y) + CE(k(x), y)",
            "  by         sgd (torch.optim.SGD)",
            "  by         adam (torch.optim.Adam) for h",
            "             lr = 0.001",
            "             the same optimizer for k",
        ),
    ),
    "weights": (
        WEIGHTS.format("layerwise", "0.01, only = matrices", "linear with f in untracked")
        + "upper at w minimize CE(f(x), y) by sgd(lr = 0.1) with f in untracked",
        (
            "  in         layerwise(theta, 0.01): per tensor, |v - theta| <= radius * |theta|, tensors of one dimension stay as they are",
            "             one problem for the whole batch: the objective is averaged",
            "  through    nothing: f{w} is taken at theta + stop(w - theta)  (default)",
            "             start = theta  (default)",
            "upper at w: f and p are f{w} and p{w}; the optimizer moves theta",
            "  with f in  untracked: as train, but running statistics are not written",
        ),
    ),
    "weights of radius 0": (
        WEIGHTS.format("l2", "0", "pgd(steps = 1, step = 0.1, start = theta)") + "upper minimize CE(f{w}(x), y) by sgd(lr = 0.1)",
        (
            "  in         l2(theta, 0): Euclidean norm of v - center <= radius (inputs or weights), all trained parameters; of radius 0 now: the level is skipped",
            "             start = theta, not projected",
        ),
    ),
    "classes": (
        "lower q in simplex(K) maximize batch_mean(q[y] * CE(f(x), y)) by ascent(steps = 3, step = 0.1, start = ones(K)/K)\n"
        "upper minimize q[y] * CE(f(x), y) by sgd(lr = 0.1)",
        (
            "  in         simplex(K): non-negative class weights that sum to one",
            "             one problem for the whole batch: the objective is averaged",
            "             start = ones(K) / K, projected on the set",
        ),
    ),
    "unrolling": (LOWER.format("", "through unrolling") + UPPER.format(""), ("  through    unrolling: the start and every update are differentiated",)),
    "implicit": (
        LOWER.format("", "through implicit(scale = 0.5)") + UPPER.format(""),
        (
            "  through    implicit: by the optimality conditions of this objective, on the coordinates of x' strictly inside the set",
            "             scale = 0.5",
            "             steps = 50  (default)",
        ),
    ),
    "danskin": (
        LOWER.format("", "through danskin(starts = 3)") + UPPER.format(""),
        (
            "  through    danskin: none of the runs is selected; the step is the min-norm convex combination of their gradients",
            "             starts = 3",
        ),
    ),
    "noise and until": (
        LOWER.format(", noise = normal(0.01), until fooled(2)", "") + UPPER.format(""),
        (
            "             noise = normal(0.01), drawn in every update and added before the projection",
            "             until fooled(2): an example leaves where it is misclassified and has used up 2 further updates",
        ),
    ),
    "step per example": (
        LOWER.replace("0.05", "0.1 * p(x)[y]").format("", "") + UPPER.format(""),
        ("             step = 0.1 * p(x)[y], per example",),
    ),
    "step per batch": (
        "state s = 0.1 then 0.9 * s\n" + LOWER.replace("0.05", "s").format("", "") + UPPER.format(""),
        ("             step = s",),
    ),
    "prox": (
        "lower x' in linf(x, 0.1) minimize -CE(f(x'), y) by prox(at = x + 0.01, weight = 5)\n" + UPPER.format(""),
        ("             at = x + 0.01, where its step is taken from", "             weight = 5"),
    ),
    "joint": (
        CLEAN + "with f in train joint",
        ("  with f in  train: batch statistics, written to the running ones; dropout", "             joint: all points go through the model in one batch"),
    ),
    "train": (
        CLEAN + "train epochs = 2, batch = 8, data = mix(labelled, pseudo, fraction = 0.5), ema = 0.99",
        (
            "  ema = 0.99",
            "  replays = 1  (default)",
            "  data = mix(labelled, pseudo, fraction = 0.5)",
            "  labelled and pseudo-labelled examples: a share 0.5 of every batch is of the second kind, with the label -1 if unknown",
        ),
    ),
    "sampler": (
        "state w = zeros(K) then class_mean(error(f(x), y))\n" + CLEAN
        + "train epochs = 2, batch = 8, sampler = classes(softmax(j: w[j]))",
        ("  sampler = classes(softmax(j1: w[j1])): the class of every example is drawn from this law, then the example",),
    ),
    "gradients": (
        "upper minimize CE(f(x), y) + norm(grad(v = x + 0.1: CE(f(v), y)), 2) by sgd(lr = 0.1)\nlog size = norm(grad(theta: CE(f(x), y)), 2)",
        ("  minimize   CE(f(x), y) + norm(grad(v = x + 0.1: CE(f(v), y)), 2)", "  size = norm(grad(theta: CE(f(x), y)), 2)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_constructs_are_shown(name: str) -> None:
    text, expected = CASES[name]
    lines = parse_recipe("recipe r\n" + text).explain().splitlines()
    for line in expected:
        assert line in lines, "\n".join([line, "is not in", *lines])


def test_stages_come_in_the_order_of_running() -> None:
    text = (
        CASES["find"][0]
        .replace("find t", f"{WEIGHTS.format('l2', '0.1', 'linear')}find t")
        .replace("t * CE(f(x'), y)", "t * CE(f{w}(x'), y)")
    )
    heads = [line for line in parse_recipe("recipe r\n" + text).explain().splitlines() if line and not line.startswith(" ")]
    method = ["programme", "algorithm", "gradient of the upper level", "cost of a batch"]
    assert heads == ["recipe r", *method, "input", "lower x'", "lower w", "find t", "upper", "operations"]


@pytest.mark.parametrize("name", [*recipe_paths(), *attack_paths()])
def test_no_line_of_a_shipped_recipe_shows_the_insides(name: str) -> None:
    text = load(name).explain()
    assert "Typed(" not in text and "object at" not in text and "<" not in text.replace("<=", "").replace(" < ", "").replace("<a, b>", "")
