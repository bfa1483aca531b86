"""Warped pictures: torch's own numbers, and derivatives of both orders under any torch."""

import pytest
import torch
import torch.nn.functional as F

from fastgan.presets import parse_config
from fastgan.training import augment, warp
from fastgan.training.objectives import DiscriminatorObjective


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(5, 8), (1, 4), (2, 2)])
def test_gathering_is_grid_sample(mode, padding, size):
    """Also far outside of the picture, at its very edge, and where a side is a single pixel."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *size, generator=draws, dtype=torch.float64)
    grid = 4 * torch.rand(4, 6, 7, 2, generator=draws, dtype=torch.float64) - 2
    grid[0, 0] = torch.tensor([-1.0, 1.0])
    wanted = F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=True)
    torch.testing.assert_close(warp.warp_by_gathering(images, grid, mode, padding), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_gathering_is_differentiable_twice(padding):
    """gradcheck and gradgradcheck in the pictures."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 3, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    grid = 3 * torch.rand(2, 3, 4, 2, generator=draws, dtype=torch.float64) - 1.5

    def seen(images: torch.Tensor) -> torch.Tensor:
        return warp.warp_by_gathering(images, grid, "bilinear", padding)

    assert torch.autograd.gradcheck(seen, images) and torch.autograd.gradgradcheck(seen, images)


def test_older_torch_trains_the_same(monkeypatch):
    """R1 and R2 behind ADA: the objective and its gradients don't depend on whose warp it is."""
    found = []
    for torch_can in (warp.TORCH_CAN, False):
        monkeypatch.setattr(warp, "TORCH_CAN", torch_can)
        torch.manual_seed(0)
        D = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        D = Judge(D).double()
        config = parse_config(["--preset", "cifar10", "--data", "toy", "--augment", "ada"])
        reals, fakes = torch.rand(2, 4, 3, 8, 8, dtype=torch.float64)
        loss, _ = DiscriminatorObjective(D, config)(reals, fakes, None, torch.arange(4), 1.0, 1.0)
        found.append([loss, *torch.autograd.grad(loss, list(D.parameters()), allow_unused=True)[:3]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert "ada" in augment.KINDS


class Judge(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor, labels: None = None, keys: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(images).squeeze(1)
