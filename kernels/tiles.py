"""How tensors lie in memory, and which part of them one program of a kernel works on: some pixels of some channels.

Both layouts of pictures are a matter of strides. Triton compiles a stride of 1 in, and reads along that axis.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.kernels.choice import tl

TILE = 1024  # numbers at a time: 8 for each thread of 4 warps, 16 bytes of bfloat16


class Blocks(NamedTuple):
    """The sides of a tile, powers of two."""

    channels: int
    pixels: int


def layout(x: Tensor) -> torch.memory_format:
    """Return the format of what is made of `x`.

    It is channels last only for pictures that are, and aren't contiguous as well.
    """
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def channels_are_last(x: Tensor) -> bool:
    """Return whether the channels of one pixel, or the numbers of one vector [B, C], are neighbours in memory."""
    return x.dim() == 2 or layout(x) is torch.channels_last


def dense(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` in the format of `like`: itself, or a copy where it lies otherwise."""
    return x.contiguous(memory_format=layout(like))


def empty(like: Tensor) -> Tensor:
    """Return a tensor for a result of shape, dtype and format of `like`."""
    return torch.empty_like(like, memory_format=layout(like))


def cdiv(count: int, size: int) -> int:
    """Return how many parts of `size` there are in `count`, the last one perhaps smaller."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """Return the smallest power of two that is `count` or more."""
    return 1 << (count - 1).bit_length() if count > 1 else 1


@functools.cache
def blocks(channels: int, pixels: int, channels_last: bool, size: int = TILE, most_channels: int = 128) -> Blocks:
    """Return the tile of at most `size` numbers for so many channels and pixels: long in the direction of memory."""
    width, length = next_power_of_2(channels), next_power_of_2(pixels)
    if channels_last:
        width = min(width, most_channels)
        return Blocks(width, min(length, size // width))
    length = min(length, size)
    return Blocks(min(width, size // length), length)


def empty_pictures(like: Tensor, height: int, width: int) -> Tensor:
    """Return the same for a result of another height and width."""
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))


def accumulator(x: Tensor) -> Any:
    """Return what a kernel computes in: float64 for float64, else float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """Return the same as torch names it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
