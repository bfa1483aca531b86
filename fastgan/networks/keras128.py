"""Deep convolutional GAN for 128x128 images (after Radford 2015, arXiv 1511.06434), as Keras courses wrote it.

G and D are each other's mirror image. All convolutions are 4x4 with stride 2, which need one pixel of padding on each
side: here Keras's `same` and torch's symmetric padding are one.

Every BatchNorm stands where a channel has at least 8x8 values an image, after the dense layer too (its output is given
its place in the picture first). So a batch may be as small as one image, as the last of an epoch may be: its statistics
are then those of the pixels of that image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.networks.layers import BatchNorm, init_keras

SLOPE = 0.2
NORM = {"eps": 1e-3, "momentum": 0.2}  # Keras's BatchNormalization(momentum=0.8), whose complement is torch's 0.2
WIDTHS = (32, 64, 128, 256)  # at 64x64, 32x32, 16x16 and 8x8


def _widths(width: float) -> list[int]:
    return [max(1, round(base * width)) for base in WIDTHS]


class Generator128(nn.Module):
    """z -> dense 8x8x256 -> 128 at 16x16 -> 64 at 32x32 -> 32 at 64x64 -> image at 128x128, transposed convolutions.

    BatchNorm and LeakyReLU follow the dense layer and each convolution but the last.
    """

    def __init__(self, z_dim: int, channels: int, width: float = 1.0) -> None:
        super().__init__()
        c64, c32, c16, c8 = _widths(width)
        self.dense = nn.Linear(z_dim, 8 * 8 * c8, bias=False)
        self.norm8 = BatchNorm(c8, **NORM)
        self.up16, self.norm16 = _up(c8, c16), BatchNorm(c16, **NORM)
        self.up32, self.norm32 = _up(c16, c32), BatchNorm(c32, **NORM)
        self.up64, self.norm64 = _up(c32, c64), BatchNorm(c64, **NORM)
        self.up128 = _up(c64, channels, bias=True)
        self.apply(init_keras)

    def forward(self, z: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return images [B, C, 128, 128] in [-1, 1] of latents [B, z_dim]; labels and keys are not used."""
        x = self.dense(z).view(z.shape[0], 8, 8, -1).permute(0, 3, 1, 2)  # Keras's order of units is channels last
        x = F.leaky_relu(self.norm8(x), SLOPE)  # [B, 256, 8, 8]
        x = F.leaky_relu(self.norm16(self.up16(x)), SLOPE)  # [B, 128, 16, 16]
        x = F.leaky_relu(self.norm32(self.up32(x)), SLOPE)  # [B, 64, 32, 32]
        x = F.leaky_relu(self.norm64(self.up64(x)), SLOPE)  # [B, 32, 64, 64]
        return torch.tanh(self.up128(x))  # [B, C, 128, 128]


class Discriminator128(nn.Module):
    """Image -> 32 at 64x64 -> 64 at 32x32 -> 128 at 16x16 -> 256 at 8x8 -> one logit.

    LeakyReLU follows each convolution, BatchNorm each but the first. The logit's sigmoid is the confidence that the
    image is real. Binary cross-entropy on the logit is the function that sigmoid and binary cross-entropy are one after
    the other, without the infinities of a confidence that was rounded to 0 or 1.
    """

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        c64, c32, c16, c8 = _widths(width)
        self.down64 = _down(channels, c64, bias=True)
        self.down32, self.norm32 = _down(c64, c32), BatchNorm(c32, **NORM)
        self.down16, self.norm16 = _down(c32, c16), BatchNorm(c16, **NORM)
        self.down8, self.norm8 = _down(c16, c8), BatchNorm(c8, **NORM)
        self.dense = nn.Linear(8 * 8 * c8, 1)
        self.apply(init_keras)

    def forward(self, images: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return logits [B] of images [B, C, 128, 128]; labels and keys are not used."""
        x = F.leaky_relu(self.down64(images), SLOPE)  # [B, 32, 64, 64]
        x = F.leaky_relu(self.norm32(self.down32(x)), SLOPE)  # [B, 64, 32, 32]
        x = F.leaky_relu(self.norm16(self.down16(x)), SLOPE)  # [B, 128, 16, 16]
        x = F.leaky_relu(self.norm8(self.down8(x)), SLOPE)  # [B, 256, 8, 8]
        return self.dense(x.permute(0, 2, 3, 1).flatten(1)).squeeze(1)  # [B]


def _up(c_in: int, c_out: int, bias: bool = False) -> nn.ConvTranspose2d:
    """Twice the height and width; a bias would be lost in a BatchNorm that follows."""
    return nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=bias)


def _down(c_in: int, c_out: int, bias: bool = False) -> nn.Conv2d:
    """Half the height and width; a bias would be lost in a BatchNorm that follows."""
    return nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=bias)
