"""The loader for sets that fit into memory: decoded once, kept as bytes on the training device."""

import math

import torch

from fastgan.data.batch import Batch, BatchSampler

CHUNK = 1024  # images decoded at a time
WORD = 8


class InMemoryLoader:
    """Batches by position: nothing is kept between two calls, so any position may be asked for at any time.

    An image is a row of whole 8-byte words, which are gathered twice as fast as bytes. Its number, its label and its
    pixels are looked up on the device, so that the device has nothing to wait for.
    """

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler, self.num_images = sampler, sampler.num_images
        dataset = sampler.dataset
        self._shape = (*dataset.image_size, dataset.channels)
        self._num_bytes = math.prod(self._shape)
        words = -(-self._num_bytes // WORD)
        self._rows = torch.empty((len(dataset), words), dtype=torch.int64, device=sampler.device)
        self._labels = None if dataset.labels is None else dataset.labels.to(sampler.device)
        bytes_ = self._rows.view(torch.uint8)
        for indices in torch.arange(len(dataset)).split(CHUNK):
            images = dataset.pixels(indices).permute(0, 2, 3, 1).flatten(1)
            bytes_[indices[0] : indices[-1] + 1, : self._num_bytes] = images.to(sampler.device)

    def batch(self, images_seen: int) -> Batch:
        """Return this process's share of the batch that starts at `images_seen`."""
        indices = self._sampler.dataset_indices(images_seen)
        rows = self._rows.index_select(0, indices)  # several times as fast as indexing
        labels = None if self._labels is None else self._labels.index_select(0, indices)
        pixels = rows.view(torch.uint8)[:, : self._num_bytes].unflatten(1, self._shape)
        return self._sampler.batch(images_seen, pixels.permute(0, 3, 1, 2), labels)
