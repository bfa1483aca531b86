"""Deep convolutional GAN for 28x28 images (after Radford 2015, arXiv 1511.06434), with Keras's constants.

Other sizes work as well, both sides a multiple of 4: the pictures inside are a quarter and a half as large. While these
are small, the three wide convolutions are computed by Fourier transforms, see fourier.py.

Spatial padding is symmetric where Keras's `same` is one pixel longer at the right and bottom: with all weights
mirrored in both axes these networks compute the mirror image of their Keras twins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.networks import fourier
from fastgan.networks.layers import BatchNorm, Dropout, init_keras

SLOPE = 0.3  # Keras's LeakyReLU
NORM = {"eps": 1e-3, "momentum": 0.01}  # Keras's BatchNormalization; its momentum 0.99 is torch's 0.01


def _channels(base: int, width: float) -> int:
    return max(1, round(base * width))


def quarter(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return a fourth of height and width, both multiples of 4."""
    assert image_size[0] % 4 == image_size[1] % 4 == 0
    return image_size[0] // 4, image_size[1] // 4


class Generator28(nn.Module):
    """z -> dense 7x7x256 -> 128 at 7x7 -> 64 at 14x14 -> image at 28x28, transposed 5x5 convolutions.

    The first transposed convolution has stride 1 and so is a plain convolution with its kernel mirrored; it is written
    as one, since that is faster.
    """

    def __init__(self, z_dim: int, channels: int, width: float = 1.0, image_size: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        self.start = quarter(image_size)
        pixels = self.start[0] * self.start[1]
        c7, c7b, c14 = (_channels(base, width) for base in (256, 128, 64))
        self.dense = nn.Linear(z_dim, pixels * c7, bias=False)
        self.norm_dense = BatchNorm(pixels * c7, **NORM)
        self.conv7 = fourier.Conv2d(c7, c7b, 5, padding=2, bias=False)
        self.norm7 = BatchNorm(c7b, **NORM)
        self.up14 = fourier.UpConv(c7b, c14, 5, stride=2, padding=2, output_padding=1, bias=False)
        self.norm14 = BatchNorm(c14, **NORM)
        self.up28 = nn.ConvTranspose2d(c14, channels, 5, stride=2, padding=2, output_padding=1, bias=False)
        self.apply(init_keras)

    def forward(self, z: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return images [B, C, 28, 28] in [-1, 1] of latents [B, z_dim]; labels and keys are not used."""
        x = F.leaky_relu(self.norm_dense(self.dense(z)), SLOPE)
        x = x.view(z.shape[0], *self.start, -1).permute(0, 3, 1, 2)  # Keras's order of units is channels last
        x = F.leaky_relu(self.norm7(self.conv7(x)), SLOPE)  # [B, 128, 7, 7]
        x = F.leaky_relu(self.norm14(self.up14(x)), SLOPE)  # [B, 64, 14, 14]
        return torch.tanh(self.up28(x))  # [B, C, 28, 28]


class Discriminator28(nn.Module):
    """Image -> 64 at 14x14 -> 128 at 7x7 -> one logit; 5x5 convolutions of stride 2, dropout 0.3 after each."""

    def __init__(self, channels: int, width: float = 1.0, image_size: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        rows, columns = quarter(image_size)
        c14, c7 = (_channels(base, width) for base in (64, 128))
        self.down14 = nn.Conv2d(channels, c14, 5, stride=2, padding=2)
        self.drop14 = Dropout(0.3, layer=1)
        self.down7 = fourier.DownConv(c14, c7, 5, stride=2, padding=2)
        self.drop7 = Dropout(0.3, layer=2)
        self.dense = nn.Linear(rows * columns * c7, 1)
        self.apply(init_keras)

    def forward(self, images: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return logits [B] of images [B, C, 28, 28]; `keys` [B] choose what dropout drops; labels are not used."""
        x = self.drop14(F.leaky_relu(self.down14(images), SLOPE), keys)  # [B, 64, 14, 14]
        x = self.drop7(F.leaky_relu(self.down7(x), SLOPE), keys)  # [B, 128, 7, 7]
        return self.dense(x.permute(0, 2, 3, 1).flatten(1)).squeeze(1)  # [B]
