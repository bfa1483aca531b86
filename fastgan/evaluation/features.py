"""A set's features, extracted by all processes together, and what metrics need of them, in bounded memory.

Whole batches are dealt to the processes, so that the same images meet in a batch however many processes there are.
Of all images only sums are kept (float64); of the first 10,000 the features themselves, for metrics of neighbours.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan.data.sampler import local_shard
from fastgan.distributed.collectives import all_gather_rows, all_reduce_min, all_reduce_sum, rank_and_world_size
from fastgan.evaluation import modes
from fastgan.evaluation.extractors import Extractor

NUM_NEIGHBOR_IMAGES = 10_000  # of each side, for kernel distance, precision, recall, density and coverage
BATCH_SIZE = 100
NUM_SPLITS = 10  # of the Inception score
SHUFFLE_SEED = 2020  # torch-fidelity's


class EvaluationFailed(RuntimeError):
    """A process couldn't do its part, so that no process of several has the figures."""


@contextmanager
def all_or_none() -> Iterator[None]:
    """Agree on whether each process could do its part, the block, before they exchange what they have.

    Raises the block's error where there is one process, else, on all, EvaluationFailed.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as reason:  # whatever it is, the others would wait for this process
        error = reason
    if all_reduce_min(int(error is None)):
        return
    if error is not None and rank_and_world_size()[1] == 1:
        raise error
    raise EvaluationFailed("another process failed" if error is None else str(error)) from error


class Gaussian(NamedTuple):
    """The mean [F] of features and a root [F, R] of their covariance, root @ root.T, float64."""

    mean: Tensor
    root: Tensor


class FeatureStatistics(NamedTuple):
    """What metrics need of the features of a set; the same on every process."""

    num_images: int
    gaussian: Gaussian
    features: Tensor  # [up to 10,000, F], float32: of the first images
    splits: (
        Tensor  # [S, K + 1], float64: of each split the sums of p and, last, of sum(p log p), of class probabilities p
    )
    legible: Tensor  # [K + 1], int64: see `modes.legible_counts`


class Collector:
    """Takes one process's share of a set of `num_images`, batch by batch; nothing waits for the device."""

    def __init__(self, extractor: Extractor, num_images: int, device: torch.device) -> None:
        self.extractor, self.num_images = extractor, num_images
        width, columns = extractor.num_features, extractor.num_classes + 1
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._outer = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._near = [torch.empty(0, width, device=device)]
        self._split_of = split_of(num_images).to(device)
        self._splits = torch.zeros(min(NUM_SPLITS, num_images), columns, dtype=torch.float64, device=device)
        self._legible = torch.zeros(columns, dtype=torch.int64, device=device)

    def add(self, numbers: range, images: Tensor) -> None:
        """Take in the images [B, C, H, W] of these numbers in the set."""
        features, logits = self.extractor(images)
        if numbers.start < NUM_NEIGHBOR_IMAGES:
            self._near.append(features[: NUM_NEIGHBOR_IMAGES - numbers.start])
        values = features.double()
        self._sum += values.sum(0)
        self._outer.addmm_(values.T, values)
        if self.extractor.num_classes:
            log_p = logits.double().log_softmax(1)
            p = log_p.exp()
            rows = torch.cat([p, (p * log_p).sum(1, keepdim=True)], dim=1)
            self._splits.index_add_(0, self._split_of[numbers.start : numbers.stop], rows)
            self._legible += modes.legible_counts(logits)

    def finish(self) -> FeatureStatistics:
        """Return what all processes took in together; all must ask."""
        total, outer = all_reduce_sum(self._sum.cpu()), all_reduce_sum(self._outer.cpu())
        near = all_gather_rows(torch.cat(self._near).cpu())
        is_few = self.num_images <= min(len(near), self.extractor.num_features)
        return FeatureStatistics(
            self.num_images,
            gaussian_of_few(near) if is_few else gaussian_of(self.num_images, total, outer),
            near,
            all_reduce_sum(self._splits.cpu()),
            all_reduce_sum(self._legible.cpu()),
        )


def collect(
    extractor: Extractor,
    num_images: int,
    images: Callable[[range], Tensor],
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> FeatureStatistics:
    """Return what metrics need of the set whose images of given numbers `images` returns: uint8, on the device.

    All processes call it, each for its share; all have the same in the end.
    """
    collector = Collector(extractor, num_images, device)
    with all_or_none():
        for numbers in batches(num_images, batch_size):
            collector.add(numbers, images(numbers))
    return collector.finish()


def batches(num_images: int, batch_size: int = BATCH_SIZE) -> list[range]:
    """Return the numbers of this process's batches, in order: together they are all numbers, each once, by rank."""
    starts = range(0, num_images, batch_size)
    mine = local_shard(range(len(starts)), *rank_and_world_size())
    return [range(starts[batch], min(starts[batch] + batch_size, num_images)) for batch in mine]


def ahead(numbers: list[range], read: Callable[[range], Tensor]) -> Iterator[tuple[range, Tensor]]:
    """Yield each range and what `read` returns of it; the next is read while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, part) for part in numbers[:1]]
        for batch, part in enumerate(numbers):
            images = waiting.pop().result()
            waiting += [pool.submit(read, following) for following in numbers[batch + 1 : batch + 2]]
            yield part, images


def split_of(num_images: int) -> Tensor:
    """Return the split [N] of the Inception score that each image belongs to.

    These are torch-fidelity's parts of a shuffled order.
    """
    splits = min(NUM_SPLITS, num_images)
    shuffled = torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(num_images))
    found = torch.empty(num_images, dtype=torch.int64)
    for number in range(splits):
        found[shuffled[number * num_images // splits : (number + 1) * num_images // splits]] = number
    return found


def gaussian_of(num_images: int, total: Tensor, outer: Tensor) -> Gaussian:
    """Return the Gaussian of features with the sum [F] and the sum of outer products [F, F], both float64."""
    mean = total / num_images
    return gaussian_with(mean, (outer - num_images * mean.outer(mean)) / max(1, num_images - 1))


def gaussian_with(mean: Tensor, covariance: Tensor) -> Gaussian:
    """Return the Gaussian of mean [F] and covariance [F, F], both float64.

    Directions in which the covariance is nothing but rounding are left out of the root.
    """
    variances, directions = torch.linalg.eigh(covariance)
    smallest = max(float(variances.max()), 0.0) * len(mean) * torch.finfo(torch.float64).eps
    real = variances > smallest
    return Gaussian(mean, directions[:, real] * variances[real].sqrt())


def gaussian_of_few(features: Tensor) -> Gaussian:
    """Return the Gaussian of features [N, F], no more images than features.

    Its root is their deviations from the mean.
    """
    values = features.double()
    mean = values.mean(0)
    return Gaussian(mean, (values - mean).T / max(1, len(values) - 1) ** 0.5)
