"""Decoded bytes to what networks see, in one pass: [-1, 1], some images mirrored, in any float dtype and either layout.

Bytes have no gradient, so there is no derivative.
"""

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.choice import Implementation, constexpr, jit, tl, use_triton
from fastgan.kernels.derivatives import launched
from fastgan.kernels.tiles import accumulator, blocks, cdiv

SCALE = 2 / 255


def unpack_reference(
    images: Tensor, mirror: Tensor | None = None, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Tensor:
    """Return what `unpack` is, in torch's own ops."""
    if mirror is not None:
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    values = images.to(torch.promote_types(dtype, torch.float32)).mul_(SCALE).sub_(1).to(dtype)
    return values.contiguous(memory_format=_format(channels_last))


@jit
def _kernel(  # type: ignore[no-untyped-def]
    images,
    mirror,
    out,
    channels,
    height,
    width,
    read_image,
    read_channel,
    read_row,
    read_column,
    written_image,
    written_channel,
    written_row,
    written_column,
    SCALE: constexpr,
    TYPE: constexpr,
    TILE_C: constexpr,
    TILE_P: constexpr,
):
    """A tile of one image, read from the other side where it is mirrored."""
    program = tl.program_id(0)
    across = tl.cdiv(channels, TILE_C)
    along = tl.cdiv(height * width, TILE_P)
    c = program % across * TILE_C + tl.arange(0, TILE_C)[:, None]
    p = program // across % along * TILE_P + tl.arange(0, TILE_P)[None, :]
    image = (program // (across * along)).to(tl.int64)
    h = p // width
    w = p % width
    valid = (c < channels) & (h < height)
    column = w
    if mirror is not None:
        column = tl.where(tl.load(mirror + image) != 0, width - 1 - w, w)
    at = c * read_channel + h * read_row + column * read_column
    value = tl.load(images + image * read_image + at, mask=valid, other=0).to(TYPE) * SCALE - 1.0
    at = c * written_channel + h * written_row + w * written_column
    tl.store(out + image * written_image + at, value, mask=valid)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _launch(images: Tensor, mirror: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    out = _fake(images, mirror, dtype, channels_last)
    if not out.numel():
        return out
    batch, channels, height, width = out.shape
    tile = blocks(channels, height * width, channels_last)
    programs = batch * cdiv(channels, tile.channels) * cdiv(height * width, tile.pixels)
    mirror = None if mirror is None else mirror.contiguous()
    settings = (*out.shape[1:], *images.stride(), *out.stride(), SCALE, accumulator(out), *tile)
    with torch.cuda.device_of(out):
        # One rounding after the product, one after the difference, as in torch: the same bits.
        _kernel[(programs,)](images, mirror, out, *settings, enable_fp_fusion=False)
    return out


def _fake(images: Tensor, mirror: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty_like(images, dtype=dtype, memory_format=_format(channels_last))


_unpack = launched("fastgan::unpack", _launch, _fake)


def unpack(
    images: Tensor,
    mirror: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return uint8 images [B, C, H, W], of any strides, as `dtype` in [-1, 1], contiguous or channels last.

    Those for which `mirror`, bool [B], is True have left and right exchanged; None mirrors none. In float32 the bits
    are those of `fastgan.data.images.to_unit_range`; shorter dtypes are its values rounded once. Raises UserError for
    other inputs.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise UserError(f"images are {images.dtype} of shape {tuple(images.shape)}: give uint8 [B, C, H, W]")
    if mirror is not None and (mirror.dtype != torch.bool or mirror.shape != images.shape[:1]):
        raise UserError(f"mirror is {mirror.dtype} of shape {tuple(mirror.shape)}: give bool [{images.shape[0]}]")
    if not use_triton(implementation, images, dtype):
        return unpack_reference(images, mirror, dtype, channels_last)
    result: Tensor = _unpack(images, mirror, dtype, channels_last)
    return result
