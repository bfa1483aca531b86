"""Decoded bytes to what networks see, in one pass: [-1, 1], some images mirrored, in any float dtype and either layout.

Bytes have no gradient, so there is no derivative.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from fastgan.errors import UserError
from fastgan.kernels.choice import Implementation, constexpr, jit, takes_triton, tl, triton
from fastgan.kernels.tiles import Blocks, accumulator, blocks

SCALE = 2 / 255


def unpack_reference(
    images: Tensor, mirror: Tensor | None = None, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Tensor:
    """What `unpack` is, in torch's own ops."""
    if mirror is not None:
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    values = images.to(torch.promote_types(dtype, torch.float32)).mul_(SCALE).sub_(1).to(dtype)
    return values.contiguous(memory_format=_format(channels_last))


class _Op(NamedTuple):
    """What the kernel is compiled for."""

    scale: float
    precision: Any
    tile: Blocks


class _View(NamedTuple):
    """Sizes and strides (image, channel, row, column) of what is read and written."""

    channels: int
    height: int
    width: int
    read: tuple[int, ...]
    written: tuple[int, ...]


@jit
def _kernel(images, mirror, out, view, OP: constexpr):  # type: ignore[no-untyped-def]
    """A tile of one image, read from the other side where it is mirrored."""
    program = tl.program_id(0)
    across = tl.cdiv(view.channels, OP.tile.channels)
    along = tl.cdiv(view.height * view.width, OP.tile.pixels)
    c = program % across * OP.tile.channels + tl.arange(0, OP.tile.channels)[:, None]
    p = program // across % along * OP.tile.pixels + tl.arange(0, OP.tile.pixels)[None, :]
    image = (program // (across * along)).to(tl.int64)
    h = p // view.width
    w = p % view.width
    valid = (c < view.channels) & (h < view.height)
    column = w
    if mirror is not None:
        column = tl.where(tl.load(mirror + image) != 0, view.width - 1 - w, w)
    at = c * view.read[1] + h * view.read[2] + column * view.read[3]
    value = tl.load(images + image * view.read[0] + at, mask=valid, other=0).to(OP.precision) * OP.scale - 1.0
    at = c * view.written[1] + h * view.written[2] + w * view.written[3]
    tl.store(out + image * view.written[0] + at, value, mask=valid)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@custom_op("fastgan::unpack", mutates_args=())
def _unpack(images: Tensor, mirror: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    out = torch.empty_like(images, dtype=dtype, memory_format=_format(channels_last))
    if not out.numel():
        return out
    batch, channels, height, width = out.shape
    tile = blocks(channels, height * width, channels_last)
    programs = batch * triton.cdiv(channels, tile.channels) * triton.cdiv(height * width, tile.pixels)
    view = _View(channels, height, width, images.stride(), out.stride())
    op = _Op(SCALE, accumulator(out), tile)
    with torch.cuda.device_of(out):
        # One rounding after the product, one after the difference, as in torch: the same bits.
        _kernel[(programs,)](
            images, None if mirror is None else mirror.contiguous(), out, view, op, enable_fp_fusion=False
        )
    return out


@_unpack.register_fake
def _fake(images: Tensor, mirror: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty_like(images, dtype=dtype, memory_format=_format(channels_last))


def unpack(
    images: Tensor,
    mirror: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """uint8 images [B, C, H, W], of any strides, as `dtype` in [-1, 1], contiguous or channels last.

    Those for which `mirror`, bool [B], is True have left and right exchanged; None mirrors none. In float32 the bits
    are those of `fastgan.data.images.to_unit_range`; shorter dtypes are its values rounded once. Raises UserError for
    other inputs.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise UserError(f"images are {images.dtype} of shape {tuple(images.shape)}: give uint8 [B, C, H, W]")
    if mirror is not None and (mirror.dtype != torch.bool or mirror.shape != images.shape[:1]):
        raise UserError(f"mirror is {mirror.dtype} of shape {tuple(mirror.shape)}: give bool [{images.shape[0]}]")
    if not takes_triton(implementation, images, dtype):
        return unpack_reference(images, mirror, dtype, channels_last)
    result: Tensor = _unpack(images, mirror, dtype, channels_last)
    return result
