from dataclasses import replace

import pytest
import torch
from torch import nn

from fastgan import networks, presets, schedules
from fastgan.config import OptimizerConfig
from fastgan.data import build_loader, sources
from fastgan.errors import UserError
from fastgan.trainer import Player, Trainer, _optimizer

G_LR, D_LR, DECAY, RHO, EPS = 4e-3, 1e-3, 0.05, 0.9, 1e-7


def config_of(**data):
    config = presets.get("debug")
    optimizer = OptimizerConfig(optimizer="rmsprop", g_lr=G_LR, d_lr=D_LR, lr_decay=DECAY, rho=RHO, eps=EPS)
    return replace(config, optimizer=optimizer, data=replace(config.data, **data))


def test_legacy_decay():
    """Each player's learning rate is lr / (1 + decay * steps before), and lr itself at the first step or without it."""
    config = config_of()
    for step in (0, 1, 2, 285, 2850):
        knobs = schedules.at(config, 32 * step, 32, step)
        assert knobs.g_lr == pytest.approx(G_LR / (1 + DECAY * step), rel=1e-15)
        assert knobs.d_lr == pytest.approx(D_LR / (1 + DECAY * step), rel=1e-15)
    assert schedules.legacy_decay(G_LR, 0.0, 10**6) == G_LR


@pytest.mark.parametrize("keep_partial", [True, False])
def test_decay_counts_steps(keep_partial):
    """The decay follows the number of steps, of partial batches too, wherever training stands."""
    config = config_of(batch_size=300, keep_partial_batch=keep_partial)
    loader = build_loader(config, sources.load("toy"), torch.device("cpu"))
    trainer = Trainer(config, networks.build(config), loader)
    for number in range(6):  # 1,000 images: the fourth step is a partial one, or runs on across the epoch's end
        trainer.train_step(loader.batch(trainer.images_seen))
        for player, lr in ((trainer.G, G_LR), (trainer.D, D_LR)):
            assert player.optimizer.param_groups[0]["lr"] == pytest.approx(lr / (1 + DECAY * number), rel=1e-15)


def test_rmsprop_is_kerass_recursion():
    """Twenty steps give the weights of Keras's formulas, written out in float64."""
    config = config_of()
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(3, 2).double()
    x, y = (torch.randn(5, n, dtype=torch.float64, generator=generator) for n in (3, 2))
    player = Player(net, net, _optimizer(net, config))
    weights = [p.detach().clone() for p in net.parameters()]
    means = [torch.zeros_like(w) for w in weights]
    for step in range(20):
        player.descend((net(x) - y).square().mean(), schedules.at(config, 32 * step, 32, step).g_lr)
        error = 2 * (x @ weights[0].T + weights[1] - y) / y.numel()
        for number, gradient in enumerate((error.T @ x, error.sum(0))):
            means[number] = RHO * means[number] + (1 - RHO) * gradient**2
            lr = G_LR / (1 + DECAY * step)
            weights[number] = weights[number] - lr * gradient / (means[number].sqrt() + EPS)
    for got, wanted in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("field", "value"), [("rho", 1.0), ("rho", -0.1), ("rho", float("nan")), ("lr_decay", -1e-8), ("lr_decay", 1e999)]
)
def test_settings_are_checked(field, value):
    """A rho or decay that can't be is refused by its name and value."""
    with pytest.raises(UserError, match=f"{field} is {value!r}: give a number"):
        OptimizerConfig(**{field: value})
