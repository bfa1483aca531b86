"""What the `digits` classifier makes of generated digits: the modes of StackedMNIST, and how legible they are.

The classifier is sure of much that is no digit, of plain noise for one, so these figures tell what is missing, never
that all is well: of real stacked images it finds the mode of 99 in 100, with KL at the floor.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.data.stacked import NUM_MODES, PADDING
from fastgan.evaluation.extractors import Extractor

CONFIDENT = 0.9


class ModeScore(NamedTuple):
    """How generated images spread over the modes of a data set whose modes are all equally frequent."""

    modes: int  # with at least one image
    kl: float  # KL(generated || uniform), in nats
    floor: float  # about what `num_images` from a perfect generator have: (modes of the data - 1) / (2 num_images)
    num_images: int


class Legibility(NamedTuple):
    """What the classifier makes of gray images of digits."""

    confident: float  # share of the images on which it is at least 0.9 sure
    class_shares: list[float]  # of the ten digits among all images


def score(counts: Tensor) -> ModeScore:
    """Return the score of a histogram [K] of images over all K modes. Metz 2017, 1611.02163, sec. 3.3.

    The floor is the bias of entropy taken from a sample: Miller 1955. Needs one image at least.
    """
    num_images = int(counts.sum())
    assert num_images > 0
    found = counts[counts > 0].double() / num_images
    kl = float((found * (found * len(counts)).log()).sum())
    return ModeScore(len(found), max(kl, 0.0), (len(counts) - 1) / (2 * num_images), num_images)


def stacked_modes(images: Tensor, digits: Extractor) -> Tensor:
    """Return the modes 100 a + 10 b + c, int64 [B], that the classifier sees in uint8 images [B, 3, 32, 32]."""
    inside = images[:, :, PADDING:-PADDING, PADDING:-PADDING]
    _, logits = digits(inside.reshape(-1, 1, *inside.shape[2:]))  # each channel an image of its own
    a, b, c = logits.argmax(1).view(-1, 3).unbind(1)
    return 100 * a + 10 * b + c


def mode_counts(batches: Iterable[Tensor], digits: Extractor) -> Tensor:
    """Return how many of the images have each mode, int64 [1000], on the CPU; of no batch: none."""
    counts = [stacked_modes(batch, digits).bincount(minlength=NUM_MODES) for batch in batches]
    return torch.stack(counts).sum(0).cpu() if counts else torch.zeros(NUM_MODES, dtype=torch.int64)


def legible_counts(logits: Tensor) -> Tensor:
    """Return how many of logits [N, K] have each class as their largest and, last, how many are confident: [K + 1]."""
    confidence, classes = logits.softmax(1).max(1)
    counts = torch.zeros(logits.shape[1] + 1, dtype=torch.int64, device=logits.device)
    counts.index_add_(0, classes, torch.ones_like(classes))
    counts[-1] = (confidence >= CONFIDENT).sum()
    return counts


def legibility_from(counts: Tensor) -> Legibility:
    """Return the figures of what `legible_counts` has counted, of any batches and processes together."""
    num_images = int(counts[:-1].sum())
    shares = counts[:-1].double() / num_images
    return Legibility(float(counts[-1]) / num_images, shares.tolist())
