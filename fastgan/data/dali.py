"""The loader for large sets: NVIDIA DALI decodes ahead, on the GPU where there is one, else on the CPU's cores."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.data.batch import BatchSampler
from fastgan.data.prefetch import PrefetchLoader
from fastgan.data.prepared import PreparedDataset

PREFETCH = 2


def is_installed() -> bool:
    """Return whether DALI is here; it isn't imported."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


class DaliLoader(PrefetchLoader):
    """Batches from a prepared set, decoded ahead by DALI; a jump starts the pipeline again."""

    def __init__(self, sampler: BatchSampler, dataset: PreparedDataset, num_threads: int) -> None:
        super().__init__(sampler)
        self._dataset, self._num_threads = dataset, num_threads

    def _read(self, images_seen: int) -> Iterator[Sequence[Tensor]]:
        pipeline, device = self._pipeline(images_seen), self._sampler.device
        for indices in self._items_from(images_seen):
            if not len(indices):
                yield self._sampler.labelled(indices, self._dataset.pixels(indices))
                continue
            # Bound to the stream that copies them: there DALI's decoding is waited for, and in that stream's order
            # their memory goes back to DALI. The host waits for nothing.
            (images,) = pipeline.run(torch.cuda.current_stream(device) if device.type == "cuda" else None)
            pixels: Tensor = torch.from_dlpack(images.as_tensor())
            yield self._sampler.labelled(indices, pixels.permute(0, 3, 1, 2))

    def _items_from(self, images_seen: int) -> Iterator[Tensor]:
        """Yield the indices of every batch from `images_seen` on."""
        while True:
            yield self._sampler.dataset_indices(images_seen)
            images_seen = self._sampler.global_positions(images_seen).stop

    def _encoded_from(self, images_seen: int) -> Iterator[list[np.ndarray]]:
        """Yield the encoded images of every batch from `images_seen` on that has any."""
        for indices in self._items_from(images_seen):
            if len(indices):
                yield [self._dataset.encoded(item) for item in indices.tolist()]

    def _pipeline(self, images_seen: int) -> Any:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._sampler.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self._sampler.max_images,
            num_threads=self._num_threads,
            device_id=(self._sampler.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # outputs are the caller's: later runs don't write over them
        )
        with pipeline:
            encoded = fn.external_source(source=self._encoded_from(images_seen), dtype=types.UINT8)
            kind = {1: types.GRAY, 3: types.RGB}.get(self._dataset.channels, types.ANY_DATA)
            images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=kind)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline
