"""Half or twice the height and width through the filter [1, 3, 3, 1] / 8 an axis, alone or with `bias_act` behind it.

Pictures are 0 outside. Up is 4 times the adjoint of down, so the derivative of each is a multiple of the other. With
an activation y = act(R x + bias) the derivatives follow from y alone, as in bias_act.py: act_backward(R dx + dbias),
and its adjoint.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.bias_act import Act, act_backward, act_forward, as_stored, bias_act_reference, check_settings
from fastgan.kernels.choice import Implementation, constexpr, jit, tl, use_triton
from fastgan.kernels.derivatives import Context, differentiable, differentiable_activation, launched
from fastgan.kernels.tiles import (
    accumulator,
    accumulator_dtype,
    blocks,
    cdiv,
    channels_are_last,
    dense,
    empty,
    empty_pictures,
    layout,
)  # fmt: skip

TILE = 512  # numbers at a time: each of them is made of up to 16, and all of these may be in flight
MOST_CHANNELS = 32  # of a tile: neighbouring pixels share what they read


def downsample2_reference(x: Tensor) -> Tensor:
    """What `downsample2` is: a matrix for the rows and one for the columns."""
    return _multiply(x, *_halvings(x, x.shape[2], x.shape[3]))


def upsample2_reference(x: Tensor) -> Tensor:
    """What `upsample2` is."""
    return _multiply(x, *(2 * matrix.T for matrix in _halvings(x, 2 * x.shape[2], 2 * x.shape[3])))


def _halvings(like: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    rows = _halving(height, like)
    return rows, rows if width == height else _halving(width, like)


def _halving(side: int, like: Tensor) -> Tensor:
    """The matrix [side / 2, side] that filters and takes every other value."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    middles = 2 * torch.arange(side // 2, device=like.device, dtype=dtype) + 0.5
    distances = (torch.arange(side, device=like.device, dtype=dtype) - middles[:, None]).abs()
    return (0.5 - distances / 4).clamp_(min=0).to(like.dtype)  # 3/8 at 0.5, 1/8 at 1.5, 0 beyond


