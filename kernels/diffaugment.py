"""DiffAugment (Zhao et al. 2020, 2006.10738): brightness, saturation, contrast, shift and cutout in one pass.

With m the mean of a pixel's colours and M that of the image's, a pixel becomes gain vivid x + gain (1 - vivid) m +
(1 - gain) M + added, moves, and is 0 inside the window. But for `added` this is linear, and its adjoint runs backwards:
what is kept moves back and is mixed by the same symmetric matrices. Before either pass one more reads what M needs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.choice import Implementation, constexpr, jit, tl, use_triton
from fastgan.kernels.derivatives import Context, differentiable, launched
from fastgan.kernels.tiles import Blocks, accumulator, accumulator_dtype, cdiv, dense, empty, layout, next_power_of_2

TILE = 512  # numbers at a time: all channels of some pixels


class Changes(NamedTuple):
    """What happens to each image: [B] each, any dtype, without gradients. Behind each stands what changes nothing."""

    added: Tensor  # brightness: to every colour; 0
    vivid: Tensor  # saturation: times the distance from the pixel's gray; 1
    gain: Tensor  # contrast: times the distance from the image's mean; 1
    shift_x: Tensor  # whole pixels to the right, 0 coming in from outside; 0
    shift_y: Tensor  # and down; 0
    centre_x: Tensor  # in [0, 1), of the window, half as wide and high as the image, that becomes 0
    centre_y: Tensor
    cut: Tensor  # bool, whether there is such a window; False


def diffaugment_reference(images: Tensor, changes: Changes) -> Tensor:
    """Return what `diffaugment` is, in torch's own ops."""
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    colors = _num_colors(x)
    x = torch.cat([_color_reference(x[:, :colors], changes), x[:, colors:]], 1)
    height, width = x.shape[2:]
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    rows = torch.arange(height, device=x.device) - changes.shift_y.long()[:, None]  # [B, H]
    columns = torch.arange(width, device=x.device) - changes.shift_x.long()[:, None]  # [B, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    at = (rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None])
    x = x.permute(0, 2, 3, 1)[batch, at[0], at[1]].permute(0, 3, 1, 2)
    cut = _near(changes.centre_y, height)[:, :, None] & _near(changes.centre_x, width)[:, None]
    cut = cut & changes.cut[:, None, None]
    x = x.masked_fill((cut | ~inside)[:, None], 0.0)
    return x.to(images.dtype).contiguous(memory_format=layout(images))


def _num_colors(images: Tensor) -> int:
    """How many channels are colours: the fourth of four is alpha."""
    return 3 if images.shape[1] == 4 else images.shape[1]


def _color_reference(x: Tensor, changes: Changes) -> Tensor:
    added, vivid, gain = (value.to(x.dtype)[:, None, None, None] for value in changes[:3])
    x = x + added
    if x.shape[1] == 3:
        x = torch.lerp(x.mean(1, keepdim=True), x, vivid)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, gain)


def _near(centre: Tensor, size: int) -> Tensor:
    """Which of so many pixels in a row are in the window, bool [B, size]."""
    places = (torch.arange(size, device=centre.device, dtype=torch.float64) + 0.5) / size
    return (places - centre.double()[:, None]).abs() < 0.25


@jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    mean,
    color,
    offsets,
    out,
    sums,
    channels,
    colors,
    height,
    width,
    stride_picture,
    stride_channel,
    stride_row,
    stride_column,
    ADJOINT: constexpr,
    CONSTANT: constexpr,
    VIVID: constexpr,
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """Where `sums` are given these are sums over the colours of what is kept, a tile; else `out` is the result.

    CONSTANT: `added` counts. VIVID: there is a saturation.
    """
    program = tl.program_id(0)
    along = tl.cdiv(height * width, TILE_P)
    image = program // along
    c = tl.arange(0, TILE_C)[:, None]
    p = program % along * TILE_P + tl.arange(0, TILE_P)[None, :]
    h = p // width
    w = p % width
    offsets += image * 6  # shift right and down, then the window's first column, the one after its last, and its rows
    color += image * 3  # added, vivid, gain
    row = h + tl.load(offsets + 1) * (1 if ADJOINT else -1)  # what is read
    column = w + tl.load(offsets) * (1 if ADJOINT else -1)
    y = row if ADJOINT else h  # where the window is looked for
    x_ = column if ADJOINT else w
    kept = (
        (x_ < tl.load(offsets + 2))
        | (x_ >= tl.load(offsets + 3))
        | (y < tl.load(offsets + 4))
        | (y >= tl.load(offsets + 5))
    )
    kept = kept & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    valid = (c < channels) & (h < height)
    start = image.to(tl.int64) * stride_picture
    at = c * stride_channel + row * stride_row + column * stride_column
    v = tl.load(x + start + at, mask=valid & kept, other=0).to(TYPE)
    colored = tl.where(c < colors, v, 0.0)
    if sums is not None:
        tl.store(sums + program, tl.sum(colored))
    else:
        gain = tl.load(color + 2)
        mixed = v * gain
        if VIVID:
            vivid = tl.load(color + 1)
            mixed = mixed * vivid + tl.sum(colored, 0, keep_dims=True) * (gain * (1.0 - vivid) / 3.0)
        mixed += (1.0 - gain) * tl.load(mean + image)
        if CONSTANT:
            mixed += tl.load(color)
        v = tl.where(c < colors, mixed, v)
        if not ADJOINT:
            v = tl.where(kept, v, 0.0)
        at = c * stride_channel + h * stride_row + w * stride_column
        tl.store(out + start + at, v, mask=valid)


