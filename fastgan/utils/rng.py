"""Random numbers as pure functions of (seed, stream, index): no state, nothing to save, the same on every device.

The generator is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 17):
number k of a key is mix(key + k * golden). Every image of a run has its own key, so what it draws doesn't
depend on the batch, the process or the moment in which it is drawn. Integers are int64 tensors that wrap around.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fastgan.kernels import random as kernel
from fastgan.kernels.choice import use_triton


class RngStream(IntEnum):
    """What a random number is for: two uses never share numbers. Numbers of old runs depend on these values."""

    ORDER = 1
    SAMPLES = 2
    LATENTS_D = 3
    LATENTS_G = 4
    NOISE_REALS = 5
    NOISE_FAKES = 6
    NOISE_G = 7
    TOY = 8
    MIRROR = 9
    STACKED = 10
    AUGMENT_D = 11
    AUGMENT_G = 12
    DIRECTIONS_REALS = 13
    DIRECTIONS_FAKES = 14
    MIX = 15
    ORDER_G = 16
    MIRROR_G = 17
    AUGMENT_D_FAKES = 18
    AUGMENT_G_FAKES = 19


def _by_kernel(index: Tensor) -> bool:
    """Whether numbers are made by the kernel; compiled code fuses what stands here into one of its own."""
    return index.dim() == 1 and not torch.compiler.is_compiling() and use_triton("auto", index, torch.float64)


def _wrap(value: int) -> int:
    """The int64 with the same last 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_MIX_1 = _wrap(0xBF58476D1CE4E5B9)
_MIX_2 = _wrap(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: zeros come in from the left, whatever the sign."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Return a one-to-one scrambling of int64 values (SplitMix64's output function)."""
    x = (x ^ _shift_right(x, 30)).mul_(_MIX_1)  # in place from here on: this runs for every activation of a dropout
    x = x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def _splitmix64_int(x: int) -> int:
    """`mix` of a Python integer, so that a seed needs no tensor and no copy to the device."""
    x %= 2**64
    x = (x ^ (x >> 30)) * _MIX_1 % 2**64
    x = (x ^ (x >> 27)) * _MIX_2 % 2**64
    return _wrap(x ^ (x >> 31))


def keys(seed: int, stream: RngStream | Sequence[RngStream], index: Tensor) -> Tensor:
    """Return one key an index: int64 of the shape of `index`, which is int64 as well.

    Of several streams the keys stand one behind the other, [streams B] of an index [B].
    """
    bases = [
        _splitmix64_int(_splitmix64_int(seed) + each) for each in ([stream] if isinstance(stream, int) else stream)
    ]
    if _by_kernel(index):
        return kernel.keys(index, bases)
    steps = index * _GOLDEN
    return splitmix64(steps + bases[0] if len(bases) == 1 else torch.cat([steps + base for base in bases]))


def bits(key: Tensor, count: int) -> Tensor:
    """Return `count` random int64 for each key: [B] -> [B, count]."""
    return splitmix64(key[:, None] + _golden_times(torch.arange(1, count + 1, device=key.device)))


def _golden_times(places: Tensor) -> Tensor:
    """The constant times numbers from 0 to 8 million."""
    if not torch.compiler.is_compiling():
        return places * _GOLDEN
    # torch.compile makes C++ of the product of a place in a loop and a number, where an overflow may mean anything: it
    # did write beyond the end of tensors. Each byte of the constant by itself can't overflow, not even in 32 bits.
    return sum(((places * (_GOLDEN >> shift & 0xFF)) << shift for shift in range(0, 64, 8)), torch.zeros_like(places))


def uniform(key: Tensor, count: int) -> Tensor:
    """Return uniform numbers in [0, 1), float64: [B] -> [B, count]."""
    if _by_kernel(key):
        return kernel.uniform(key, count)
    return _shift_right(bits(key, count), 11).double() * 2.0**-53


def normal(key: Tensor, count: int) -> Tensor:
    """Return standard normal numbers of torch's default dtype, float32.

    [B] -> [B, count] (Box & Muller 1958, in float64).
    """
    if _by_kernel(key):
        return kernel.normal(key, count, torch.get_default_dtype())
    pairs = (count + 1) // 2
    radius, angle = uniform(key, 2 * pairs).chunk(2, dim=1)
    radius = torch.sqrt(-2 * torch.log1p(-radius))
    angle = 2 * math.pi * angle
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
    return numbers.to(torch.get_default_dtype())


def dropout_mask(key: Tensor, count: int, drop_probability: float) -> Tensor:
    """Return bool [B, count], each True with probability 1 - `drop_probability` (in steps of 2**-16)."""
    words = bits(key, (count + 3) // 4).view(torch.int16)  # four 16-bit numbers of each int64
    threshold = round(drop_probability * 2**16) - 2**15
    if threshold == 2**15:  # no int16: it would wrap around and keep everything
        return torch.zeros_like(words[:, :count], dtype=torch.bool)
    return words[:, :count] >= threshold


def rademacher(key: Tensor, count: int) -> Tensor:
    """Return `count` numbers for each key, -1 or 1 at even odds, int8: [B] -> [B, count]."""
    words = bits(key, (count + 63) // 64)
    places = torch.arange(64, device=key.device)
    return ((words[:, :, None] >> places) & 1).flatten(1)[:, :count].to(torch.int8) * 2 - 1
