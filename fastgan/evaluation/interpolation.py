"""Ways from latent to latent, and what a generator makes on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.data.images import to_bytes
from fastgan.evaluation.fidelity import latents
from fastgan.evaluation.sampling import BATCH_SIZE
from fastgan.utils.pngs import grid


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Return latents [T, B, Z] at the shares [T] of the way from `start` to `end` [B, Z], along the arc between them.

    The shares 0 and 1 give `start` and `end`. Equal or opposite ones, between which no arc is the right one, are joined
    by a straight line. Shoemake 1985, "Animating rotation with quaternion curves".
    """
    a, b, t = start.double(), end.double(), share.double()[:, None, None]
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True))
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-6
    sine = torch.where(straight, 1.0, sine)
    first = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)
    second = torch.where(straight, t, (t * angle).sin() / sine)
    return (first * a + second * b).to(start.dtype)


def strip(G: nn.Module, rows: int, columns: int, z_dim: int, labels: Tensor | None, device: torch.device) -> Tensor:
    """Return uint8 images [rows * columns, C, H, W]: row k goes from seed 2k to 2k + 1, told label k [rows, ...]."""
    seeds = torch.arange(2 * rows, device=device)
    z = latents(seeds, z_dim).view(rows, 2, z_dim)
    path = slerp(z[:, 0], z[:, 1], torch.linspace(0, 1, columns, device=device)).transpose(0, 1)
    told = None if labels is None else labels.repeat_interleave(columns, dim=0)
    return to_bytes(G(path.reshape(rows * columns, z_dim), told))


@dataclass(frozen=True)
class Walk:
    """Walks side by side: walk k passes the seeds shifted by k times their span, frame by frame, and comes back."""

    seeds: list[int]
    frames: int
    classes: list[int]
    count: int = 1
    vectors: Tensor | None = None  # [V, K]: instead of classes

    def __len__(self) -> int:
        return len(self.seeds) * self.frames

    def _latents(self, position: int, z_dim: int) -> Tensor:
        """Those [count, Z] of the seed at the position, round and round."""
        span = max(self.seeds) - min(self.seeds) + 1
        seed = self.seeds[position % len(self.seeds)]
        return latents(seed + span * torch.arange(self.count), z_dim)

    def _labels(self, position: int) -> Tensor | None:
        told = torch.tensor(self.classes) if self.vectors is None else self.vectors
        if not len(told):
            return None
        turn = torch.arange(self.count) if self.count > 1 else torch.tensor([position])
        return told[turn % len(told)]

    def steps(self, z_dim: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield latents [count, Z] and classes [count] of each frame."""
        shares = torch.arange(self.frames) / self.frames
        for position in range(len(self.seeds)):
            path = slerp(self._latents(position, z_dim), self._latents(position + 1, z_dim), shares)
            for z in path:
                yield z, self._labels(position)


@torch.inference_mode()
def pictures(walk: Walk, G: nn.Module, z_dim: int, device: torch.device) -> Iterator[np.ndarray]:
    """Yield a picture [H, W, C] of all walks for each frame."""
    columns = math.isqrt(walk.count)
    together = max(1, BATCH_SIZE // walk.count)
    waiting: list[tuple[Tensor, Tensor | None]] = []
    for number, step in enumerate(walk.steps(z_dim), start=1):
        waiting.append(step)
        if len(waiting) == together or number == len(walk):
            z = torch.cat([z for z, _ in waiting]).to(device)
            labels = [given for _, given in waiting if given is not None]
            images = to_bytes(G(z, torch.cat(labels).to(device) if labels else None)).cpu()
            yield from (grid(part, columns) for part in images.split(walk.count))
            waiting = []
