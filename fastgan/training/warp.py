"""`grid_sample` of pictures, differentiable twice in the pictures whatever the torch, which R1 behind an augmentation
needs: torch 2.11's own isn't.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _torch_can() -> bool:
    """Whether the derivative of torch's own has one itself."""
    picture, slope = (torch.ones(1, 1, 2, 2, requires_grad=True) for _ in range(2))
    seen = F.grid_sample(picture, torch.zeros(1, 2, 2, 2), align_corners=True)
    (first,) = torch.autograd.grad(seen, picture, slope, create_graph=True)
    try:
        torch.autograd.grad(first.sum(), slope)
    except RuntimeError:
        return False
    return True


TORCH_CAN = _torch_can()


def warp(images: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """`F.grid_sample(images, grid, mode, padding, align_corners=True)`, bilinear or nearest: [B, C, H, W]."""
    if TORCH_CAN:
        return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=True)
    return warp_by_gathering(images, grid, mode, padding)


def warp_by_gathering(images: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """The same from pixels that are picked one by one, which any torch differentiates any number of times."""
    batch, channels, height, width = images.shape
    x, y = (
        _inside((places + 1) / 2 * (size - 1), size, padding)
        for places, size in zip(grid.unbind(3), (width, height), strict=True)
    )
    pixels = images.flatten(2)
    if mode == "nearest":
        corners = [(x.round(), y.round(), torch.ones_like(x))]
    else:
        left, top = x.floor(), y.floor()
        right, bottom = x - left, y - top  # how much of the next pixel
        corners = [
            (left, top, (1 - right) * (1 - bottom)),
            (left + 1, top, right * (1 - bottom)),
            (left, top + 1, (1 - right) * bottom),
            (left + 1, top + 1, right * bottom),
        ]
    seen = torch.zeros(batch, channels, *grid.shape[1:3], dtype=images.dtype, device=images.device)
    for column, row, weight in corners:
        there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()  # [B, H, W]
        picked = pixels.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).unflatten(2, index.shape[1:])
        seen = seen + picked * (weight * there)[:, None]
    return seen


def _inside(places: Tensor, size: int, padding: str) -> Tensor:
    """Where along an axis of so many pixels the padding sends each place."""
    if padding == "border":
        return places.clamp(0, size - 1)
    if padding == "reflection":  # about the middles of the outermost pixels
        folded = places.abs() % max(2 * (size - 1), 1)
        return torch.minimum(folded, 2 * (size - 1) - folded).clamp(0, size - 1)
    return places
