"""What every loader yields, and what the trainer knows of a loader."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch, on the training device."""

    images: Tensor  # [B, C, H, W] in [-1, 1], float32
    labels: Tensor | None  # [B], int64
    index: Tensor  # [B], int64: each image's number since the start of training, the key of all its randomness
    global_size: int  # images of all processes


class Loader(Protocol):
    """Batches as a function of the images seen."""

    num_images: int

    def batch(self, images_seen: int) -> Batch: ...
