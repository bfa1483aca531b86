"""The loader for sets that fit into memory: decoded once, kept as bytes on the training device."""

import torch

from fastgan.data.batch import Batch
from fastgan.data.images import ImageSet, to_unit_range
from fastgan.data.order import Order, batch_positions, share


class ResidentLoader:
    """Batches by position: nothing is kept between two calls, so any position may be asked for at any time."""

    def __init__(
        self,
        image_set: ImageSet,
        *,
        seed: int,
        batch_size: int,
        keep_partial: bool,
        device: torch.device,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_images, self.batch_size, self.keep_partial = len(image_set), batch_size, keep_partial
        self.device, self.rank, self.num_processes = device, rank, num_processes
        self.order = Order(len(image_set), seed)
        self.images = image_set.images.to(device, memory_format=torch.channels_last)
        self.labels = None if image_set.labels is None else image_set.labels.to(device)

    def batch(self, images_seen: int) -> Batch:
        """This process's share of the batch that starts at `images_seen`."""
        whole = batch_positions(images_seen, self.num_images, self.batch_size, self.keep_partial)
        mine = share(whole, self.rank, self.num_processes)
        positions = torch.arange(mine.start, mine.stop)
        items = self.order.items(positions).to(self.device, non_blocking=True)
        return Batch(
            images=to_unit_range(self.images[items]),
            labels=None if self.labels is None else self.labels[items],
            index=positions.to(self.device, non_blocking=True),
            global_size=len(whole),
        )
