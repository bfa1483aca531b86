"""Bytes to pixels."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import UserError

IDX_UBYTE = 0x08
HASHED_IMAGES = 1000  # at a time: a set may be a file that is larger than the memory


class ImageDataset(Protocol):
    """A data set whose images can be asked for by number, in any order."""

    @property
    def name(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def labels(self) -> Tensor | None: ...  # classes int64 [N], or vectors float32 [N, K]

    @property
    def classes(self) -> list[str] | None: ...

    def __len__(self) -> int: ...

    def pixels(self, indices: Tensor) -> Tensor: ...

    def content_hash(self) -> str: ...


@dataclass(frozen=True)
class ArrayDataset:
    """A whole data set, decoded."""

    name: str
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor | None = None  # classes int64 [N], or vectors float32 [N, K]
    classes: list[str] | None = None  # their names, where they have any

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W]."""
        return self.images[indices]

    def content_hash(self) -> str:
        """Return a hash of shape and pixels: equal sets have equal ones, wherever they came from."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = sha256(repr(tuple(self.images.shape)).encode())
        for part in self.images.split(HASHED_IMAGES):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def decoded(decode: Callable[[int], np.ndarray], indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the images, uint8 [B, C, H, W], channels last in memory, that `decode` makes [H, W, C] = `shape` of
    each item.

    Decoders let other threads run, so as many threads as torch has share the work.
    """
    if torch.get_num_threads() == 1 or len(indices) < 2:
        images = [decode(item) for item in indices.tolist()]
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            images = list(pool.map(decode, indices.tolist()))
    stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def to_unit_range(images: Tensor) -> Tensor:
    """Return uint8 pixels in [-1, 1], of torch's default dtype, float32."""
    return images.to(torch.get_default_dtype()).mul_(2 / 255).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """Return float pixels in [-1, 1] as uint8, rounded to the nearest level; what lies outside is clipped."""
    return images.float().add(1).mul(255 / 2).round_().clamp_(0, 255).to(torch.uint8)


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array of an idx file (two zero bytes, type, number of dimensions, big-endian sizes, data).

    Raises UserError where the header isn't one or the length doesn't agree with it.
    """
    data = path.read_bytes()
    num_dims = data[3] if len(data) > 3 else 0
    header = 4 + 4 * num_dims
    if data[:3] != bytes([0, 0, IDX_UBYTE]) or len(data) < header:
        raise UserError(f"{path} is no idx file of bytes: delete it and get the data set again")
    shape = np.frombuffer(data, ">u4", num_dims, offset=4).tolist()
    if len(data) != header + math.prod(shape):
        wanted = header + math.prod(shape)
        raise UserError(f"{path} has {len(data)} bytes instead of {wanted}: delete it and get the data set again")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())
