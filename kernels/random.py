"""The numbers of fastgan/utils/rng.py, where the formulas stand, in one launch: SplitMix64 of keys, uniform and normal.

They have no gradient. A GPU's host would spend some forty operations on a batch's latents otherwise.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.kernels.choice import constexpr, jit, tl
from fastgan.kernels.derivatives import launched
from fastgan.kernels.tiles import cdiv

TILE = 512  # numbers at a time


@jit
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def _uniform(key, index):  # type: ignore[no-untyped-def]
    """Number `index` of the key, in [0, 1)."""
    word = _mix(key + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
    return (word >> 11).to(tl.int64).to(tl.float64) * (1.0 / (1 << 53))


@jit
def _cosine(turns):  # type: ignore[no-untyped-def]
    """cos(2 pi turns), by Taylor's series about the nearest quarter: CUDA's own needs memory for far larger angles."""
    quarter = tl.floor(4.0 * turns + 0.5)
    angle = (turns - 0.25 * quarter) * 6.283185307179586  # at most pi / 4
    square = angle * angle
    cos = 1.0 - square / 306.0  # (17 18)
    sin = 1.0 - square / 342.0  # (18 19)
    for k in tl.static_range(8):
        cos = 1.0 - square / ((16 - 2 * k) * (15 - 2 * k)) * cos
        sin = 1.0 - square / ((17 - 2 * k) * (16 - 2 * k)) * sin
    number = quarter.to(tl.int32)
    value = tl.where(number & 1 != 0, -angle * sin, cos)
    return tl.where(number & 2 != 0, -value, value)


@jit
def _keys_kernel(index, out, size, base, TILE: constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    number = tl.load(index + at, mask=at < size, other=0) * -0x61C8864680B583EB + base  # the same constant, signed
    tl.store(out + at, _mix(number.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True), mask=at < size)


@jit
def _numbers_kernel(keys, out, size, count, pairs, NORMAL: constexpr, TILE: constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = at % count
    key = tl.load(keys + at // count, mask=at < size, other=0).to(tl.uint64, bitcast=True)
    if NORMAL:  # Box & Muller: the first half of the row by the cosine, the other by the sine of the same angles
        first = index % pairs
        radius = tl.sqrt(-2.0 * tl.log(1.0 - _uniform(key, first)))
        turns = _uniform(key, first + pairs)
        value = radius * _cosine(tl.where(index < pairs, turns, turns - 0.25))  # a sine is a cosine, a quarter later
    else:
        value = _uniform(key, index)
    tl.store(out + at, value, mask=at < size)


def _launch_keys(index: Tensor, bases: Sequence[int]) -> Tensor:
    out = _fake_keys(index, bases)
    index = index.contiguous()
    if index.numel():
        with torch.cuda.device_of(index):
            for base, part in zip(bases, out.split(len(index)), strict=True):
                _keys_kernel[(cdiv(len(index), TILE),)](index, part, len(index), base, TILE=TILE)
    return out


def _fake_keys(index: Tensor, bases: Sequence[int]) -> Tensor:
    return index.new_empty(len(bases) * len(index))


_keys = launched("fastgan::random_keys", _launch_keys, _fake_keys)


def keys(index: Tensor, bases: Sequence[int]) -> Tensor:
    """Return `fastgan.utils.rng.keys` of numbers [B] by the kernel, one stream's `base` after another: [bases B]."""
    found: Tensor = _keys(index, bases)
    return found


def _launch_numbers(keys: Tensor, count: int, normal: bool, dtype: torch.dtype) -> Tensor:
    out = _fake_numbers(keys, count, normal, dtype)
    if out.numel():
        with torch.cuda.device_of(keys):
            grid, pairs = (cdiv(out.numel(), TILE),), (count + 1) // 2
            _numbers_kernel[grid](keys.contiguous(), out, out.numel(), count, pairs, NORMAL=normal, TILE=TILE)
    return out


def _fake_numbers(keys: Tensor, count: int, normal: bool, dtype: torch.dtype) -> Tensor:
    return keys.new_empty(len(keys), count, dtype=dtype)


_numbers = launched("fastgan::random_numbers", _launch_numbers, _fake_numbers)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return `fastgan.utils.rng.uniform` of keys [B] by the kernel: float64 [B, count]."""
    numbers: Tensor = _numbers(keys, count, False, torch.float64)
    return numbers


def normal(keys: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return `fastgan.utils.rng.normal` of keys [B] by the kernel: [B, count]."""
    numbers: Tensor = _numbers(keys, count, True, dtype)
    return numbers
