"""The images that a run's generator makes of the seeds 0, 1, 2 …, as a data set."""

from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.evaluation.fidelity import images_of, labels_for, labels_of_data
from fastgan.evaluation.sampling import CheckpointSelector, open_run, open_training_set, print_on_main, weights_hash
from fastgan.runs.run_folder import RunFolder


class GeneratedDataset:
    """Image i is that of seed i, in 8 bits; G is told `conditions` [N] or [N, K], where it is told any."""

    labels = None
    classes = None

    def __init__(
        self, name: str, G: nn.Module, config: Config, num_images: int, conditions: Tensor | None, device: torch.device
    ) -> None:
        self.name, self.config, self._num_images = name, config, num_images
        self.channels, self.image_size = config.data.channels, config.data.image_size
        told = b"" if conditions is None else conditions.numpy().tobytes()
        self._hash = sha256(f"{weights_hash(G, config)}, {num_images} images".encode() + told).hexdigest()[:16]
        self._G, self._conditions, self._device = G.to(device), conditions, device

    def __len__(self) -> int:
        return self._num_images

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W]."""
        conditions = None if self._conditions is None else self._conditions[indices]
        return images_of(self._G, indices.tolist(), self.config.networks.z_dim, self._device, conditions).cpu()

    def content_hash(self) -> str:
        """Return a hash of what makes the images."""
        return self._hash


def open_generated(
    path: Path, num_images: int, which: CheckpointSelector, data: str | None, device: torch.device
) -> GeneratedDataset:
    """Return the images of the run in the folder, which `evaluate` measures: with its data set's labels, now at `data`.

    Raises UserError where something of the run is missing.
    """
    folder, config, _, G = open_run(path, which)
    torch.backends.cudnn.allow_tf32 = config.run.tf32  # as in training
    return GeneratedDataset(str(path), G, config, num_images, _conditions(config, folder, data, num_images), device)


def _conditions(config: Config, folder: RunFolder, data: str | None, num_images: int) -> Tensor | None:
    """What G is told of the seeds: classes and vectors as the run's data set has them.

    Where it can't be read, classes take turns.
    """
    if not config.networks.is_conditional:
        return None
    seeds = torch.arange(num_images)
    try:
        labels = open_training_set(config, folder, data).labels
    except UserError as error:
        if config.networks.condition == "vector":
            raise UserError(f"the vectors of {folder.path} can't be drawn from its data set: {error}") from None
        print_on_main(f"the classes of {folder.path} take turns, as its data set can't be read: {error}")
        labels = None
    return labels_for(seeds, config.networks.num_classes) if labels is None else labels_of_data(seeds, labels)
