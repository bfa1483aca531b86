"""What changes in training: cosines, decays, half-lives, penalties; and that it reaches the optimizers."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import DEVICE
from torch import nn

from fastgan import networks, presets
from fastgan.config import OptimizerConfig
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.distributed.engines import Engine
from fastgan.errors import UserError
from fastgan.training import schedules
from fastgan.training.optimizers import make_optimizer
from fastgan.training.trainer import Trainer

G_LR, D_LR, DECAY, RHO, EPS = 4e-3, 1e-3, 0.05, 0.9, 1e-7


def config_of(**data):
    config = presets.get("debug")
    optimizer = OptimizerConfig(optimizer="rmsprop", g_lr=G_LR, d_lr=D_LR, lr_decay=DECAY, rho=RHO, eps=EPS)
    return replace(config, optimizer=optimizer, data=replace(config.data, **data))


def test_legacy_decay():
    """Each engine's learning rate is lr / (1 + decay * steps before), and lr itself at the first step or without it."""
    config = config_of()
    for step in (0, 1, 2, 285, 2850):
        hparams = schedules.evaluate(config, 32 * step, 32, step)
        assert hparams.g_lr == pytest.approx(G_LR / (1 + DECAY * step), rel=1e-15)
        assert hparams.d_lr == pytest.approx(D_LR / (1 + DECAY * step), rel=1e-15)
    assert schedules.legacy_decay(G_LR, 0.0, 10**6) == G_LR


@pytest.mark.parametrize("keep_partial", [True, False])
def test_decay_counts_steps(keep_partial):
    """The decay follows the number of steps, of partial batches too, wherever training stands."""
    config = config_of(batch_size=300, keep_partial_batch=keep_partial)
    loader = build_loader(config, named.load("toy"), DEVICE)
    trainer = Trainer(config, networks.build(config, DEVICE), loader)
    for number in range(6):  # 1,000 images: the fourth step is a partial one, or runs on across the epoch's end
        trainer.train_step(loader.batch(trainer.images_seen))
        for engine, lr in ((trainer.G, G_LR), (trainer.D, D_LR)):
            assert engine.optimizer.param_groups[0]["lr"] == pytest.approx(lr / (1 + DECAY * number), rel=1e-15)


def test_rmsprop_is_kerass_recursion():
    """Twenty steps give the weights of Keras's formulas, written out in float64."""
    config = config_of()
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(3, 2).double()
    x, y = (torch.randn(5, n, dtype=torch.float64, generator=generator) for n in (3, 2))
    engine = Engine(net, net, make_optimizer(net, config))
    weights = [p.detach().clone() for p in net.parameters()]
    means = [torch.zeros_like(w) for w in weights]
    for step in range(20):
        engine.backward((net(x) - y).square().mean())
        engine.step(schedules.evaluate(config, 32 * step, 32, step).g_lr, beta2=0.5)
        error = 2 * (x @ weights[0].T + weights[1] - y) / y.numel()
        for number, gradient in enumerate((error.T @ x, error.sum(0))):
            means[number] = RHO * means[number] + (1 - RHO) * gradient**2
            lr = G_LR / (1 + DECAY * step)
            weights[number] = weights[number] - lr * gradient / (means[number].sqrt() + EPS)
    for got, wanted in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-12, atol=1e-14)


BURN_IN = 10_000
MOVING = {
    "g_lr": (2e-4, 5e-5),
    "d_lr": (1e-4, 4e-4),
    "beta2": (0.9, 0.99),
    "gamma": (20.0, 2.0),
    "augment_p": (0.0, 0.55),
}


def burning_in(**objective):
    """A config in which every knob moves, between the values of MOVING."""
    objective = {"penalty": "r1", "gamma": 20.0, "gamma_end": 2.0, "augment": "ada", "augment_p": 0.55} | objective
    optimizer = OptimizerConfig(
        g_lr=2e-4,
        g_lr_end=5e-5,
        d_lr=1e-4,
        d_lr_end=4e-4,
        betas=(0.0, 0.9),
        beta2_end=0.99,
        burn_in=BURN_IN,
        ema_half_lives=(1000, 50),
        ema_ramp=10.0,
    )
    config = presets.get("debug")
    return replace(config, objective=replace(config.objective, **objective), optimizer=optimizer)


