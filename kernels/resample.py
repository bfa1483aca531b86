"""Half or twice the height and width through the filter [1, 3, 3, 1] / 8 an axis.

Pictures are 0 outside. Up is 4 times the adjoint of down, so the derivative of each is a multiple of the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.choice import Implementation, constexpr, jit, tl, use_triton
from fastgan.kernels.derivatives import Context, differentiable, launched
from fastgan.kernels.tiles import accumulator, blocks, cdiv, channels_are_last, dense, empty_pictures, layout

TILE = 512  # numbers at a time: each of them is made of up to 16, and all of these may be in flight
MOST_CHANNELS = 32  # of a tile: neighbouring pixels share what they read


def downsample2_reference(x: Tensor) -> Tensor:
    """Return what `downsample2` is: a matrix for the rows and one for the columns."""
    return _multiply(x, *_halvings(x, x.shape[2], x.shape[3]))


def upsample2_reference(x: Tensor) -> Tensor:
    """Return what `upsample2` is."""
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
    last = torch.bmm(columns.expand(last.shape[0], -1, -1), last).view(batch, len(rows), len(columns), channels)
    return last.permute(0, 3, 1, 2).contiguous(memory_format=layout(x))


@jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    out,
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
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """out = scale R x; `rows` and `columns` are those of x."""
    program = tl.program_id(0)
    across = tl.cdiv(channels, TILE_C)
    along = tl.cdiv(height * width, TILE_P)
    c = program % across * TILE_C + tl.arange(0, TILE_C)[:, None]
    p = program // across % along * TILE_P + tl.arange(0, TILE_P)[None, :]
    picture = (program // (across * along)).to(tl.int64)  # a batch may be larger than 32 bits count, not a picture
    h = p // width
    w = p % width
    valid = (c < channels) & (h < height)
    result = tl.full([TILE_C, TILE_P], 0.0, TYPE)
    for i in tl.static_range(2 if UP else 4):
        for j in tl.static_range(2 if UP else 4):
            # Up: the nearest pixel, which is two results' own in a row, then the next one on the side where the result
            # lies, by 3/4 and 1/4. Down: four in a row by 1/8, 3/8, 3/8, 1/8, of which the middle two are the result's.
            row = h // 2 + i * (h % 2 * 2 - 1) if UP else 2 * h - 1 + i
            column = w // 2 + j * (w % 2 * 2 - 1) if UP else 2 * w - 1 + j
            inside = valid & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            at = c * read_channel + row * read_row + column * read_column
            v = tl.load(x + picture * read_picture + at, mask=inside, other=0).to(TYPE)
            if UP:
                result += v * ((3 - 2 * i) * (3 - 2 * j) / 16)
            else:
                result += v * ((1 + (i + 1) // 2 % 2 * 2) * (1 + (j + 1) // 2 % 2 * 2) / 64)
    at = c * written_channel + h * written_row + w * written_column
    tl.store(out + picture * written_picture + at, result * scale, mask=valid)


def _resample(x: Tensor, up: bool, scale: float) -> Tensor:
    out = _resized(x, up, scale)
    if not out.numel():
        return out
    x = dense(x, out)
    _, channels, height, width = out.shape
    tile = blocks(channels, height * width, channels_are_last(out), TILE, MOST_CHANNELS)
    programs = out.shape[0] * cdiv(height * width, tile.pixels) * cdiv(channels, tile.channels)
    sizes = (*out.shape[1:], *x.shape[2:], *x.stride(), *out.stride())
    with torch.cuda.device_of(out):
        _kernel[(programs,)](x, out, *sizes, scale, up, accumulator(out), *tile)
    return out


def _resized(x: Tensor, up: bool, scale: float) -> Tensor:
    height, width = (2 * side if up else side // 2 for side in x.shape[2:])
    return empty_pictures(x, height, width)


def _keep(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.settings = inputs[1:]


def _backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    up, scale = ctx.settings
    return differentiable_resample(grad, not up, scale * (4.0 if up else 0.25)), None, None


differentiable_resample = differentiable(
    "Resample", launched("fastgan::resample", _resample, _resized), _keep, _backward
)


def downsample2(x: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Return half the height and width of pictures [B, C, H, W], both even, after the filter [1, 3, 3, 1] / 8 an axis.

    Dtype and memory format are those of `x`, which is taken to be 0 outside, so the outermost pixels get 7/8 of a
    constant. Raises UserError for odd sides.
    """
    _check_sides(x, even=True)
    if not use_triton(implementation, x):
        return downsample2_reference(x)
    result: Tensor = differentiable_resample(x, False, 1.0)
    return result


def upsample2(x: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Return twice the height and width of pictures [B, C, H, W], with the filter [1, 3, 3, 1] / 4 an axis.

    4 times the adjoint of `downsample2`; 0 outside, so the outermost pixels get 3/4 of a constant.
    """
    _check_sides(x, even=False)
    if not use_triton(implementation, x):
        return upsample2_reference(x)
    result: Tensor = differentiable_resample(x, True, 1.0)
    return result


def _check_sides(x: Tensor, even: bool) -> None:
    if x.dim() != 4 or (even and (x.shape[2] % 2 or x.shape[3] % 2)):
        raise UserError(f"x is of shape {tuple(x.shape)}: give [B, C, H, W]{' with even H and W' * even}")
