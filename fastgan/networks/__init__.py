"""The architectures by name. Every G maps (z, labels, keys) to images, every D (images, labels, keys) to logits [B]."""

from collections.abc import Callable

import torch
from torch import nn

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.networks import dcgan, faces, r3gan


def _dcgan28(config: Config) -> tuple[nn.Module, nn.Module]:
    size, channels, networks = config.data.image_size, config.data.channels, config.networks
    if size[0] % 4 or size[1] % 4:
        raise UserError(f"image_size is {size}: the network dcgan28 makes sides that are multiples of 4")
    G = dcgan.Generator28(networks.z_dim, channels, networks.width, size)
    return G, dcgan.Discriminator28(channels, networks.width, size)


def _dcgan128(config: Config) -> tuple[nn.Module, nn.Module]:
    size, channels, networks = config.data.image_size, config.data.channels, config.networks
    if size != (128, 128):
        raise UserError(f"image_size is {size}: the network dcgan128 makes (128, 128) only")
    return faces.Generator128(networks.z_dim, channels, networks.width), faces.Discriminator128(
        channels, networks.width
    )


def _r3gan(config: Config) -> tuple[nn.Module, nn.Module]:
    networks, (height, width) = config.networks, config.data.image_size
    if height % networks.stem or width % networks.stem:
        raise UserError(
            f"stem is {networks.stem}: images of {config.data.image_size} don't divide by it; give --stem 1"
        )
    base, count = r3gan.stages_for((height // networks.stem, width // networks.stem))
    if len(networks.stages) != count:
        raise UserError(
            f"stages is {networks.stages}: images of {config.data.image_size} with a stem of {networks.stem} need "
            f"{count}, from {base} up: give --stages and {count} numbers of channels"
        )
    stages = [max(1, round(channels * networks.width)) for channels in networks.stages]
    shape = r3gan.Shape(
        stages, networks.blocks, networks.group_width, networks.expansion, base, networks.num_classes, networks.stem
    )
    channels = config.data.channels
    return r3gan.R3Generator(networks.z_dim, channels, shape), r3gan.R3Discriminator(channels, shape)


BUILDERS: dict[str, Callable[[Config], tuple[nn.Module, nn.Module]]] = {
    "dcgan28": _dcgan28,
    "dcgan128": _dcgan128,
    "r3gan": _r3gan,
}


def build(config: Config, device: torch.device | str = "cpu") -> tuple[nn.Module, nn.Module]:
    """G and D of the config, channels last on `device`, with first weights that the seed alone decides.

    The caller's random state is left as it was. Raises UserError for an unknown network or a size it can't make.
    """
    name = config.networks.network
    if name not in BUILDERS:
        raise UserError(f"unknown network {name!r}: choose from {', '.join(sorted(BUILDERS))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        G, D = BUILDERS[name](config)
    return _place(G, device), _place(D, device)


def _place(net: nn.Module, device: torch.device | str) -> nn.Module:
    return net.to(device).to(memory_format=torch.channels_last)


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
