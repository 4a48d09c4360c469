"""Linear games: what every solver does is a matrix, and its factor is known."""

from __future__ import annotations

import math

import pytest
import torch
from games_helpers import game, largest, linear, rows
from torch import Tensor

from lossdsl.games import compile_game, load_game

I2 = torch.eye(2, dtype=torch.float64)
TURN = rows((0.0, 1.0), (-1.0, 0.0))
STEPS = (0.05, 0.3, 0.9)


def one_step(solver: str, **options: float) -> Tensor:
    """The matrix of one update of the bilinear game: the columns are the images of the unit vectors."""
    return load_game("bilinear").run(solver, start=I2, iterations=1, **options).final.T


@pytest.mark.parametrize("a", STEPS)
def test_factors_of_one_step_methods_on_the_bilinear_game(a: float) -> None:
    for solver, factor in (("gda", math.sqrt(1 + a**2)), ("ppm", 1 / math.sqrt(1 + a**2)), ("extragradient", math.sqrt(1 - a**2 + a**4))):
        step = one_step(solver, step=a)
        assert abs(largest(step) - factor) < 1e-10, solver
        torch.testing.assert_close(step.T @ step, factor**2 * I2, rtol=0, atol=1e-12)  # every point shrinks by it, whatever its angle
    torch.testing.assert_close(one_step("ppm", step=a), torch.linalg.inv(I2 + a * TURN), rtol=0, atol=1e-15)


def companion(first: Tensor, second: Tensor) -> Tensor:
    """(z, z-) -> (first z + second z-, z)."""
    return torch.cat((torch.cat((first, second), 1), torch.cat((I2, torch.zeros_like(I2)), 1)), 0)


@pytest.mark.parametrize("a", (0.05, 0.3, 0.7))
@pytest.mark.parametrize("solver", ["ogda", "rfbs"])
def test_methods_with_memory_follow_their_companion_matrix(solver: str, a: float) -> None:
    """z+ = z - 2a V(z) + a V(z-), and z+ = z - a V(2z - z-): the same on a linear field. The first step is that of gda."""
    matrix = companion(I2 - 2 * a * TURN, a * TURN)
    start = rows((1.0, -0.5))
    points = load_game("bilinear").run(solver, start=start, step=a, iterations=60).points[:, 0]
    state = torch.cat((points[1], points[0]))
    torch.testing.assert_close(points[1], (I2 - a * TURN) @ start[0], rtol=0, atol=1e-14)
    for n in range(2, 61):
        state = matrix @ state
        torch.testing.assert_close(points[n], state[:2], rtol=1e-11, atol=1e-12)
    recovered = torch.linalg.lstsq(stacked(points[1:-1], points[:-2]), points[2:]).solution.T  # [2, 4]: (first, second)
    assert abs(largest(companion(recovered[:, :2], recovered[:, 2:])) - largest(matrix)) < 1e-10
    # Their common factor in closed form: r solves r^2 - (1 - 2ai) r - ai = 0.
    roots = [((1 - 2j * a) + s * ((1 - 2j * a) ** 2 + 4j * a) ** 0.5) / 2 for s in (1, -1)]
    assert abs(max(abs(r) for r in roots) - largest(matrix)) < 1e-10
    assert (largest(matrix) < 1) == (a < 1 / math.sqrt(3))


def stacked(now: Tensor, before: Tensor) -> Tensor:
    return torch.cat((now, before), 1)


def test_approximations_of_ppm_have_the_order_that_the_slides_say() -> None:
    """One step from ppm: gda is O(a^2) away, extragradient O(a^3), and ogda O(a^3) once its memory is that of the flow."""
    for solver, order in (("gda", 2), ("extragradient", 3)):
        away = [largest_norm(one_step(solver, step=a) - one_step("ppm", step=a)) for a in (0.02, 0.01)]
        assert abs(math.log2(away[0] / away[1]) - order) < 0.05, solver


def largest_norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("alpha", (0.25, 0.5, 1.0))
@pytest.mark.parametrize("rho", (-0.6, -0.4, -0.3, -0.2, -0.1, 0.3))
def test_eg_plus_on_the_quadratic_game_turns_where_theory_says(rho: float, alpha: float) -> None:
    """V turns by the angle whose cosine is rho L: with step 1/L the factor is |1 - alpha (w - w^2)|, w = e^(i angle), below 1 exactly for
    alpha < 1 + 2 rho L; some alpha works iff rho > -1/(2L), and alpha = 1/2 covers rho > -1/(8L)."""
    played = compile_game(load_game("quadratic").recipe.with_params(rho=rho))
    w = complex(rho, math.sqrt(1 - rho**2))
    step = played.run(f"eg_plus(step = 1, alpha = {alpha}, iterations = 1)", start=I2).final.T
    factor = abs(1 - alpha * (w - w * w))
    assert abs(largest(step) - factor) < 1e-12
    assert (factor < 1) == (alpha < 1 + 2 * rho)
    run = played.run(f"eg_plus(step = 1, alpha = {alpha}, iterations = 600)", start=rows((1.0, 1.0)))
    assert (float(run.final.norm()) < 1) == (alpha < 1 + 2 * rho)


