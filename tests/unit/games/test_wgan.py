"""Games of models against the same methods written by hand in PyTorch, float64, the same draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.front import load, parse_recipe
from lossdsl.games.neural_data import STD, Source, load_source, ring_means
from lossdsl.games.neural_game import GameBatch, ModelGame
from lossdsl.games.neural_measure import ring
from lossdsl.games.neural_models import NETWORKS, Ports, build_networks, latent_size, prepare
from lossdsl.games.neural_solvers import Trainer

CPU = torch.device("cpu")
Networks = dict[str, nn.Module]
HEAD = """
game g
model critic : Input -> Real
model h : Latent -> Input
sample z ~ normal(1) over latent(3)
"""
PENALTY = """
sample t ~ uniform(0, 1)
player critic
  maximize critic(x) - critic(h(z)) - 10 * (norm(grad(v = t * x + (1 - t) * h(z): critic(v)), 2) - 1)^2
"""
PLAIN = "player critic maximize critic(x) - critic(h(z))"
GENERATOR = "player h minimize -critic(h(z))"


def networks(seed: int = 0, latent: int = 3) -> Networks:
    """Small and smooth, so that second derivatives count."""
    torch.manual_seed(seed)
    critic = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    return {"critic": critic.double(), "h": nn.Sequential(nn.Linear(latent, 5), nn.Tanh(), nn.Linear(5, 2)).double()}


def trainer(text: str, models: Networks, seed: int = 3) -> Trainer:
    game = parse_recipe(HEAD + text).game
    prepare(models, game.keeps)
    return Trainer(ModelGame(game, models), load_source("ring"), seed, CPU, torch.float64)


def setup(text: str, count: int) -> tuple[Trainer, Networks, list[GameBatch]]:
    """A trainer, copies of its networks as it starts, and the batches it will draw."""
    models = networks()
    t = trainer(text, models)
    other = trainer(text, networks())
    return t, copy.deepcopy(models), [other.fresh() for _ in range(count)]


def close(models: Networks, wanted: Networks, tolerance: float = 1e-10) -> None:
    for name, model in models.items():
        for p, q in zip(model.parameters(), wanted[name].parameters(), strict=True):
            assert torch.allclose(p, q, rtol=tolerance, atol=tolerance), name


def changed(models: Networks, start: Networks) -> bool:
    return all(
        not torch.equal(p, q) for n in models for p, q in zip(models[n].parameters(), start[n].parameters(), strict=True) if p.dim() > 1
    )


def critic_loss(m: Networks, b: GameBatch) -> Tensor:
    """Minus what the critic maximises, without a penalty."""
    loss: Tensor = m["critic"](m["h"](b.draws["z"])).mean() - m["critic"](b.x).mean()
    return loss


def penalised_loss(m: Networks, b: GameBatch) -> Tensor:
    t = b.draws["t"].unsqueeze(1)
    v = (t * b.x + (1 - t) * m["h"](b.draws["z"])).detach().requires_grad_()
    slope = torch.autograd.grad(m["critic"](v).sum(), v, create_graph=True)[0]
    return critic_loss(m, b) + 10 * ((slope.square().sum(1).sqrt() - 1) ** 2).mean()


def generator_loss(m: Networks, b: GameBatch) -> Tensor:
    loss: Tensor = -m["critic"](m["h"](b.draws["z"])).mean()
    return loss


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- one step of every device -----------------------------------------------------------------------------------------


def test_turns_with_gradient_penalty() -> None:
    text = f"""{PENALTY} by adam(lr = 0.01, beta1 = 0, beta2 = 0.9, steps = 2)
        {GENERATOR} by adam(lr = 0.02, beta1 = 0.5)
        solve alternating(iterations = 3, batch = 7)"""
    t, m, batches = setup(text, 9)
    c = torch.optim.Adam(m["critic"].parameters(), 0.01, betas=(0.0, 0.9))
    h = torch.optim.Adam(m["h"].parameters(), 0.02, betas=(0.5, 0.999))
    for n in range(3):
        t.iterate()
        for k in range(2):
            step(c, penalised_loss(m, batches[3 * n + k]))
        step(h, generator_loss(m, batches[3 * n + 2]))
    close(t.game.models, m)
    assert t.iteration == 3


def test_turns_with_weight_clipping() -> None:
    text = f"""{PLAIN} by rmsprop(lr = 0.05, steps = 3)
        {GENERATOR} by sgd(lr = 0.1)
        keep critic in clip(0.3)
        solve alternating(iterations = 2, batch = 7)"""
    t, m, batches = setup(text, 8)
    c, h = torch.optim.RMSprop(m["critic"].parameters(), 0.05), torch.optim.SGD(m["h"].parameters(), 0.1)
    for n in range(2):
        t.iterate()
        for k in range(3):
            step(c, critic_loss(m, batches[4 * n + k]))
            for p in m["critic"].parameters():
                p.data.clamp_(-0.3, 0.3)
        step(h, generator_loss(m, batches[4 * n + 3]))
    close(t.game.models, m)
    sizes = torch.cat([p.detach().abs().flatten() for p in t.game.models["critic"].parameters()])
    assert sizes.max() == 0.3 and (sizes < 0.3).any()  # some weights are at the bound, not all
    assert any(float(p.detach().abs().max()) > 0.3 for p in t.game.models["h"].parameters())  # the other player is free


class Normalised:
    """A linear layer divided by the estimate of its spectral norm, by hand: W / (u' W v)."""

    def __init__(self, layer: nn.Module) -> None:
        norm = layer.parametrizations.weight  # type: ignore[union-attr]
        self.weight = norm.original.detach().clone().requires_grad_()  # type: ignore[union-attr,operator]
        self.bias = layer.bias.detach().clone().requires_grad_()  # type: ignore[union-attr,operator]
        self.u, self.v = norm[0]._u.clone(), norm[0]._v.clone()  # type: ignore[index,union-attr]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ (self.weight / (self.u @ self.weight @ self.v)).T + self.bias

    def iterate(self) -> None:
        with torch.no_grad():
            self.u = normalize(self.weight @ self.v, dim=0)
            self.v = normalize(self.weight.T @ self.u, dim=0)


def test_turns_with_spectral_normalisation() -> None:
    text = f"""{PLAIN} by adam(lr = 0.01, beta1 = 0, beta2 = 0.9, steps = 2)
        {GENERATOR} by adam(lr = 0.01)
        keep critic in spectral
        solve alternating(iterations = 3, batch = 7)"""
    t, m, batches = setup(text, 9)
    layers = [Normalised(t.game.models["critic"][0]), Normalised(t.game.models["critic"][2])]  # type: ignore[index]

    def critic(x: Tensor) -> Tensor:
        return layers[1](torch.tanh(layers[0](x))).squeeze(1)

    own = [p for layer in layers for p in (layer.bias, layer.weight)]
    c, h = torch.optim.Adam(own, 0.01, betas=(0.0, 0.9)), torch.optim.Adam(m["h"].parameters(), 0.01)
    for n in range(3):
        t.iterate()
        for k in range(2):
            b = batches[3 * n + k]
            step(c, critic(m["h"](b.draws["z"])).mean() - critic(b.x).mean())
            for layer in layers:
                layer.iterate()
        step(h, -critic(m["h"](batches[3 * n + 2].draws["z"])).mean())
    got = t.game.models["critic"]
    assert torch.allclose(got[0].parametrizations.weight.original, layers[0].weight, rtol=1e-10, atol=1e-10)  # type: ignore[index,union-attr]
    assert torch.allclose(got[0].weight, layers[0].weight / (layers[0].u @ layers[0].weight @ layers[0].v), rtol=1e-10)  # type: ignore[index]
    close({"h": t.game.models["h"]}, m)


@pytest.mark.parametrize("name", ["wgan_clip", "wgan_gp", "wgan_sn"])
def test_one_turn_of_a_shipped_game(name: str) -> None:
    """Objectives, rates, bounds, critic steps and batch of the published methods (T32)."""
    models, game = networks(latent=8), load(name).game
    prepare(models, game.keeps)
    t, m = (Trainer(ModelGame(game, nets), load_source("ring"), 3, CPU, torch.float64) for nets in (models, copy.deepcopy(models)))
    batches, nets = [m.fresh() for _ in range(6)], dict(m.game.models)
    layers = [Normalised(nets["critic"][n]) for n in (0, 2)] if name == "wgan_sn" else []  # type: ignore[index]
    own: list[Tensor] = [p for layer in layers for p in (layer.bias, layer.weight)] or list(nets["critic"].parameters())
    if layers:
        nets["critic"] = lambda x: layers[1](torch.tanh(layers[0](x))).squeeze(1)  # type: ignore[assignment]
    make: Callable[[list[Tensor]], torch.optim.Optimizer] = {
        "wgan_clip": lambda p: torch.optim.RMSprop(p, 5e-5),
        "wgan_gp": lambda p: torch.optim.Adam(p, 1e-4, betas=(0.0, 0.9)),
        "wgan_sn": lambda p: torch.optim.Adam(p, 2e-4, betas=(0.0, 0.9)),
    }[name]
    c, h = make(own), make(list(nets["h"].parameters()))
    for b in batches[:5]:
        step(c, penalised_loss(nets, b) if name == "wgan_gp" else critic_loss(nets, b))
        for p in own if name == "wgan_clip" else ():
            p.data.clamp_(-0.01, 0.01)
        for layer in layers:
            layer.iterate()
    step(h, generator_loss(nets, batches[5]))
    t.iterate()
    wanted = own + list(nets["h"].parameters())
    assert len(batches[0].x) == 64
    for p, q in zip((p for n in ("critic", "h") for p in t.game.models[n].parameters()), wanted, strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-10)


def test_spectral_norm_ends_near_one() -> None:
    text = f"{PLAIN} by sgd(lr = 0.05) {GENERATOR} by sgd(lr = 0.05) keep critic in spectral solve alternating(iterations = 30, batch = 16)"
    t = trainer(text, networks())
    for _ in range(30):
        t.iterate()
    for n in (0, 2):
        weight = t.game.models["critic"][n].weight.detach()  # type: ignore[index]
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.02)


