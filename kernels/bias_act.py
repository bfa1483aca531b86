"""Bias, leaky ReLU, gain and clamp in one pass: y = clamp(gain * leaky_relu(x + bias)).

Its derivative is linear and known from y alone, whose sign is that of x + bias: `jvp` takes changes of x and bias to
the change of y, `vjp` gradients of y to those of x and bias. Each is the other's derivative, so there are all orders.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.choice import Implementation, constexpr, jit, tl, use_triton
from fastgan.kernels.derivatives import differentiable_activation, launched
from fastgan.kernels.tiles import (
    accumulator,
    accumulator_dtype,
    blocks,
    cdiv,
    channels_are_last,
    dense,
    empty,
    next_power_of_2,
)

PROGRAMS = 1024  # that share a sum over pixels: enough for any GPU, few enough that their partial sums cost nothing


class Act(NamedTuple):
    """The activation's constants."""

    slope: float
    gain: float
    clamp: float | None


def bias_act_reference(
    x: Tensor, bias: Tensor | None = None, slope: float = 0.2, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """Return what `bias_act` is, in torch's own ops."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
    x = F.leaky_relu(x, slope)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


@jit
def act_forward(x, SLOPE: constexpr, GAIN: constexpr, CLAMP: constexpr):  # type: ignore[no-untyped-def]
    """Compute y of x with its bias. A comparison with NaN is false, so NaN stays NaN."""
    y = tl.where(x > 0, x, x * SLOPE) * GAIN
    if CLAMP is not None:
        bound = tl.full(y.shape, CLAMP, y.dtype)
        y = tl.where(y > bound, bound, tl.where(y < -bound, -bound, y))
    return y


@jit
def act_backward(v, y, SLOPE: constexpr, GAIN: constexpr, CLAMP: constexpr):  # type: ignore[no-untyped-def]
    """Compute v dy/dx from y: 0 where y is clamped."""
    v = tl.where(y > 0, v, v * SLOPE) * GAIN
    if CLAMP is not None:
        v = tl.where(tl.abs(y) < tl.full(y.shape, CLAMP, y.dtype), v, 0.0)
    return v


# Arguments are plain numbers: Triton 3.6 doesn't compile constants in tuples, and takes longer to launch with tuples.


@jit
def _map_kernel(  # type: ignore[no-untyped-def]
    x,
    bias,
    y,
    out,
    channels,
    pixels,
    stride_picture,
    stride_channel,
    stride_pixel,
    SLOPE: constexpr,
    GAIN: constexpr,
    CLAMP: constexpr,
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """out = act_forward(x + bias) or, where y is given, dy/dx (x + bias)."""
    program = tl.program_id(0)
    across = tl.cdiv(channels, TILE_C)
    along = tl.cdiv(pixels, TILE_P)
    first = program // across % along * TILE_P
    c = program % across * TILE_C + tl.arange(0, TILE_C)[:, None]
    p = tl.arange(0, TILE_P)[None, :]
    # Tensors may be larger than 32 bits count, tiles can't.
    start = (program // (across * along)).to(tl.int64) * stride_picture + first.to(tl.int64) * stride_pixel
    at = c * stride_channel + p * stride_pixel
    inside = (c < channels) & (first + p < pixels)
    v = tl.load(x + start + at, mask=inside, other=0).to(TYPE)
    if bias is not None:
        v += tl.load(bias + c, mask=c < channels, other=0).to(TYPE)
    if y is None:
        v = act_forward(v, SLOPE, GAIN, CLAMP)
    else:
        v = act_backward(v, tl.load(y + start + at, mask=inside, other=0).to(TYPE), SLOPE, GAIN, CLAMP)
    tl.store(out + start + at, v, mask=inside)


@jit
def _vjp_kernel(  # type: ignore[no-untyped-def]
    grad,
    y,
    out,
    sums,
    channels,
    pixels,
    stride_picture,
    stride_channel,
    stride_pixel,
    TILES: constexpr,  # the interpreter of Triton 3.6 loops over constants only
    SLOPE: constexpr,
    GAIN: constexpr,
    CLAMP: constexpr,
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """out = dy/dx grad, TILES tiles a program, and, where `sums` are given, their sum over these, a channel."""
    program = tl.program_id(0)
    across = tl.cdiv(channels, TILE_C)
    along = tl.cdiv(pixels, TILE_P * TILES)
    c = program % across * TILE_C + tl.arange(0, TILE_C)[:, None]
    p = tl.arange(0, TILE_P)[None, :]
    at = c * stride_channel + p * stride_pixel
    picture = (program // (across * along)).to(tl.int64) * stride_picture
    first = program // across % along * TILE_P * TILES
    total = tl.full([TILE_C, TILE_P], 0.0, TYPE)
    for _ in range(TILES):
        start = picture + first.to(tl.int64) * stride_pixel
        inside = (c < channels) & (first + p < pixels)
        v = tl.load(grad + start + at, mask=inside, other=0).to(TYPE)
        v = act_backward(v, tl.load(y + start + at, mask=inside, other=0).to(TYPE), SLOPE, GAIN, CLAMP)
        tl.store(out + start + at, v, mask=inside)
        total += v
        first += TILE_P
    if sums is not None:
        tl.store(sums + program // across * channels + c, tl.sum(total, 1, keep_dims=True), mask=c < channels)


class _View(NamedTuple):
    """A dense tensor as pictures of channels of pixels; vectors, and channels-last batches, are one picture."""

    pictures: int
    channels: int
    pixels: int
    stride_picture: int
    stride_channel: int
    stride_pixel: int


def _view(x: Tensor) -> _View:
    channels, per_channel = x.shape[1], x.numel() // x.shape[1]
    if channels_are_last(x):
        return _View(1, channels, per_channel, 0, 1, channels)
    pixels = per_channel // x.shape[0]
    return _View(x.shape[0], channels, pixels, channels * pixels, pixels, 1)


@functools.cache
def as_stored(slope: float, gain: float, clamp: float | None, dtype: torch.dtype) -> Act:
    """Return the constants, the bound rounded to what y has where it is clamped."""
    return Act(slope, gain, None if clamp is None else torch.tensor(clamp, dtype=dtype).item())


def _map(x: Tensor, bias: Tensor | None, y: Tensor | None, slope: float, gain: float, clamp: float | None) -> Tensor:
    """Activate x + bias; where y is given, that is a change of both, and the result is y's."""
    like = x if y is None else y
    out = empty(like)
    if out.numel():
        view = _view(out)
        tile = blocks(view.channels, view.pixels, view.stride_channel == 1)
        programs = view.pictures * cdiv(view.channels, tile.channels) * cdiv(view.pixels, tile.pixels)
        x, y, bias = dense(x, like), None if y is None else dense(y, y), None if bias is None else bias.contiguous()
        act = as_stored(slope, gain, clamp, out.dtype)
        with torch.cuda.device_of(out):
            _map_kernel[(programs,)](x, bias, y, out, *view[1:], *act, accumulator(out), *tile)
    return out


def _forward(x: Tensor, bias: Tensor | None, slope: float, gain: float, clamp: float | None) -> Tensor:
    return _map(x, bias, None, slope, gain, clamp)


def _vjp(
    grad: Tensor, y: Tensor, with_bias: bool, slope: float, gain: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    out, sums = _vjp_outputs(grad, y, with_bias)
    if not out.numel():
        return out, sums.zero_()
    view = _view(out)
    tile = blocks(view.channels, view.pixels, view.stride_channel == 1)
    across, along = cdiv(view.channels, tile.channels), cdiv(view.pixels, tile.pixels)
    most = min(along, view.pictures * across * along // PROGRAMS) if with_bias else 1
    tiles = next_power_of_2(max(1, most) + 1) // 2  # few different numbers: each is compiled
    along = cdiv(along, tiles)
    parts = sums.new_empty(view.pictures * along, view.channels) if with_bias else None
    act = as_stored(slope, gain, clamp, y.dtype)
    with torch.cuda.device_of(out):
        _vjp_kernel[(view.pictures * across * along,)](
            dense(grad, y), dense(y, y), out, parts, *view[1:], tiles, *act, accumulator(y), *tile
        )
    return out, sums if parts is None else parts.sum(0)


def _vjp_outputs(grad: Tensor, y: Tensor, with_bias: bool, *_: Any) -> tuple[Tensor, Tensor]:
    return empty(y), y.new_empty(y.shape[1] if with_bias else 0, dtype=accumulator_dtype(y))


differentiable_bias_act = differentiable_activation(
    "BiasAct",
    launched("fastgan::bias_act", _forward, lambda x, *_: empty(x)),
    launched("fastgan::bias_act_jvp", _map, lambda tangent, bias_tangent, y, *_: empty(y)),
    launched("fastgan::bias_act_vjp", _vjp, _vjp_outputs),
)


def check_settings(x: Tensor, bias: Tensor | None, slope: float, gain: float, clamp: float | None) -> None:
    """Raise UserError for a bias of another length or an activation whose sign isn't that of x + bias."""
    if x.dim() not in (2, 4):
        raise UserError(f"x is of shape {tuple(x.shape)}: give [B, C] or [B, C, H, W]")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise UserError(f"bias is of shape {tuple(bias.shape)}: give one number for each of {x.shape[1]} channels")
    for name, value, fine in (("slope", slope, slope >= 0), ("gain", gain, gain > 0)):
        if not fine:
            raise UserError(f"{name} is {value}: give {'0 or more' if name == 'slope' else 'more than 0'}")
    if clamp is not None and not clamp > 0:
        raise UserError(f"clamp is {clamp}: give more than 0, or None for no bound")


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return clamp(gain * leaky_relu(x + bias)), of x's dtype and memory format.

    x is [B, C] or [B, C, H, W], the bias [C] or None. `clamp` bounds the result's size; where it does, the gradient is
    0. Raises UserError for what can't be one.
    """
    check_settings(x, bias, slope, gain, clamp)
    if not use_triton(implementation, x):
        return bias_act_reference(x, bias, slope, gain, clamp)
    result: Tensor = differentiable_bias_act(x, bias, slope, gain, clamp)
    return result
