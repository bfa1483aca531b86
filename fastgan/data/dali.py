"""The loader for large sets: NVIDIA DALI decodes ahead, on the GPU where there is one, else on the CPU's cores."""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.data.batch import Batch, Dealer
from fastgan.data.prepared import PreparedSet

PREFETCH = 2


class DaliLoader:
    """Batches in their order from a prepared set; a jump starts the pipeline anew at the place asked for."""

    def __init__(self, dealer: Dealer, source: PreparedSet, num_threads: int) -> None:
        self._dealer, self._source, self.num_images = dealer, source, dealer.num_images
        self._num_threads = num_threads
        self._next = self._place = -1  # where the next batch begins that is asked for; that the pipeline wants
        self._under_way: deque[Tensor] = deque()  # the items of the batches that the pipeline has
        self._pipeline: Any = None

    def batch(self, images_seen: int) -> Batch:
        """This process's share of the batch that starts at `images_seen`."""
        if images_seen != self._next:
            self._start(images_seen)
        if len(self._dealer.mine(images_seen)):
            pixels = self._decoded()  # first: it asks for more items
            items = self._under_way.popleft()
        else:
            items = self._dealer.items(images_seen)
            pixels = self._source.pixels(items)
        self._next = self._dealer.whole(images_seen).stop
        return self._dealer.batch(images_seen, pixels, self._dealer.labels(items))

    def _encoded(self) -> list[np.ndarray]:
        """The encoded images of the next batch that the pipeline hasn't had yet."""
        while not len(items := self._dealer.items(self._place)):
            self._place = self._dealer.whole(self._place).stop
        self._place = self._dealer.whole(self._place).stop
        self._under_way.append(items)
        return [self._source.encoded(item) for item in items.tolist()]

    def _decoded(self) -> Tensor:
        """Return the pixels of the next batch, uint8 [items, C, H, W], channels last in memory."""
        (images,) = self._pipeline.run()
        tensor: Tensor = torch.from_dlpack(images.as_tensor())
        if self._dealer.device.type == "cuda":
            tensor = tensor.clone()  # on torch's stream
        return tensor.permute(0, 3, 1, 2)

    def _start(self, images_seen: int) -> None:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._dealer.device.type == "cuda"
        self._place = images_seen
        self._under_way.clear()
        self._pipeline = Pipeline(
            batch_size=self._dealer.most_items,
            num_threads=self._num_threads,
            device_id=(self._dealer.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # outputs are the caller's: later runs don't write over them
        )
        with self._pipeline:
            encoded = fn.external_source(source=self._encoded, dtype=types.UINT8)
            kind = {1: types.GRAY, 3: types.RGB}.get(self._source.channels, types.ANY_DATA)
            images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=kind)
            self._pipeline.set_outputs(images)
        self._pipeline.build()