# --- all players together ---------------------------------------------------------------------------------------------


def flat(models: Networks) -> Tensor:
    return torch.cat([p.detach().flatten() for n in ("critic", "h") for p in models[n].parameters()])


def moved(models: Networks, z: Tensor) -> Networks:
    place = 0
    for name in ("critic", "h"):
        for p in models[name].parameters():
            p.data = z[place : place + p.numel()].reshape(p.shape).clone()
            place += p.numel()
    return models


def field(models: Networks, z: Tensor, b: GameBatch, loss: Callable[[Networks, GameBatch], Tensor]) -> Tensor:
    """Every player's gradient of what it minimises, by hand."""
    m = moved(models, z)
    parts = torch.autograd.grad(loss(m, b), list(m["critic"].parameters()), allow_unused=True)
    parts += torch.autograd.grad(generator_loss(m, b), list(m["h"].parameters()))
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(parts, [*m["critic"].parameters(), *m["h"].parameters()], strict=True)
        ]
    )


def test_extragradient_with_gradient_penalty() -> None:
    t, m, batches = setup(f"{PENALTY} {GENERATOR} solve extragradient(step = 0.05, iterations = 2, batch = 7)", 4)
    z, start = flat(m), copy.deepcopy(m)
    for n in range(2):
        t.iterate()
        ahead = z - 0.05 * field(m, z, batches[2 * n], penalised_loss)
        z = z - 0.05 * field(m, ahead, batches[2 * n + 1], penalised_loss)
    assert torch.allclose(t.game.point(), z, rtol=1e-10, atol=1e-10)
    assert changed(t.game.models, start)


def clipped(z: Tensor, bound: float) -> Tensor:
    """The critic's parameters (2 * 6 + 6 + 6 + 1 of them) clipped, the generator's as they are."""
    return torch.cat([z[:25].clamp(-bound, bound), z[25:]])


def test_extragradient_with_clipping_projects_both_points() -> None:
    t, m, batches = setup(f"{PLAIN} {GENERATOR} keep critic in clip(0.2) solve extragradient(step = 0.3, iterations = 2, batch = 7)", 4)
    z = flat(m)
    for n in range(2):
        t.iterate()
        ahead = clipped(z - 0.3 * field(m, z, batches[2 * n], critic_loss), 0.2)
        z = clipped(z - 0.3 * field(m, ahead, batches[2 * n + 1], critic_loss), 0.2)
    assert torch.allclose(t.game.point(), z, rtol=1e-10, atol=1e-10)


def test_seg_plus_has_a_fixed_first_and_a_decreasing_second_step() -> None:
    text = f"{PLAIN} {GENERATOR} solve seg_plus(step = 0.3, alpha = 0.5, every = 2, iterations = 3, batch = 7)"
    t, m, batches = setup(text, 6)
    z = flat(m)
    for k in range(3):
        t.iterate()
        ahead = z - 0.3 * field(m, z, batches[2 * k], critic_loss)
        z = z - 0.5 / (k / 2 + 1) * 0.3 * field(m, ahead, batches[2 * k + 1], critic_loss)
    assert torch.allclose(t.game.point(), z, rtol=1e-10, atol=1e-10)


