"""From a data set's name to batches on the device."""

import torch

from fastgan.config import Config
from fastgan.data.batch import Batch, Loader
from fastgan.data.images import ImageSet
from fastgan.data.resident import ResidentLoader
from fastgan.errors import UserError

__all__ = ["Batch", "Loader", "build_loader", "check"]


def check(config: Config, image_set: ImageSet) -> None:
    """The set is one that the config can train on. Raises UserError that says what disagrees."""
    _, channels, height, width = image_set.images.shape
    if (channels, height, width) != (config.data.channels, *config.data.image_size):
        raise UserError(
            f"the data set {image_set.name} has {channels}-channel images of {height}x{width}: "
            f"give --channels {channels} --image-size {height} {width} and a network that makes them"
        )
    if config.data.batch_size > len(image_set):
        raise UserError(
            f"batch_size is {config.data.batch_size}: the data set {image_set.name} has only {len(image_set)} images"
        )


def build_loader(
    config: Config, image_set: ImageSet, device: torch.device, rank: int = 0, num_processes: int = 1
) -> Loader:
    """The loader that the config asks for. Raises UserError as `check` does."""
    check(config, image_set)
    return ResidentLoader(
        image_set,
        seed=config.seed,
        batch_size=config.data.batch_size,
        keep_partial=config.data.keep_partial_batch,
        device=device,
        rank=rank,
        num_processes=num_processes,
    )
