"""A grid of 25 Gaussians, learned through the Trainer: the relativistic loss with R1 and R2 finds every one of them.

The plain non-saturating loss, with all else equal, drops most: "mode collapse" (Metz 2016, 1611.02163, and after).
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, OptimizerConfig
from fastgan.data.batch import Batch
from fastgan.training.trainer import Trainer
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

pytestmark = pytest.mark.slow

CENTRES = torch.tensor(list(itertools.product((-0.8, -0.4, 0.0, 0.4, 0.8), repeat=2)))
STD = 0.04  # a tenth of the grid's spacing, and five of the 256 levels of a pixel
BATCH, STEPS, Z_DIM, WIDTH = 256, 1200, 2, 64
SAMPLES = 10_000
LEAST = 0.005  # of the samples have to lie near a mode for it to count: an eighth of its fair share
LR, LR_END = 5e-3, 5e-4


@dataclass
class Gaussians:
    """A loader of points as images of one pixel and two channels, [B, 2, 1, 1]; no two of an endless set are equal."""

    seed: int
    num_images: int = 10**9

    def batch(self, images_seen: int) -> Batch:
        index = torch.arange(images_seen, images_seen + BATCH)
        keys = rng.keys(self.seed, RngStream.TOY, index)
        which = (len(CENTRES) * rng.uniform(keys, 1)[:, 0]).long()
        points = CENTRES[which] + STD * rng.normal(rng.splitmix64(keys), 2)
        pixels = ((points + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Batch(pixels[:, :, None, None], None, index, BATCH)


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are an order of magnitude slower where several threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp(inputs, outputs):
    """Three hidden layers of leaky ReLUs, He's first weights, biases that put the kinks at different places."""
    widths = (inputs, WIDTH, WIDTH, WIDTH, outputs)
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, 0.2)
        nn.init.normal_(layer.bias, std=0.5)
    hidden = itertools.chain.from_iterable((layer, nn.LeakyReLU(0.2)) for layer in layers[:-1])
    return nn.Sequential(*hidden, layers[-1])


class G(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(Z_DIM, 2)

    def forward(self, z, labels=None, keys=None):
        return 0.3 * self.net(z)[:, :, None, None]


class D(nn.Module):
    """Sees a point's coordinates and 32 waves of them, so that it can tell places a tenth of a unit apart."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2 + 2 * 32, 1)
        self.register_buffer("waves", 4 * torch.randn(2, 32))

    def forward(self, images, labels=None, keys=None):
        points = images.flatten(1)
        phases = points @ self.waves
        return self.net(torch.cat([3 * points, phases.sin(), phases.cos()], 1))[:, 0]


def train(seed, objective):
    """How many modes G's average has after training, and the share of its samples within 3 deviations of any mode."""
    config = Config(
        seed=seed,
        data=DataConfig(image_size=(1, 1), channels=2, batch_size=BATCH, keep_partial_batch=False),
        networks=NetworkConfig(z_dim=Z_DIM),
        objective=objective,
        optimizer=OptimizerConfig(
            g_lr=LR,
            d_lr=LR,
            g_lr_end=LR_END,
            d_lr_end=LR_END,
            betas=(0.0, 0.99),
            burn_in=STEPS * BATCH,
            ema_half_lives=(50 * BATCH,),
        ),
    )
    torch.manual_seed(seed)
    trainer = Trainer(config, (G(), D()), Gaussians(seed))
    for _ in range(STEPS):
        trainer.train_step(trainer.loader.batch(trainer.images_seen))
    return judge(sample(trainer.ema.net, seed))


def sample(net, seed):
    z = rng.normal(rng.keys(seed, RngStream.SAMPLES, torch.arange(SAMPLES)), Z_DIM)
    with torch.no_grad():
        return net(z).flatten(1)


def judge(points):
    distance, nearest = torch.cdist(points, CENTRES).min(1)
    good = distance < 3 * STD
    counts = nearest[good].bincount(minlength=len(CENTRES))
    return int((counts >= LEAST * len(points)).sum()), float(good.double().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_relativistic_with_r1_and_r2_has_all_modes(seed):
    """G has all 25 modes, and most of its samples lie in one."""
    modes, quality = train(seed, ObjectiveConfig(loss="relativistic", penalty="r1+r2", gamma=0.01, gamma_end=0.002))
    assert modes == 25
    assert quality > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_nonsaturating_alone_drops_modes(seed):
    """With the same networks, rates, batches and steps the loss of 2014 without a penalty loses a third or more."""
    modes, _ = train(seed, ObjectiveConfig(loss="nonsaturating"))
    assert modes < 17


def test_the_judge():
    """True points have all modes and 98.9% quality (3 deviations in 2-D), a few modes count as few, noise as noise."""
    true = torch.cat([Gaussians(0).batch(BATCH * number).reals.flatten(1) for number in range(40)])
    modes, quality = judge(true)
    assert modes == 25
    assert quality == pytest.approx(1 - 2.718281828**-4.5, abs=0.005)
    few = true[torch.cdist(true, CENTRES).argmin(1) < 7]
    assert judge(few)[0] == 7
    noise = 2 * rng.uniform(rng.keys(0, RngStream.TOY, torch.arange(SAMPLES)), 2).float() - 1
    assert judge(noise)[1] < 0.32