def test_seg_plus_leaves_clipped_weights() -> None:
    text = f"{PLAIN} {GENERATOR} keep critic in clip(0.2) solve seg_plus(step = 0.3, alpha = 0.5, iterations = 2, batch = 7)"
    t, m, batches = setup(text, 4)
    z = flat(m)
    for k in range(2):
        t.iterate()
        free = z - 0.3 * field(m, z, batches[2 * k], critic_loss)
        ahead = clipped(free, 0.2)
        z = clipped(z - 0.5 / (k / 100 + 1) * (free - ahead + 0.3 * field(m, ahead, batches[2 * k + 1], critic_loss)), 0.2)
    assert torch.allclose(t.game.point(), z, rtol=1e-10, atol=1e-10)


def test_the_noise_of_an_oracle_has_its_size() -> None:
    quiet = trainer(f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1, batch = 7)", networks())
    noisy = trainer(f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1, batch = 7, noise = normal(0.5))", networks())
    quiet.iterate()
    noisy.iterate()
    difference = quiet.game.point() - noisy.game.point()
    assert float(difference.std()) == pytest.approx(0.5, rel=0.3)


# --- the rest -----------------------------------------------------------------------------------------------------------


def test_objectives_share_one_pass_per_point() -> None:
    """h(z) and critic(h(z)) are needed by two terms of the critic, and computed once."""
    calls = {"critic": 0, "h": 0}
    t = trainer(f"{PENALTY} {GENERATOR} solve gda(step = 0.1, iterations = 1, batch = 7)", networks())
    for name, model in t.game.models.items():
        model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    t.game.objective("critic", t.fresh())
    assert calls == {"critic": 3, "h": 1}


def test_every_evaluation_has_a_fresh_batch() -> None:
    t = trainer(f"{PLAIN} {GENERATOR} solve gda(step = 0.1, iterations = 1, batch = 5)", networks())
    first, second = t.fresh(), t.fresh()
    assert first.x.shape == (5, 2) and first.draws["z"].shape == (5, 3)
    assert not torch.equal(first.x, second.x) and not torch.equal(first.draws["z"], second.draws["z"])


def test_logs_are_recorded() -> None:
    t = trainer(f"{PLAIN} {GENERATOR} log size = norm(grad(x: critic(x)), 2) solve gda(step = 0.1, iterations = 1, batch = 5)", networks())
    b = t.fresh()
    x = b.x.clone().requires_grad_()
    slope = torch.autograd.grad(t.game.models["critic"](x).sum(), x)[0]
    assert t.game.logs(b)["size"] == pytest.approx(float(slope.norm(dim=1).mean()), rel=1e-12)


def test_a_model_named_f_is_a_model_like_any_other() -> None:
    game = parse_recipe(
        "game g model f : Input -> Real model h : Latent -> Input sample z ~ normal(1) over latent(3)"
        " player f maximize f(x) - f(h(z)) player h minimize -f(h(z)) solve gda(step = 0.1, iterations = 1, batch = 4)"
    ).game
    models = networks()
    t = Trainer(ModelGame(game, {"f": models["critic"], "h": models["h"]}), load_source("ring"), 0, CPU, torch.float64)
    b = t.fresh()
    wanted = models["critic"](b.x).mean() - models["critic"](models["h"](b.draws["z"])).mean()
    assert float(t.game.objective("f", b).detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)


def test_networks_of_the_table_fit_data_and_latent_space() -> None:
    game = load("wgan_gp").game
    for name, shape, unit in (("mlp_small", (2,), False), ("mlp", (1, 8, 8), True)):
        made = build_networks(game, shape, unit, name)
        x = made["h"](torch.randn(5, latent_size(game, "h")))
        assert x.shape == (5, *shape) and made["critic"](x).shape == (5,)
        assert not unit or (float(x.detach().min()) >= 0 and float(x.detach().max()) <= 1)
    assert set(NETWORKS) >= {"mlp", "mlp_small"}
    assert isinstance(NETWORKS["mlp_small"].build(Ports((3,), ())), nn.Module)


