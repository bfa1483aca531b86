"""`grid_sample` of pictures, differentiable any number of times in them, which R1 behind an augmentation needs.

torch 2.11's own is so once. It is linear in the pictures: it and its adjoint are each other's derivatives.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.kernels.derivatives import Context, differentiable

MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")  # by torch's numbers


def _sample(images: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=True)


def _spread(seen: Tensor, grid: Tensor, mode: str, padding: str, images: Tensor) -> Tensor:
    """The adjoint: what was seen goes back to where it came from, in pictures like `images`."""
    numbers = MODES.index(mode), PADDINGS.index(padding)
    found: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_2d_backward(
        seen, images, grid, *numbers, True, [True, False]
    )
    return found[0]


def _keep_sampled(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    images, grid, *ctx.names = inputs
    ctx.save_for_backward(images, grid)


def _of_sampled(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    images, grid = ctx.saved_tensors
    return _through_spread(grad, grid, *ctx.names, images), None, None, None


def _keep_spread(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    _, grid, *ctx.names, _ = inputs
    ctx.save_for_backward(grid)


def _of_spread(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _through_sample(grad, *ctx.saved_tensors, *ctx.names), None, None, None, None


_through_sample = differentiable("Warp", _sample, _keep_sampled, _of_sampled)
_through_spread = differentiable("WarpAdjoint", _spread, _keep_spread, _of_spread)


def warp(images: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """Return `F.grid_sample(images, grid, mode, padding, align_corners=True)`, bilinear or nearest: [B, C, H, W]."""
    seen: Tensor = _through_sample(images, grid, mode, padding)
    return seen
