"""The recipes, one function each: it takes nothing and returns a whole config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastgan.config import (
    FORMER_FIELDS,
    FORMER_LOADERS,
    Config,
    DataConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
)
from fastgan.errors import UserError
from fastgan.utils.arguments import parse
from fastgan.utils.fields import flat

FORMER_FLAGS = {  # of 0.1
    f"--{no}{old}".replace("_", "-"): f"--{no}{new}".replace("_", "-")
    for old, new in FORMER_FIELDS.items()
    for no in ("", "no-")
}


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
        objective=ObjectiveConfig(loss="nonsaturating", reuse_fakes=True),
        optimizer=OptimizerConfig(g_lr=1e-4, d_lr=1e-4, betas=(0.9, 0.999), eps=1e-7),
        run=RunConfig(epochs=50, eval_every=600_000),
    )


def mnist28_fast() -> Config:
    """MNIST digits many times faster than `mnist28`, by what was learned since, sized for two CPU cores.

    Small DCGANs, D without normalization, both told each image's class (`--num-classes 0`: not told, as the courses'
    were); non-saturating loss and R1 (Mescheder 2018) every fourth step (lazily: Karras 2020, 1912.04958), batches of
    64, Adam at 2e-3 without momentum, an average of G, one pass of G a step.
    """
    return Config(
        preset="mnist28-fast",
        data=DataConfig(data="mnist", image_size=(28, 28), channels=1, batch_size=64, keep_partial_batch=False),
        networks=NetworkConfig(network="dcgan", z_dim=64, stages=(96, 48), d_width=2 / 3, num_classes=10),
        objective=ObjectiveConfig(loss="nonsaturating", penalty="r1", gamma=0.1, penalty_every=4, reuse_fakes=True),
        optimizer=OptimizerConfig(g_lr=2e-3, d_lr=2e-3, betas=(0.0, 0.99), ema_half_lives=(10_000,)),
        run=RunConfig(epochs=20, eval_every=120_000, grid_side=8),
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
        objective=ObjectiveConfig(loss="nonsaturating", reuse_fakes=True),
        optimizer=OptimizerConfig(optimizer="rmsprop", g_lr=5e-4, d_lr=1e-4, lr_decay=1e-8, rho=0.9, eps=1e-7),
        run=RunConfig(epochs=10, console="epochs", log_every=960, eval_every=0),
    )


def _r3gan() -> Config:
    """What the recipes of R3GAN share (Huang et al. 2024, arXiv 2501.05441, tables 3 to 9 and appendix D).

    Relativistic loss, exact R1 and R2 on every image, Adam; along a cosine over the burn-in go gamma, both learning
    rates, beta2, the average's half-life (from 0) and the augmentation (from 0), then they stay. A half-life's other
    bound, `ema_ramp`, is set to 1, where it never binds. Images are mirrored, as in each command of the authors'
    README (StackedMNIST isn't among them). Convolutions compute in bfloat16, but in the lowest stages. As in their
    program, G's phase compares with reals of its own, reals and fakes are augmented independently, and images seen are
    D's reals alone.

    What differs from their program, as far as it is known: it trains until it is stopped by hand, these end where the
    paper's runs did. Here the order of the reals, the latents and the augmentations are functions of the seed and the
    image's number, and an epoch shows each image once to D and once to G's phase.
    """
    return Config(
        data=DataConfig(image_size=(32, 32), channels=3, keep_partial_batch=False, mirror=True),
        networks=NetworkConfig(
            network="r3gan", z_dim=64, stages=(768,) * 4, group_width=16, precision="bfloat16", float32_stages=1
        ),
        objective=ObjectiveConfig(
            loss="relativistic", penalty="r1+r2", augment="r3gan", augment_pairs=False, reuse_reals=False
        ),
        optimizer=OptimizerConfig(
            g_lr=2e-4,
            d_lr=2e-4,
            g_lr_end=5e-5,
            d_lr_end=5e-5,
            betas=(0.0, 0.9),
            beta2_end=0.99,
            burn_in=20_000_000,
            ema_half_lives=(500_000,),
            ema_ramp=1.0,
        ),
        run=RunConfig(
            log_every=50_000, grid_every=1_000_000, grid_side=10, checkpoint_every=1_000_000, eval_every=10_000_000
        ),
    )


def stacked_mnist() -> Config:
    """R3GAN's StackedMNIST: three digits an image, a thousand modes. 7 hours on 8 L40: 1000 modes, KL 0.029.

    No augmentation, no mirror, a constant learning rate. Its precision isn't published; it is that of `cifar10`, whose
    network it is.
    """
    base = _r3gan()
    return replace(
        base,
        preset="stacked-mnist",
        data=replace(base.data, data="stacked-mnist", batch_size=512, mirror=False),
        objective=replace(base.objective, gamma=1.0, gamma_end=0.1, augment="none"),
        optimizer=replace(base.optimizer, g_lr_end=None, d_lr_end=None, burn_in=2_000_000),
        run=replace(base.run, images=10_000_000, eval_every=1_000_000, eval_images=25_600),
    )


def stacked_mnist_fast() -> Config:
    """StackedMNIST sized for two CPU cores: the networks and loss of `mnist28-fast`, told no classes.

    The learning rates fall to a tenth along a cosine, so that all modes settle at equal frequencies.
    """
    return Config(
        preset="stacked-mnist-fast",
        data=DataConfig(data="stacked-mnist", image_size=(32, 32), channels=3, batch_size=64, keep_partial_batch=False),
        networks=NetworkConfig(network="dcgan", z_dim=64, stages=(128, 64, 32)),
        objective=ObjectiveConfig(loss="nonsaturating", penalty="r1", gamma=0.1, penalty_every=4, reuse_fakes=True),
        optimizer=OptimizerConfig(
            g_lr=2e-3,
            d_lr=2e-3,
            g_lr_end=2e-4,
            d_lr_end=2e-4,
            betas=(0.0, 0.99),
            burn_in=3_000_000,
            ema_half_lives=(20_000,),
        ),
        run=RunConfig(images=3_000_000, eval_every=200_000, eval_images=25_600, grid_every=100_000, grid_side=8),
    )


def cifar10() -> Config:
    """R3GAN's CIFAR-10, ten classes, 32x32. 4 days on 8 L40: FID 1.96, recall 0.57. `--data` names your images."""
    base = _r3gan()
    return replace(
        base,
        preset="cifar10",
        data=replace(base.data, data="cifar10", batch_size=512),
        networks=replace(base.networks, num_classes=10),
        objective=replace(base.objective, gamma=0.05, gamma_end=0.005, augment_p=0.55),
        optimizer=replace(base.optimizer, ema_half_lives=(5_000_000,)),
        run=replace(base.run, images=250_000_000),
    )


def ffhq64() -> Config:
    """R3GAN's faces, 64x64. On 8 GPUs: FID 1.95, recall 0.53. `--data` names your images."""
    base = _r3gan()
    return replace(
        base,
        preset="ffhq64",
        data=replace(base.data, data="ffhq64", image_size=(64, 64), batch_size=256),
        networks=replace(base.networks, stages=(768, 768, 768, 768, 384)),
        objective=replace(base.objective, gamma=2.0, gamma_end=0.2, augment_p=0.3),
        run=replace(base.run, images=100_000_000),
    )


def ffhq256() -> Config:
    """R3GAN's faces, 256x256. 3 weeks on 8 A6000: FID 2.75, recall 0.49. `--data` names your images."""
    base = _r3gan()
    return replace(
        base,
        preset="ffhq256",
        data=replace(base.data, data="ffhq256", image_size=(256, 256), batch_size=256),
        networks=replace(base.networks, stages=(768, 768, 768, 768, 384, 192, 96), float32_stages=3),
        objective=replace(base.objective, gamma=150.0, gamma_end=15.0, augment_p=0.3),
        run=replace(base.run, images=200_000_000, grid_side=6),
    )


def fewshot() -> Config:
    """Sets of under about 2,000 images, at 64x64: D sees every image changed, the more the more it memorises.

    Loss, penalties, blocks, learning rates, betas and burn-in (a fifth of the run) are R3GAN's (arXiv 2501.05441), the
    networks a twentieth as large as those of `ffhq64`: for one GPU or a patient CPU. Differentiable changes of reals
    and fakes make few images do (DiffAugment: Zhao 2020, arXiv 2006.10738); they are ADA's, whose probability
    follows a target of 0.6 (Karras 2020, arXiv 2006.06676). Chosen here, not measured: gamma stays at the start value
    of `ffhq64`, and the average's half-life is a larger share of the run, 5%. `--data` names your images, `--transfer`
    a run to start from.
    """
    base = _r3gan()
    return replace(
        base,
        preset="fewshot",
        data=replace(base.data, data="fewshot", image_size=(64, 64), batch_size=32),
        networks=replace(base.networks, stages=(256, 256, 192, 96, 48), blocks=1, precision="float32"),
        objective=replace(base.objective, gamma=2.0, augment="ada", augment_target=0.6),
        optimizer=replace(base.optimizer, burn_in=200_000, ema_half_lives=(50_000,)),
        run=RunConfig(images=1_000_000, grid_every=20_000, grid_side=8, checkpoint_every=20_000, eval_every=100_000),
    )


def _imagenet() -> Config:
    """What both sizes of ImageNet share: twice the width, a thousand classes, large batches, long schedules."""
    base = _r3gan()
    return replace(
        base,
        data=replace(base.data, batch_size=4096),
        networks=replace(base.networks, stages=(1536,) * 4, group_width=32, num_classes=1000),
        optimizer=replace(base.optimizer, burn_in=200_000_000, ema_half_lives=(50_000_000,)),
        run=replace(base.run, images=1_000_000_000, checkpoint_every=5_000_000, eval_every=50_000_000),
    )


def imagenet32() -> Config:
    """R3GAN's ImageNet, 32x32, a thousand classes. On 32 GPUs: FID 1.27, recall 0.63. `--data` names your images."""
    base = _imagenet()
    return replace(
        base,
        preset="imagenet32",
        data=replace(base.data, data="imagenet32"),
        objective=replace(base.objective, gamma=0.5, gamma_end=0.05, augment_p=0.5),
    )


def imagenet64() -> Config:
    """R3GAN's ImageNet, 64x64, a thousand classes. On 64 GPUs: FID 2.09, recall 0.59. `--data` names your images."""
    base = _imagenet()
    return replace(
        base,
        preset="imagenet64",
        data=replace(base.data, data="imagenet64", image_size=(64, 64)),
        networks=replace(base.networks, stages=(1536,) * 5),
        objective=replace(base.objective, gamma=1.0, gamma_end=0.1, augment_p=0.4),
    )


def faces128_fast() -> Config:
    """The faces of `faces128` faster, by what was learned since, sized for two CPU cores; `--data` names yours.

    As `mnist28-fast`, without classes, mirrored and smooth images, smaller batches, and a stronger R1: 128x128 pixels
    have steeper slopes. Trials of 30,000 images, a seed each: all of it took `fd_efficientnet` from 117 to 44.
    """
    return Config(
        preset="faces128-fast",
        data=DataConfig(
            data="faces", image_size=(128, 128), channels=3, batch_size=16, keep_partial_batch=False, mirror=True
        ),
        networks=NetworkConfig(network="dcgan", z_dim=64, stages=(256, 128, 64, 32, 16), smooth_image=True),
        objective=ObjectiveConfig(loss="nonsaturating", penalty="r1", gamma=10.0, penalty_every=4, reuse_fakes=True),
        optimizer=OptimizerConfig(g_lr=1e-3, d_lr=1e-3, betas=(0.0, 0.99), ema_half_lives=(5_000,)),
        run=RunConfig(epochs=20, console="epochs", log_every=960, eval_every=0),
    )


def debug() -> Config:
    """Seconds on a CPU, no download: the networks of `mnist28` at a sixteenth of their width on synthetic shapes."""
    preset = mnist28()
    return replace(
        preset,
        preset="debug",
        data=replace(preset.data, data="toy", batch_size=32),
        networks=replace(preset.networks, width=1 / 16),
        optimizer=replace(preset.optimizer, g_lr=2e-3, d_lr=2e-3, betas=(0.5, 0.99), ema_half_lives=(500,)),
        run=RunConfig(epochs=2, log_every=200, grid_every=500, checkpoint_every=500, eval_every=0),
    )


DEFAULT = "mnist28-fast"
PRESETS: dict[str, Callable[[], Config]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        mnist28,
        mnist28_fast,
        faces128,
        faces128_fast,
        stacked_mnist,
        stacked_mnist_fast,
        cifar10,
        ffhq64,
        ffhq256,
        fewshot,
        imagenet32,
        imagenet64,
        debug,
    )
}