def test_ring_measures() -> None:
    means = ring_means()
    assert means.shape == (8, 2) and torch.allclose(means.norm(dim=1), torch.tensor(2.0))
    data = load_source("ring").draw(800, torch.Generator().manual_seed(0))
    found = ring(data, data)
    assert found["modes"] == 8 and found["near"] > 0.97 and found["w1"] < 1e-6
    half = means[:4].repeat(200, 1)
    assert ring(half, data)["modes"] == 4 and ring(half, data)["near"] == 1
    for distance, near in ((2.9, 1), (3.1, 0)):
        moved = ring(half + torch.tensor([distance * STD, 0.0]), data)
        assert moved["near"] == near and moved["modes"] == 4 * near
    assert ring(data + torch.tensor([1.0, 0.0]), data)["w1"] == pytest.approx(1, rel=1e-5)


def test_digits_lie_in_the_unit_box() -> None:
    source = load_source("digits")
    x = source.draw(50, torch.Generator().manual_seed(0))
    assert source.unit and x.shape == (50, 1, 8, 8) and float(x.min()) == 0 and float(x.max()) == 1


# --- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{PLAIN} {GENERATOR} keep judge in clip(1) solve gda(step = 1, iterations = 1, batch = 4)", "judge is none"),
        (f"player critic {GENERATOR} solve gda(step = 1, iterations = 1, batch = 4)", "critic has no objective"),
        (f"{PLAIN} by sgd(lr = 1) {GENERATOR} solve alternating(iterations = 1, batch = 4)", "h has no optimizer"),
        (f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1)", "draws batches"),
        (f"{PLAIN} {GENERATOR} solve ppm(step = 1, iterations = 1, batch = 4)", "does not play models"),
        (f"{PLAIN} player h minimize -critic(z) solve gda(step = 1, iterations = 1, batch = 4)", "critic takes one Input"),
    ],
)
def test_errors_in_the_text(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _ = parse_recipe(HEAD + text).game
    assert said in str(caught.value)


def _broken(models: Networks, name: str, layer: nn.Module) -> Networks:
    return {**models, name: layer.double()}


@pytest.mark.parametrize(
    ("name", "layer", "said"),
    [
        ("h", nn.Linear(3, 4), "the model h: gives shape [6, 4] where [6, 2]"),
        ("critic", nn.Linear(2, 3), "the model critic: gives shape [6, 3] where [6]"),
    ],
)
def test_wrong_shapes(name: str, layer: nn.Module, said: str) -> None:
    text = f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1, batch = 6)"
    t = trainer(text, _broken(networks(), name, layer))
    with pytest.raises(UserError) as caught:
        t.iterate()
    assert said in str(caught.value)


def test_a_critic_may_give_a_column() -> None:
    models = networks()
    column = {**models, "critic": nn.Sequential(*list(models["critic"])[:3])}  # type: ignore[call-overload]
    text = f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1, batch = 6)"
    one, two = trainer(text, models), trainer(text, column)
    assert torch.equal(one.game.objective("critic", one.fresh()), two.game.objective("critic", two.fresh()))


def test_numbers_that_are_not_finite_stop_the_play() -> None:
    models = networks()
    models["h"][0].weight.data.fill_(torch.nan)  # type: ignore[index,union-attr,operator]
    t = trainer(f"{PLAIN} {GENERATOR} solve gda(step = 1, iterations = 1, batch = 6)", models)
    with pytest.raises(UserError, match="not a finite number"):
        t.iterate()


def _game(text: str, models: Sequence[str] = ("critic", "h")) -> ModelGame:
    have = networks()
    return ModelGame(parse_recipe(HEAD + text).game, {name: have[name] for name in models})


def test_what_a_game_of_models_cannot_have() -> None:
    solve = "solve gda(step = 1, iterations = 1, batch = 4)"
    with pytest.raises(UserError, match="no network for h"):
        _game(f"{PLAIN} {GENERATOR} {solve}", ("critic",))
    with pytest.raises(UserError, match="u is a number"):
        _game(f"{PLAIN} {GENERATOR} player u = 1 minimize u * critic(x) {solve}")
    with pytest.raises(UserError, match="columns a"):
        _game(f"data (a) = (1), (2) player critic maximize a * critic(x) - critic(h(z)) {GENERATOR} {solve}")


def test_spectral_needs_a_layer() -> None:
    models: Networks = {**networks(), "critic": nn.Flatten(0)}
    with pytest.raises(UserError, match="no layer"):
        trainer(f"{PLAIN} {GENERATOR} keep critic in spectral solve gda(step = 1, iterations = 1, batch = 4)", models)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean ring"):
        load_source("rings")
    with pytest.raises(UserError, match="mlp_small"):
        build_networks(load("wgan_gp").game, (2,), False, "mlp_smal")
    assert isinstance(load_source("ring"), Source)