@pytest.mark.parametrize(("L", "rho"), [(1.0, -0.1), (2.0, -0.2), (0.5, 0.7)])
def test_the_quadratic_game_has_the_constants_it_names(L: float, rho: float) -> None:  # noqa: N803
    played = compile_game(load_game("quadratic").recipe.with_params(L=L, rho=rho))
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = played.field(z)
    torch.testing.assert_close(v.norm(dim=1), L * z.norm(dim=1))
    torch.testing.assert_close((v * z).sum(1), rho * v.square().sum(1))


def test_every_solver_of_a_strongly_monotone_linear_game_is_its_matrix() -> None:
    m = rows((0.8, 0.5), (-0.7, 0.6))
    played, a, z0 = linear(m), 0.4, rows((1.0, 2.0))
    v = played.field(z0)
    torch.testing.assert_close(v, z0 @ m.T)
    expected = {
        "gda": I2 - a * m,
        "ppm": torch.linalg.inv(I2 + a * m),
        "extragradient": I2 - a * m @ (I2 - a * m),
        "eg_plus(step = 0.4, alpha = 0.3, iterations = 10)": I2 - 0.3 * a * m @ (I2 - a * m),
        "seg_plus(step = 0.4, alpha = 0.3, iterations = 10)": I2 - 0.3 * a * m @ (I2 - a * m),
        "bcseg_plus(step = 0.4, alpha = 0.3, iterations = 10)": I2 - 0.3 * a * m @ (I2 - a * m),
        "seg(step = 0.4, alpha = 0.5, iterations = 10)": I2 - 0.2 * m @ (I2 - 0.2 * m),
    }
    for solver, matrix in expected.items():
        options = {} if "(" in solver else {"step": a}
        torch.testing.assert_close(played.run(solver, start=z0, iterations=1, **options).final, z0 @ matrix.T, rtol=1e-13, atol=1e-13)


def test_decreasing_steps() -> None:
    """seg with its schedule is a product of matrices; seg_plus keeps the extrapolation fixed."""
    m = rows((0.8, 0.5), (-0.7, 0.6))
    for schedule, rate in (("harmonic", lambda k: 0.5 / (k / 4 + 1)), ("sqrt", lambda k: 0.5 / math.sqrt(k / 4 + 1))):
        both = late = I2
        for k in range(6):
            a = 0.4 * rate(k)
            both = (I2 - a * m @ (I2 - a * m)) @ both
            late = (I2 - a * m @ (I2 - 0.4 * m)) @ late
        for solver, matrix in (("seg", both), ("seg_plus", late)):
            text = f"{solver}(step = 0.4, alpha = 0.5, schedule = {schedule}, every = 4, iterations = 6)"
            torch.testing.assert_close(linear(m).run(text, start=rows((1.0, 2.0))).final, rows((1.0, 2.0)) @ matrix.T)


def test_alternating_descent_ascent_keeps_the_bilinear_game_bounded() -> None:
    """With turns the bilinear map has determinant 1: u+ = u - a v, v+ = v + a u+."""
    text = (
        "player x = 1 minimize x * y by sgd(lr = 0.1)\nplayer y = 0 maximize x * y by sgd(lr = 0.1)\nsolve alternating(iterations = 300)\n"
    )
    a = 0.1
    matrix = rows((1.0, 0.0), (a, 1.0)) @ rows((1.0, -a), (0.0, 1.0))
    found = game(text).run().points[:, 0]
    torch.testing.assert_close(found[-1], torch.linalg.matrix_power(matrix, 300) @ rows((1.0, 0.0))[0], rtol=1e-9, atol=1e-9)
    twice = game(text.replace("minimize x * y by sgd(lr = 0.1)", "minimize x * y by sgd(lr = 0.1, steps = 2)"))
    expected = rows((1.0, 0.0), (a, 1.0)) @ rows((1.0, -2 * a), (0.0, 1.0)) @ rows((0.7, 0.4))[0]
    torch.testing.assert_close(twice.run(start=rows((0.7, 0.4)), iterations=1).final[0], expected)


def test_a_turn_with_normalized_gradients() -> None:
    text = "player u = [3, 4] minimize norm(u, 2)^2 by sgd(lr = 0.5, normalize = true)\nsolve alternating(iterations = 1)\n"
    torch.testing.assert_close(game(text).run(start=rows((3.0, 4.0), (0.0, 0.0))).final, rows((2.7, 3.6), (0.0, 0.0)))