def get(name: str) -> Config:
    """Return the config of the named preset. Raises UserError that lists them all."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose from {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()


def configure(preset: Config | str, **changes: Any) -> Config:
    """Return a preset, or another config, with changes by the names of the command line's options.

    `configure("mnist28-fast", data="photos", epochs=3, image_size=(64, 64))`. Raises UserError for an unknown preset,
    unknown names and wrong values.
    """
    config = get(preset) if isinstance(preset, str) else preset
    return _parse(flags_of(changes), "configure", config)


def parse_config(args: Sequence[str], prog: str = "fastgan train") -> Config:
    """Return the preset that `--preset` names, changed by the other flags. Raises UserError."""
    name = DEFAULT
    for number, arg in enumerate(args):
        if arg == "--preset" and number + 1 < len(args):
            name = args[number + 1]
        elif arg.startswith("--preset="):
            name = arg.removeprefix("--preset=")
    return _parse(_upgrade_flags(args), prog, get(name))


def _parse(flags: Sequence[str], prog: str, default: Config) -> Config:
    config = parse(Config, flags, prog=prog, default=default)
    if config.data.labels in ("auto", "none"):
        return config
    labels = Path(config.data.labels).expanduser().resolve()  # the run may go on from another folder
    return replace(config, data=replace(config.data, labels=str(labels)))


def as_flags(config: Config) -> list[str]:
    """Return the arguments of which `parse_config` makes the config: its preset, and what differs from that."""
    base = flat(get(config.preset))
    changes = {name: value for name, value in flat(config).items() if value != base[name]}
    return ["--preset", config.preset, *flags_of(changes)]


def flags_of(changes: Mapping[str, Any]) -> list[str]:
    """Return settings by their names as words on a command line."""
    return [word for name, value in changes.items() for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, tuple | list) else [value])]


def _upgrade_flags(args: Sequence[str]) -> list[str]:
    """Return the arguments with today's names of flags and loaders: commands for earlier versions still work."""
    new: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        flag = FORMER_FLAGS.get(flag, flag)
        if flag == "--loader":
            value = FORMER_LOADERS.get(value, value)
        elif new and new[-1] == "--loader":
            flag = FORMER_LOADERS.get(flag, flag)
        new.append(flag + equals + value)
    return new
