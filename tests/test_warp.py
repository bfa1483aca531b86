"""Warped pictures: torch's own numbers, and derivatives of both orders under any torch."""

import pytest
import torch
import torch.nn.functional as F

from fastgan.training.warp import warp


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(5, 8), (1, 4), (2, 2)])
def test_a_warp_is_grid_sample(mode, padding, size):
    """Values and gradients, far outside of the picture, at its very edge, and where a side is a single pixel, too."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *size, generator=draws, dtype=torch.float64, requires_grad=True)
    grid = 4 * torch.rand(4, 6, 7, 2, generator=draws, dtype=torch.float64) - 2
    grid[0, 0] = torch.tensor([-1.0, 1.0])
    wanted = F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=True)
    found = warp(images, grid, mode, padding)
    slopes = torch.randn(wanted.shape, generator=draws, dtype=torch.float64)
    assert torch.equal(found, wanted)
    assert torch.equal(*(torch.autograd.grad(seen, images, slopes)[0] for seen in (found, wanted)))


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_warp_is_differentiable_twice(mode, padding):
    """gradcheck and gradgradcheck in the pictures."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 3, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    grid = 3 * torch.rand(2, 3, 4, 2, generator=draws, dtype=torch.float64) - 1.5

    def seen(images: torch.Tensor) -> torch.Tensor:
        return warp(images, grid, mode, padding)

    assert torch.autograd.gradcheck(seen, images) and torch.autograd.gradgradcheck(seen, images)