def test_cosine_by_hand():
    """A knob starts at `start`, has gone sin^2(pi / 8) of the way at a quarter, is half-way at half, then rests."""
    assert schedules.cosine(3.0, 7.0, 0, 400) == 3
    assert schedules.cosine(3.0, 7.0, 100, 400) == pytest.approx(3 + 4 * math.sin(math.pi / 8) ** 2, rel=1e-14)
    assert schedules.cosine(3.0, 7.0, 200, 400) == pytest.approx(5, rel=1e-14)
    assert schedules.cosine(3.0, 7.0, 399, 400) == pytest.approx(7, rel=1e-4)
    assert [schedules.cosine(3.0, 7.0, seen, 400) for seen in (400, 401, 10**9)] == [7, 7, 7]
    assert schedules.cosine(3.0, 7.0, 0, 0) == 7  # no burn-in


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (2.0, -1.0), (20.0, 2.0)])
def test_cosine_goes_one_way(start, end):
    """From each image to the next a knob moves towards its end, never back, slowest at both ends."""
    values = [schedules.cosine(start, end, seen, 100) for seen in range(101)]
    steps = [(after - before) / (end - start) for before, after in itertools.pairwise(values)]
    assert min(steps) > 0
    assert steps.index(max(steps)) in (49, 50)
    assert max(steps[0], steps[-1]) < max(steps) / 50


