"""The pictures beside a run's grids: real images against samples, classes in rows, walks between latents."""

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data.images import ImageDataset, to_bytes
from fastgan.data.sampler import Sampler
from fastgan.evaluation.fidelity import conditions_for, latents
from fastgan.evaluation.interpolation import strip
from fastgan.monitor.tensorboard import RunLogger
from fastgan.utils.pictures import named_rows, side_by_side
from fastgan.utils.pngs import grid

MAX_CLASSES = 10
WALKS, WALK_STEPS = 4, 8


class Gallery:
    """Draws on the board what G makes of the same seeds each time; real images are read at the first use."""

    def __init__(self, board: RunLogger, config: Config, dataset: ImageDataset, device: torch.device) -> None:
        self.board, self.config, self.dataset, self.device = board, config, dataset, device
        self._reals: np.ndarray | None = None

    @torch.inference_mode()
    def draw(self, images_seen: int, G: nn.Module, images: Tensor) -> None:
        """Put G's pictures into TensorBoard; `images` [N, C, H, W] in [-1, 1] are its samples in the grid."""
        networks = self.config.networks
        parts = [("real", self._real_grid(len(images))), ("generated", grid(to_bytes(images)))]
        self.board.picture(images_seen, "real_and_fake", side_by_side(parts))
        if networks.num_classes:
            self.board.picture(images_seen, "classes", self._classes(G))
        labels = conditions_for(torch.arange(WALKS, device=self.device), networks, self.dataset.labels)
        steps = strip(G, WALKS, WALK_STEPS, networks.z_dim, labels, self.device)
        self.board.picture(images_seen, "walk", grid(steps, WALK_STEPS))

    def _real_grid(self, count: int) -> np.ndarray:
        if self._reals is None:
            items = Sampler(len(self.dataset), seed=0).dataset_indices(range(min(count, len(self.dataset))))
            reals = self.dataset.pixels(items)
            self._reals = grid(torch.cat([reals, reals.new_zeros(count - len(reals), *reals.shape[1:])]))
        return self._reals

    def _classes(self, G: nn.Module) -> np.ndarray:
        """A row a class, of the first ten, a column a seed."""
        rows, columns = min(self.config.networks.num_classes, MAX_CLASSES), self.config.run.grid_side
        z = latents(torch.arange(columns, device=self.device), self.config.networks.z_dim)
        labels = torch.arange(rows, device=self.device).repeat_interleave(columns)
        images = to_bytes(G(z.repeat(rows, 1), labels))
        return named_rows([str(number) for number in range(rows)], grid(images, columns))
