"""Convolutions of small pictures with wide kernels by Fourier transforms, which take a fraction of the multiplications.

A 5x5 kernel on a picture of 7x7 is a product in the frequencies of a circle of 9x9 points: no place that is asked for
sees around it. Each of the 40 complex products takes three real ones (Gauss), so that with the one real frequency the
whole is `out @ ((places @ x) * (taps @ w))`, matrices of 121 rows in which * is a matrix product over the channels:
only matrix products, fast and differentiable any number of times. Float32 errs little: outputs by 5e-7 of their size on
average, torch's own convolutions by 3e-7; gradients in weights by 5e-7, torch's by 2e-6.

Weights, names and results are those of torch's layers, which compute themselves where this doesn't pay: large pictures,
few channels, few images; on GPUs, where nobody has measured it; and compiled, as Dynamo can't follow how the matrices
are made.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAYS = 1.8  # as many multiplications less: beside them memory is moved


class FourierBasis(NamedTuple):
    """The matrices of one size of picture and kernel: what each of P products takes, and what it gives."""

    places: Tensor  # [P, places]
    taps: Tensor  # [P, taps]
    out: Tensor  # [places, P]


def _frequencies(points: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The frequencies of a circle: those that are real, and one of each conjugate pair; [.., 2] each."""
    grid = torch.cartesian_prod(torch.arange(points[0]), torch.arange(points[1]))
    number = grid[:, 0] * points[1] + grid[:, 1]
    mirror = (-grid[:, 0] % points[0]) * points[1] + -grid[:, 1] % points[1]
    return grid[number == mirror], grid[number < mirror]


@functools.lru_cache(maxsize=64)
def _basis(size: tuple[int, int], kernel: int, dtype: torch.dtype) -> FourierBasis:
    """For a kernel of odd side, centred: the circle is so large that its wrapped places aren't asked for."""
    with torch.inference_mode(False), torch.device("cpu"):  # whoever asks first, they serve all
        return _make_basis(size, kernel, dtype)


def _make_basis(size: tuple[int, int], kernel: int, dtype: torch.dtype) -> FourierBasis:
    reach = kernel // 2
    points = (size[0] + reach, size[1] + reach)
    real, paired = _frequencies(points)
    scale = torch.tensor(points, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).double()
    taps = reach - torch.cartesian_prod(torch.arange(kernel), torch.arange(kernel)).double()

    def waves(frequencies: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        angle = -2 * math.pi * (frequencies / scale) @ at.T
        return angle.cos(), angle.sin()

    x0, (xr, xi) = waves(real, places)[0], waves(paired, places)
    w0, (wr, wi) = waves(real, taps)[0], waves(paired, taps)
    # Three products p = (xr + xi) wr, q = xr (wi - wr), r = xi (wr + wi): the real part is p - r, the other p + q.
    # A pair of frequencies gives twice the real part of (p - r + i (p + q)) (xr - i xi) at each place.
    out = torch.cat([x0, 2 * (xr + xi), 2 * xi, -2 * xr]).T / scale.prod()
    found = torch.cat([x0, xr + xi, xr, xi]), torch.cat([w0, wr, wi - wr, wr + wi]), out
    return FourierBasis(*(matrix.to(dtype).contiguous() for matrix in found))


def is_faster(x: Tensor, size: tuple[int, int], kernel: int, taps: float, channels: tuple[int, int]) -> bool:
    """Return whether this form of a convolution of x [B, ...], with channels in and out, takes far fewer
    multiplications.

    `kernel` is the side of the kernel here, `taps` what the plain convolution multiplies for a place and two channels.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    places, (c_in, c_out) = size[0] * size[1], channels
    reach = kernel // 2
    products = 1.5 * (size[0] + reach) * (size[1] + reach)
    each = c_in * c_out + places * (c_in + c_out)
    here = products * (len(x) * each + kernel**2 * c_in * c_out)
    return PAYS * here < len(x) * places * taps * c_in * c_out


def _correlate(x: Tensor, weight: Tensor, size: tuple[int, int], kernel: int) -> Tensor:
    """[B, places, C] and [taps, C, O] -> [B, places, O], zeros around the picture."""
    forms = _basis(size, kernel, x.dtype)
    channels = weight.shape[1:]
    spectrum = (forms.taps @ weight.flatten(1)).unflatten(1, channels)  # [P, C, O]
    products = torch.bmm((forms.places @ x).transpose(0, 1), spectrum)  # [P, B, O]
    return forms.out @ products.transpose(0, 1)


class Conv2d(nn.Conv2d):
    """nn.Conv2d of stride 1, an odd kernel and zeros around, without groups."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        kernel, size = self.kernel_size[0], (x.shape[2], x.shape[3])
        if not is_faster(x, size, kernel, kernel**2, (self.in_channels, self.out_channels)):
            return super().forward(x)
        y = _correlate(x.permute(0, 2, 3, 1).flatten(1, 2), self.weight.permute(2, 3, 1, 0).flatten(0, 1), size, kernel)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(1, size).permute(0, 3, 1, 2)


class DownConv(nn.Conv2d):
    """nn.Conv2d of a 5x5 kernel, stride 2 and padding 2, of a picture with even sides.

    The four pictures of every other place, as channels of one, meet a kernel of 3x3.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, C, 2H, 2W]
        size, channels = (x.shape[2] // 2, x.shape[3] // 2), self.in_channels
        if x.shape[2] % 2 or x.shape[3] % 2 or not is_faster(x, size, 3, 25 / 4, (4 * channels, self.out_channels)):
            return super().forward(x)
        folded = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        weight = F.pad(self.weight, (0, 1, 0, 1)).unflatten(3, (3, 2)).unflatten(2, (3, 2))  # [O, C, 3, 2, 3, 2]
        weight = weight.permute(2, 4, 3, 5, 1, 0).reshape(9, 4 * channels, -1)
        y = _correlate(folded.reshape(len(x), -1, 4 * channels), weight, size, 3)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(1, size).permute(0, 3, 1, 2)


class UpConv(nn.ConvTranspose2d):
    """nn.ConvTranspose2d of a 5x5 kernel, stride 2, padding 2 and output_padding 1: a picture of twice the sides.

    A kernel of 3x3 makes four pictures, of every other place each.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # [B, C, H, W]
        size, channels = (x.shape[2], x.shape[3]), self.out_channels
        if not is_faster(x, size, 3, 25 / 4, (self.in_channels, 4 * channels)):
            return super().forward(x, output_size)
        weight = F.pad(self.weight, (0, 1, 0, 1)).unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
        weight = weight.permute(2, 4, 0, 3, 5, 1).reshape(9, self.in_channels, 4 * channels)
        y = _correlate(x.permute(0, 2, 3, 1).flatten(1, 2), weight, size, 3).view(len(x), *size, 2, 2, channels)
        y = y.transpose(2, 3).reshape(len(x), 2 * size[0], 2 * size[1], channels).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)
