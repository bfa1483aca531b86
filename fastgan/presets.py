"""The recipes, one function each: it takes nothing and returns a whole config."""

from collections.abc import Callable
from dataclasses import replace

from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, OptimizerConfig, RunConfig
from fastgan.errors import UserError


def mnist28() -> Config:
    """The MNIST digit GAN of 2023's Keras courses: a deep convolutional GAN (Radford 2015, arXiv 1511.06434) for 28x28.

    Fifty epochs, Adam at 1e-4 for both players, Keras's initial weights, slopes and BatchNorm constants. Of its
    program three details differ: Adam's epsilon is added after the bias correction (torch's form); BatchNorm's running
    variance is the unbiased one (torch's form); and D moves before G answers, where Keras takes both gradients first.
    """
    return Config(
        preset="mnist28",
        data=DataConfig(data="mnist", image_size=(28, 28), channels=1, batch_size=256, keep_partial_batch=True),
        networks=NetworkConfig(network="dcgan28", z_dim=100),
        objective=ObjectiveConfig(loss="nonsaturating", share_fakes=True),
        optimizer=OptimizerConfig(g_lr=1e-4, d_lr=1e-4, betas=(0.9, 0.999), eps=1e-7),
        run=RunConfig(epochs=50, eval_every=600_000),
    )


def mnist28_fast() -> Config:
    """MNIST digits by the modern recipe, sized for two CPU cores."""
    return Config(
        preset="mnist28-fast",
        data=DataConfig(data="mnist", image_size=(28, 28), channels=1, batch_size=64, keep_partial_batch=False),
        networks=NetworkConfig(
            network="r3gan", z_dim=64, stages=(64, 32), blocks=1, expansion=1, group_width=0, stem=2
        ),
        objective=ObjectiveConfig(loss="relativistic", penalty="r1+r2", gamma=1.0),
        optimizer=OptimizerConfig(g_lr=1e-3, d_lr=1e-3, betas=(0.0, 0.99), ema_half_lives=(20_000,)),
        run=RunConfig(epochs=10, eval_every=60_000),
    )


def faces128() -> Config:
    """The face GAN of 2023's Keras notebooks, 128x128 RGB: dense, convolutions, BatchNorm, LeakyReLU; RMSprop twice.

    Ten epochs of 9,090 photographs of faces with masks, 285 steps each, the last of two images; `--data` names yours.
    Known of it: the kinds of layers, the latents' normal distribution, binary cross-entropy on a sigmoid, RMSprop with
    the legacy decay and a learning rate a player, the batch, the epochs, losses of 0.70 (G) and 1.16 (D). Not known,
    and chosen here: the widths (four convolutions a player, 32 to 256 channels, G the mirror image of D), kernels,
    slope and momentum as Keras courses had them; the decay as its notebooks had it; the learning rates, found by
    trial: at 5e-4 (G) and 1e-4 (D) faces appear in the first epoch and the losses move towards those known. Early on
    at 1e-4 each, and over an epoch at 2e-4 and 5e-5, D wins and G stays noise; with D's at 1e-5 G wins, with noise too.
    """
    return Config(
        preset="faces128",
        data=DataConfig(data="faces", image_size=(128, 128), channels=3, batch_size=32, keep_partial_batch=True),
        networks=NetworkConfig(network="dcgan128", z_dim=100),
        objective=ObjectiveConfig(loss="nonsaturating", share_fakes=True),
        optimizer=OptimizerConfig(optimizer="rmsprop", g_lr=5e-4, d_lr=1e-4, lr_decay=1e-8, rho=0.9, eps=1e-7),
        run=RunConfig(epochs=10, console="epochs", log_every=960, eval_every=0),
    )


def debug() -> Config:
    """Seconds on a CPU, no download: the networks of `mnist28` at a sixteenth of their width on drawn shapes."""
    preset = mnist28()
    return replace(
        preset,
        preset="debug",
        data=replace(preset.data, data="toy", batch_size=32),
        networks=replace(preset.networks, width=1 / 16),
        optimizer=replace(preset.optimizer, g_lr=2e-3, d_lr=2e-3, betas=(0.5, 0.99), ema_half_lives=(500,)),
        run=RunConfig(epochs=2, log_every=200, grid_every=500, checkpoint_every=500, eval_every=0),
    )


DEFAULT = "mnist28"
PRESETS: dict[str, Callable[[], Config]] = {
    recipe.__name__.replace("_", "-"): recipe for recipe in (mnist28, mnist28_fast, faces128, debug)
}


def get(name: str) -> Config:
    """The config of the named preset. Raises UserError that lists them all."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose from {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