@pytest.mark.parametrize("name", MOVING)
def test_knobs_under_burn_in(name):
    """Each knob goes from its first value to its last over the burn-in, along the cosine of images seen."""
    start, end = MOVING[name]
    config = burning_in()
    for seen in (0, 1, 2_500, 5_000, 9_999):
        wanted = end + (start - end) * math.cos(math.pi * seen / BURN_IN / 2) ** 2
        assert getattr(schedules.evaluate(config, seen, 32, seen // 32), name) == pytest.approx(
            wanted, rel=1e-12, abs=1e-15
        )
    for seen in (BURN_IN, 10 * BURN_IN):
        assert getattr(schedules.evaluate(config, seen, 32, seen // 32), name) == end


def test_knobs_without_ends_stay():
    """Without ends learning rates, beta2 and gamma are the config's from first to last, burn-in or not."""
    config = burning_in(gamma_end=None)
    config = replace(config, optimizer=replace(config.optimizer, g_lr_end=None, d_lr_end=None, beta2_end=None))
    for seen in (0, 5_000, BURN_IN):
        hparams = schedules.evaluate(config, seen, 32, seen // 32)
        assert (hparams.g_lr, hparams.d_lr, hparams.beta2, hparams.gamma) == (2e-4, 1e-4, 0.9, 20)


def test_half_lives_start_from_0():
    """Every half-life grows from 0 along the cosine: the average is G at first, and each has its own beta after."""
    config = burning_in()
    assert schedules.evaluate(config, 0, 32, 0).ema_betas == (0.0, 0.0)
    for seen in (1_000, 5_000, 10_000, 20_000):
        grown = math.sin(math.pi * min(seen, BURN_IN) / BURN_IN / 2) ** 2
        wanted = [0.5 ** (32 / (half_life * grown)) for half_life in (1000, 50)]
        assert schedules.evaluate(config, seen, 32, seen // 32).ema_betas == pytest.approx(wanted, rel=1e-12)


def test_ema_beta():
    """After as many images as the half-life the old weights count a half; the ramp bounds the half-life early on."""
    assert schedules.ema_beta(10**6, 500, 500, 0.05) == 0.5
    assert schedules.ema_beta(10**6, 250, 500, 0.05) ** 2 == pytest.approx(0.5)
    assert schedules.ema_beta(1_000, 50, 500, 0.05) == 0.5  # 1,000 images ramp it to 50
    assert schedules.ema_beta(0, 50, 500, 0.05) == 0
    assert schedules.ema_beta(10**6, 50, 0, 0.05) == 0


def test_no_half_life_is_one_beta_of_0():
    """Without half-lives the one average there is has a beta of 0."""
    assert schedules.evaluate(presets.get("mnist28"), 10**6, 256, 4000).ema_betas == (0.0,)


def test_gamma_rule():
    """The rule gives 0.0002 * 256^2 / 32 = 0.4096 for 256x256 at batch 32, and is used where gamma isn't given."""
    assert schedules.gamma_rule((256, 256), 32) == pytest.approx(0.4096)
    assert schedules.gamma_rule((28, 56), 64) == pytest.approx(0.0049)
    config = burning_in(gamma=None)
    assert schedules.first_gamma(config) == pytest.approx(0.0002 * 28 * 28 / 32)
    assert schedules.evaluate(config, 0, 32, 0).gamma == pytest.approx(0.0049)
    assert schedules.first_gamma(burning_in(gamma=0.25)) == 0.25
    assert schedules.first_gamma(burning_in(penalty="wgan-gp", gamma=None)) == 10  # Gulrajani 2017


def test_no_penalty_no_gamma():
    """Without a penalty gamma is 0, whatever the config has."""
    assert schedules.evaluate(burning_in(penalty="none"), 0, 32, 0).gamma == 0


@pytest.mark.parametrize("every", [1, 2, 16])
def test_lazy_penalty_has_the_mean_of_every_step(every):
    """One step in `penalty_every`, the first among them, has a gamma, so much larger that the mean is the config's."""
    config = burning_in(gamma=0.75, gamma_end=None, penalty_every=every)
    gammas = [schedules.evaluate(config, 32 * step, 32, step).gamma for step in range(5 * every)]
    assert [step for step, gamma in enumerate(gammas) if gamma] == list(range(0, 5 * every, every))
    for start in range(4 * every):
        assert sum(gammas[start : start + every]) / every == pytest.approx(0.75)


def test_knobs_reach_the_optimizers(monkeypatch):
    """At every step both optimizers have that step's learning rate and beta2; Adam's first beta stays the config's."""
    config = burning_in(penalty="none", augment="none", augment_p=0.0)
    config = replace(config, optimizer=replace(config.optimizer, burn_in=128))
    loader = build_loader(config, named.load("toy"), DEVICE)
    trainer = Trainer(config, networks.build(config, DEVICE), loader)
    seen = []
    for engine in (trainer.G, trainer.D):
        original = engine.optimizer.step

        def step(engine=engine, original=original):
            seen.append((engine.optimizer.param_groups[0]["lr"], engine.optimizer.param_groups[0]["betas"]))
            original()

        monkeypatch.setattr(engine.optimizer, "step", step)
    for number in range(6):
        trainer.train_step(loader.batch(trainer.images_seen))
        hparams = schedules.evaluate(config, 32 * number, 32, number)
        assert seen[-2:] == [(hparams.d_lr, (0.0, hparams.beta2)), (hparams.g_lr, (0.0, hparams.beta2))]
    assert len(set(seen)) == 2 * 5  # the last two steps are alike


def test_adam_with_a_moving_beta2_is_its_recursion():
    """Ten steps of a moving beta2 give the weights of Adam's formulas in float64, beta2 of the step throughout."""
    config = burning_in()
    net = nn.Linear(3, 1, bias=False).double()
    engine = Engine(net, net, make_optimizer(net, config))
    generator = torch.Generator().manual_seed(0)
    weight, mean = net.weight.detach().clone(), torch.zeros(1, 3, dtype=torch.float64)
    for step in range(10):
        slope = torch.randn(1, 3, dtype=torch.float64, generator=generator)
        beta2 = schedules.cosine(0.5, 0.99, step, 8)
        engine.backward((net.weight * slope).sum())
        engine.step(0.01, beta2)
        mean = beta2 * mean + (1 - beta2) * slope**2
        corrected = (mean / (1 - beta2 ** (step + 1))).sqrt()
        weight = weight - 0.01 * slope / (corrected + config.optimizer.eps)  # beta1 is 0
        torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("field", "value"), [("rho", 1.0), ("rho", -0.1), ("rho", float("nan")), ("lr_decay", -1e-8), ("lr_decay", 1e999)]
)
def test_settings_are_checked(field, value):
    """A rho or decay that can't be is refused by its name and value."""
    with pytest.raises(UserError, match=f"{field} is {value!r}: give a number"):
        OptimizerConfig(**{field: value})