def _multiply(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    last = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    last = torch.bmm(rows.expand(batch, -1, -1), last).view(-1, width, channels)
    last = torch.bmm(columns.expand(len(last), -1, -1), last).view(batch, len(rows), len(columns), channels)
    return last.permute(0, 3, 1, 2).contiguous(memory_format=layout(x))


@jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    x_y,
    bias,
    y,
    out,
    sums,
    channels,
    height,
    width,
    rows,
    columns,
    read_picture,
    read_channel,
    read_row,
    read_column,
    written_picture,
    written_channel,
    written_row,
    written_column,
    scale,
    UP: constexpr,
    ACTIVE: constexpr,
    SLOPE: constexpr,
    GAIN: constexpr,
    CLAMP: constexpr,
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """out = scale R x, plus bias, then activated, or act_backward of it where y is given.

    Where x_y is given act_backward of x comes first, and where `sums` are, these are its sums over the pixels that are
    nearest to a tile's.

    `rows` and `columns` are those of x. Without ACTIVE the kernel is linear.
    """
    program = tl.program_id(0)
    across = tl.cdiv(channels, TILE_C)
    along = tl.cdiv(height * width, TILE_P)
    c = program % across * TILE_C + tl.arange(0, TILE_C)[:, None]
    p = program // across % along * TILE_P + tl.arange(0, TILE_P)[None, :]
    picture = (program // (across * along)).to(tl.int64)  # a batch may be larger than 32 bits count, not a picture
    h = p // width
    w = p % width
    valid = (c < channels) & (h < height)
    start = picture * read_picture
    result = tl.full([TILE_C, TILE_P], 0.0, TYPE)
    total = tl.full([TILE_C, TILE_P], 0.0, TYPE)
    for i in tl.static_range(2 if UP else 4):
        for j in tl.static_range(2 if UP else 4):
            # Up: the nearest pixel, which is two results' own in a row, then the next one on the side where the result
            # lies, by 3/4 and 1/4. Down: four in a row by 1/8, 3/8, 3/8, 1/8, of which the middle two are the result's.
            row = h // 2 + i * (h % 2 * 2 - 1) if UP else 2 * h - 1 + i
            column = w // 2 + j * (w % 2 * 2 - 1) if UP else 2 * w - 1 + j
            inside = valid & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            at = c * read_channel + row * read_row + column * read_column
            v = tl.load(x + start + at, mask=inside, other=0).to(TYPE)
            if x_y is not None:
                v = act_backward(v, tl.load(x_y + start + at, mask=inside, other=0).to(TYPE), SLOPE, GAIN, CLAMP)
            if UP:
                if sums is not None and i + j == 0:
                    total += tl.where(h % 2 + w % 2 == 0, v, 0.0)
                result += v * ((3 - 2 * i) * (3 - 2 * j) / 16)
            else:
                if sums is not None and (i + 1) // 2 % 2 + (j + 1) // 2 % 2 == 2:
                    total += v
                result += v * ((1 + (i + 1) // 2 % 2 * 2) * (1 + (j + 1) // 2 % 2 * 2) / 64)
    result *= scale
    if bias is not None:
        result += tl.load(bias + c, mask=c < channels, other=0).to(TYPE)
    at = c * written_channel + h * written_row + w * written_column
    start = picture * written_picture
    if y is not None:
        result = act_backward(result, tl.load(y + start + at, mask=valid, other=0).to(TYPE), SLOPE, GAIN, CLAMP)
    elif ACTIVE and x_y is None:
        result = act_forward(result, SLOPE, GAIN, CLAMP)
    tl.store(out + start + at, result, mask=valid)
    if sums is not None:
        tl.store(sums + program // across * channels + c, tl.sum(total, 1, keep_dims=True), mask=c < channels)


class _Given(NamedTuple):
    """What a kernel may read beside the pictures."""

    x_y: Tensor | None = None
    bias: Tensor | None = None
    y: Tensor | None = None


def _launch(
    x: Tensor, given: _Given, out: Tensor, up: bool, scale: float, act: Act | None, with_sums: bool = False
) -> Tensor:
    """Fills `out`, dense; returns the sums, which are empty without `with_sums`."""
    x_y, bias, y = given
    sums = out.new_zeros(out.shape[1] if with_sums else 0, dtype=accumulator_dtype(out))
    if not out.numel():
        return sums
    x, x_y, y, bias = dense(x, out), _dense(x_y, out), _dense(y, out), None if bias is None else bias.contiguous()
    _, channels, height, width = out.shape
    tile = blocks(channels, height * width, channels_are_last(out), TILE, MOST_CHANNELS)
    along = out.shape[0] * cdiv(height * width, tile.pixels)
    parts = sums.new_empty(along, channels) if with_sums else None
    sizes = (*out.shape[1:], *x.shape[2:], *x.stride(), *out.stride())
    settings = (up, act is not None, *(act or Act(1.0, 1.0, None)), accumulator(out), *tile)
    with torch.cuda.device_of(out):
        _kernel[(along * cdiv(channels, tile.channels),)](x, x_y, bias, y, out, parts, *sizes, scale, *settings)
    return sums if parts is None else parts.sum(0)


def _dense(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else dense(x, like)


def _adjoint(up: bool) -> tuple[bool, float]:
    """The transposed resampling, and by how much."""
    return not up, 4.0 if up else 0.25


def _resized(x: Tensor, up: bool) -> Tensor:
    height, width = (2 * side if up else side // 2 for side in x.shape[2:])
    return empty_pictures(x, height, width)


def _linear(x: Tensor, up: bool, scale: float) -> Tensor:
    out = _resized(x, up)
    _launch(x, _Given(), out, up, scale, None)
    return out


def _forward(x: Tensor, bias: Tensor | None, up: bool, slope: float, gain: float, clamp: float | None) -> Tensor:
    out = _resized(x, up)
    _launch(x, _Given(bias=bias), out, up, 1.0, as_stored(slope, gain, clamp, x.dtype))
    return out


def _jvp(
    tangent: Tensor, bias_tangent: Tensor | None, y: Tensor, up: bool, slope: float, gain: float, clamp: float | None
) -> Tensor:
    out = empty(y)
    _launch(tangent, _Given(bias=bias_tangent, y=y), out, up, 1.0, as_stored(slope, gain, clamp, y.dtype))
    return out


def _vjp(
    grad: Tensor, y: Tensor, with_bias: bool, up: bool, slope: float, gain: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    out = _resized(y, not up)
    act = as_stored(slope, gain, clamp, y.dtype)
    return out, _launch(grad, _Given(x_y=y), out, *_adjoint(up), act, with_bias)


def _fake_linear(x: Tensor, up: bool, scale: float) -> Tensor:
    return _resized(x, up)


def _fake_forward(x: Tensor, bias: Tensor | None, up: bool, *_: Any) -> Tensor:
    return _resized(x, up)


def _fake_jvp(tangent: Tensor, bias_tangent: Tensor | None, y: Tensor, *_: Any) -> Tensor:
    return empty(y)


def _fake_vjp(grad: Tensor, y: Tensor, with_bias: bool, up: bool, *_: Any) -> tuple[Tensor, Tensor]:
    return _resized(y, not up), y.new_empty(y.shape[1] if with_bias else 0, dtype=accumulator_dtype(y))


def _keep(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.settings = inputs[1:]


def _backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    up, scale = ctx.settings
    other, factor = _adjoint(up)
    return differentiable_resample(grad, other, scale * factor), None, None


differentiable_resample = differentiable(
    "Resample", launched("fastgan::resample", _linear, _fake_linear), _keep, _backward
)
differentiable_resample_act = differentiable_activation(
    "ResampleAct",
    launched("fastgan::resample_act", _forward, _fake_forward),
    launched("fastgan::resample_act_jvp", _jvp, _fake_jvp),
    launched("fastgan::resample_act_vjp", _vjp, _fake_vjp),
)


def downsample2(x: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Half the height and width of pictures [B, C, H, W], both even, after the filter [1, 3, 3, 1] / 8 an axis.

    Dtype and memory format are those of `x`, which is taken to be 0 outside, so the outermost pixels get 7/8 of a
    constant. Raises UserError for odd sides.
    """
    _check_sides(x, even=True)
    if not use_triton(implementation, x):
        return downsample2_reference(x)
    result: Tensor = differentiable_resample(x, False, 1.0)
    return result


def upsample2(x: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Twice the height and width of pictures [B, C, H, W], with the filter [1, 3, 3, 1] / 4 an axis.

    4 times the adjoint of `downsample2`; 0 outside, so the outermost pixels get 3/4 of a constant.
    """
    _check_sides(x, even=False)
    if not use_triton(implementation, x):
        return upsample2_reference(x)
    result: Tensor = differentiable_resample(x, True, 1.0)
    return result


def downsample2_act(
    x: Tensor,
    bias: Tensor | None = None,
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """`bias_act` of `downsample2`, in one pass."""
    return _resample_act(x, bias, False, Act(slope, gain, clamp), implementation)


def upsample2_act(
    x: Tensor,
    bias: Tensor | None = None,
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """`bias_act` of `upsample2`, in one pass."""
    return _resample_act(x, bias, True, Act(slope, gain, clamp), implementation)


def _resample_act(x: Tensor, bias: Tensor | None, up: bool, act: Act, implementation: Implementation) -> Tensor:
    _check_sides(x, even=not up)
    check_settings(x, bias, *act)
    if not use_triton(implementation, x):
        return bias_act_reference(upsample2_reference(x) if up else downsample2_reference(x), bias, *act)
    result: Tensor = differentiable_resample_act(x, bias, up, *act)
    return result


def _check_sides(x: Tensor, even: bool) -> None:
    if x.dim() != 4 or (even and (x.shape[2] % 2 or x.shape[3] % 2)):
        raise UserError(f"x is of shape {tuple(x.shape)}: give [B, C, H, W]{' with even H and W' * even}")