def _run(x: Tensor, color: Tensor, offsets: Tensor, adjoint: bool, constant: bool) -> Tensor:
    out = empty(x)
    if not out.numel():
        return out
    x = dense(x, x)
    batch, channels, height, width = x.shape
    colors, wide = _num_colors(x), next_power_of_2(channels)
    tile = Blocks(wide, min(next_power_of_2(height * width), max(1, TILE // wide)))
    along = cdiv(height * width, tile.pixels)
    color, offsets = color.to(accumulator_dtype(x)).contiguous(), offsets.contiguous()
    sizes = (channels, colors, height, width, *x.stride())
    settings = (adjoint, constant, colors == 3, accumulator(x), *tile)
    with torch.cuda.device_of(x):
        if adjoint:
            sums = color.new_empty(batch, along)
            _kernel[(batch * along,)](x, None, color, offsets, None, sums, *sizes, *settings)
            mean = sums.sum(1) / (colors * height * width)
        else:
            mean = x[:, :colors].mean((1, 2, 3), dtype=color.dtype)
        _kernel[(batch * along,)](x, mean, color, offsets, out, None, *sizes, *settings)
    return out


def _forward(x: Tensor, color: Tensor, offsets: Tensor, constant: bool) -> Tensor:
    return _run(x, color, offsets, adjoint=False, constant=constant)


def _vjp(grad: Tensor, color: Tensor, offsets: Tensor) -> Tensor:
    return _run(grad, color, offsets, adjoint=True, constant=False)


def _fake(x: Tensor, color: Tensor, offsets: Tensor, constant: bool = False) -> Tensor:
    return empty(x)


def _keep(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    return differentiable_vjp(grad, *ctx.saved_tensors), None, None, None


def _backward_vjp(ctx: Context, change: Tensor) -> tuple[Tensor | None, ...]:
    return differentiable_diffaugment(change, *ctx.saved_tensors, False), None, None


differentiable_diffaugment = differentiable(
    "DiffAugment", launched("fastgan::diffaugment", _forward, _fake), _keep, _backward
)
differentiable_vjp = differentiable(
    "DiffAugmentVjp", launched("fastgan::diffaugment_vjp", _vjp, _fake), _keep, _backward_vjp
)


def _places(changes: Changes, height: int, width: int) -> Tensor:
    """Shifts and windows in whole pixels, int32 [B, 6]: right, down, first column, the one after the last, and rows."""
    ends = [changes.shift_x.int(), changes.shift_y.int()]
    for centre, size in ((changes.centre_x, width), (changes.centre_y, height)):
        near = _near(centre, size) & changes.cut[:, None]
        first = near.int().argmax(1)
        ends += [first, first + near.sum(1)]
    return torch.stack([end.int() for end in ends], 1)


def diffaugment(images: Tensor, changes: Changes, implementation: Implementation = "auto") -> Tensor:
    """Return `diff_color`, `diff_shift` and `cutout` of fastgan.training.augment, in this order, of images [B, C, H,
    W].

    Dtype and memory format are those of `images`; the numbers between are float32, or float64 where `images` are. Four
    channels are three colours and alpha, which only moves and is cut; without three colours there is no saturation.
    Raises UserError for other shapes.
    """
    if images.dim() != 4 or any(value.shape != images.shape[:1] for value in changes):
        shapes = sorted({str(tuple(value.shape)) for value in changes})
        raise UserError(
            f"images are {tuple(images.shape)}, changes {', '.join(shapes)}: give [B, C, H, W] and [B] each"
        )
    if not use_triton(implementation, images):
        return diffaugment_reference(images, changes)
    color = torch.stack([value.double() for value in changes[:3]], 1).detach()
    result: Tensor = differentiable_diffaugment(images, color, _places(changes, *images.shape[2:]), True)
    return result
