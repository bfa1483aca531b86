"""The architectures by name. Every G maps (z, labels, keys) to images, every D (images, labels, keys) to logits [B]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan.config import Config, NetworkConfig
from fastgan.errors import UserError
from fastgan.networks import dcgan, keras28, keras128, r3gan
from fastgan.networks.activation_checkpointing import checkpoint_activations
from fastgan.networks.layers import add_spectral_norm
from fastgan.utils.memory import require_free

REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _dcgan28(config: Config) -> tuple[nn.Module, nn.Module]:
    size, channels, networks = config.data.image_size, config.data.channels, config.networks
    if size[0] % 4 or size[1] % 4:
        raise UserError(f"image_size is {size}: the network dcgan28 makes sides that are multiples of 4")
    G = keras28.Generator28(networks.z_dim, channels, networks.width, size)
    return G, keras28.Discriminator28(channels, networks.width, size)


def _dcgan128(config: Config) -> tuple[nn.Module, nn.Module]:
    size, channels, networks = config.data.image_size, config.data.channels, config.networks
    if size != (128, 128):
        raise UserError(f"image_size is {size}: the network dcgan128 makes (128, 128) only")
    return keras128.Generator128(networks.z_dim, channels, networks.width), keras128.Discriminator128(
        channels, networks.width
    )


def _r3gan(config: Config) -> tuple[nn.Module, nn.Module]:
    networks, (height, width) = config.networks, config.data.image_size
    if height % networks.stem or width % networks.stem:
        raise UserError(
            f"stem is {networks.stem}: images of {config.data.image_size} don't divide by it; give --stem 1"
        )
    base, count = r3gan.stages_for((height // networks.stem, width // networks.stem))
    stages = _widths(config, base, count, networks.width)
    shape = r3gan.Shape(
        stages,
        networks.blocks,
        networks.group_width,
        networks.expansion,
        base,
        networks.condition_width,
        networks.stem,
        REDUCED.get(networks.precision),
        networks.float32_stages,
    )
    channels = config.data.channels
    return r3gan.R3Generator(networks.z_dim, channels, shape), r3gan.R3Discriminator(channels, shape)


def _dcgan(config: Config) -> tuple[nn.Module, nn.Module]:
    networks, channels = config.networks, config.data.channels
    base, count = r3gan.stages_for(config.data.image_size)
    g_stages = _widths(config, base, count - 1, networks.width)
    d_stages = _widths(config, base, count - 1, networks.width * networks.d_width)
    G = dcgan.Generator(networks.z_dim, channels, g_stages, base, networks.condition_width, networks.smooth_image)
    return G, dcgan.Discriminator(channels, d_stages, base, networks.condition_width)


def _widths(config: Config, base: tuple[int, int], count: int, factor: float) -> list[int]:
    """The channels of each of `count` stages. Raises UserError where the config names more or fewer."""
    stages = config.networks.stages
    if len(stages) != count:
        raise UserError(
            f"stages is {stages}: images of {config.data.image_size} need {count} in {config.networks.network}, from "
            f"{base} up: give --stages and {count} numbers of channels"
        )
    return [max(1, round(channels * factor)) for channels in stages]


BUILDERS: dict[str, Callable[[Config], tuple[nn.Module, nn.Module]]] = {
    "dcgan": _dcgan,
    "dcgan28": _dcgan28,
    "dcgan128": _dcgan128,
    "r3gan": _r3gan,
}


def build(config: Config, device: torch.device | str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Return G and D of the config, channels last on `device`, with first weights that the seed alone decides.

    The caller's random state is left as it was. Raises UserError for an unknown network, or for a size, a precision,
    classes or checkpointing that it can't make.
    """
    if torch.device(device).type != "meta":
        require_free(4 * sum(sizes(config)), device, in_words(config), "give smaller numbers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        G, D = _make(config)
        if config.networks.spectral_norm:
            add_spectral_norm(D)
    if config.run.activation_checkpointing and not checkpoint_activations(G) + checkpoint_activations(D):
        raise UserError(
            f"activation_checkpointing is True: {config.networks.network} has no layers for it; leave it out"
        )
    return _place(G, device), _place(D, device)


def sizes(config: Config) -> tuple[int, int]:
    """Return the numbers of parameters of G and D, which needn't be built for it. Raises UserError as `build` does."""
    G, D = outline(config)
    return num_parameters(G), num_parameters(D)


def outline(config: Config) -> tuple[nn.Module, nn.Module]:
    """Return G and D without content, which take no memory. Raises UserError as `build` does."""
    try:
        with torch.device("meta"):
            return _make(config)
    except (RuntimeError, OverflowError, TypeError):  # sizes that 64 bits don't count
        raise UserError(f"{in_words(config)}: no machine holds such networks; give smaller numbers") from None


def in_words(config: Config) -> str:
    """Return what the networks' sizes come from."""
    networks, data = config.networks, config.data
    stages = f"stages {' '.join(map(str, networks.stages))}, " if networks.stages else ""
    size = f"image_size {data.image_size[0]} {data.image_size[1]}, channels {data.channels}"
    return f"z_dim {networks.z_dim}, width {networks.width:g}, {stages}{size}"


def _make(config: Config) -> tuple[nn.Module, nn.Module]:
    name = config.networks.network
    if name not in BUILDERS:
        raise UserError(f"unknown network {name!r}: choose from {', '.join(sorted(BUILDERS))}")
    if name != "r3gan":
        _refuse_what_only_r3gan_does(config.networks)
    return BUILDERS[name](config)


def _refuse_what_only_r3gan_does(networks: NetworkConfig) -> None:
    name, precision, num_classes = networks.network, networks.precision, networks.num_classes
    if precision != "float32":
        raise UserError(f"precision is {precision!r}: {name} has float32 only; give it, or --network r3gan")
    if networks.condition == "vector" and name != "dcgan":
        raise UserError(f"condition is 'vector': {name} knows none; leave it out, or give --network r3gan or dcgan")
    if num_classes and name != "dcgan":
        raise UserError(f"num_classes is {num_classes}: {name} knows no classes; give 0, or --network r3gan or dcgan")


def _place(net: nn.Module, device: torch.device | str) -> nn.Module:
    return net.to(device).to(memory_format=torch.channels_last)


def example_labels(networks: NetworkConfig, numbers: Tensor) -> Tensor | None:
    """Return labels of as many images as there are numbers [B], of the kind that the networks are told.

    None where they are told nothing.
    """
    if networks.condition == "vector":
        return torch.zeros(len(numbers), networks.vector_dim, device=numbers.device)
    return numbers % networks.num_classes if networks.num_classes else None


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
