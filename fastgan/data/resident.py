"""The loader for sets that fit into memory: decoded once, kept as bytes on the training device."""

import math

import torch

from fastgan.data.batch import Batch, Dealer

CHUNK = 1024  # images decoded at a time


class ResidentLoader:
    """Batches by position: nothing is kept between two calls, so any position may be asked for at any time."""

    def __init__(self, dealer: Dealer) -> None:
        self._dealer, self.num_images = dealer, dealer.num_images
        source = dealer.source
        self._shape = (*source.image_size, source.channels)
        self._rows = torch.empty((len(source), math.prod(self._shape)), dtype=torch.uint8, device=dealer.device)
        for items in torch.arange(len(source)).split(CHUNK):
            images = source.pixels(items).permute(0, 2, 3, 1).flatten(1)
            self._rows[items[0] : items[-1] + 1] = images.to(dealer.device)

    def batch(self, images_seen: int) -> Batch:
        """This process's share of the batch that starts at `images_seen`."""
        items = self._dealer.items(images_seen)
        rows = self._rows.index_select(0, items.to(self._dealer.device))  # whole rows: five times as fast as indexing
        return self._dealer.batch(images_seen, items, rows.view(-1, *self._shape).permute(0, 3, 1, 2))
