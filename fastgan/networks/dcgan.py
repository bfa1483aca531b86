"""Small, quick networks for CPUs and easy data: DCGAN's plain convolutions (Radford 2015, arXiv 1511.06434).

G has BatchNorm after each layer but the last; D has no normalization, so that each image has a gradient of its own for
a penalty. All convolutions are 4x4 with stride 2: an image is a base times a power of two, one stage for each doubling.

Transposed convolutions leave a checkerboard (Odena et al. 2016, distill.pub/2016/deconv-checkerboard), which D sees at
once and G unlearns slowly. Here they begin as bilinear upsampling, as sub-pixel convolutions may begin as that of the
nearest pixel (Aitken 2017, arXiv 1707.02937), and the filter [1, 2, 1] / 4 may follow the last of them.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.networks.layers import BatchNorm, encode_condition

SLOPE = 0.2
INIT_STD = 0.02  # of all weights (DCGAN, section 3)


class Generator(nn.Module):
    """z -> dense `base` -> transposed convolutions -> image of `base` times 2 ** len(stages).

    `stages` are the widths from `base` up; the image comes after the last of them. A condition stands beside z.
    A smooth image is filtered before its tanh, along with the pixels around it.
    """

    binomial: Tensor | None

    def __init__(
        self,
        z_dim: int,
        channels: int,
        stages: Sequence[int],
        base: tuple[int, int],
        condition_width: int = 0,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.condition_width = base, condition_width
        self.dense = nn.Linear(z_dim + condition_width, base[0] * base[1] * stages[0], bias=False)
        self.norms = nn.ModuleList(BatchNorm(width) for width in stages)
        pairs = itertools.pairwise(stages)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False) for c_in, c_out in pairs)
        self.output = nn.ConvTranspose2d(stages[-1], channels, 4, 2, 0 if smooth else 1)
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        binomial = (taps * taps[:, None]).repeat(channels, 1, 1, 1)  # [C, 1, 3, 3]
        self.register_buffer("binomial", binomial if smooth else None, persistent=False)
        self.apply(_init)

    def forward(self, z: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] in [-1, 1] of latents [B, z_dim]; labels as in `encode_condition`."""
        if self.condition_width:
            z = torch.cat([z, encode_condition(labels, self.condition_width, z.dtype)], dim=1)
        x = self.dense(z).view(z.shape[0], *self.base, -1).permute(0, 3, 1, 2)
        x = F.leaky_relu(self.norms[0](x), SLOPE)  # [B, stages[0], *base]
        for up, norm in zip(self.ups, self.norms[1:], strict=True):
            x = F.leaky_relu(norm(up(x)), SLOPE)
        x = self.output(x)
        if self.binomial is not None:
            x = F.conv2d(x, self.binomial, groups=len(self.binomial))
        return torch.tanh(x)  # [B, C, H, W]


class Discriminator(nn.Module):
    """Image -> convolutions, LeakyReLU after each -> one logit: the mirror image of Generator, with its arguments.

    With classes the logit is the sum of one that all share and of the class's own (projection; Miyato & Koyama 2018,
    arXiv 1802.05637); with vectors, of one that all share and of the product of a projection and the vector.
    """

    def __init__(self, channels: int, stages: Sequence[int], base: tuple[int, int], condition_width: int = 0) -> None:
        super().__init__()
        self.input = nn.Conv2d(channels, stages[-1], 4, 2, 1)
        pairs = itertools.pairwise(stages)
        self.downs = nn.ModuleList(nn.Conv2d(c_in, c_out, 4, 2, 1) for c_out, c_in in pairs)  # from `base` up
        features = base[0] * base[1] * stages[0]
        self.dense = nn.Linear(features, 1, bias=False)
        self.classes = nn.Linear(features, condition_width, bias=False) if condition_width else None
        self.apply(_init)

    def forward(self, images: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return logits [B] of images [B, C, H, W]; labels as in `encode_condition`."""
        x = F.leaky_relu(self.input(images), SLOPE)
        for down in reversed(self.downs):
            x = F.leaky_relu(down(x), SLOPE)
        x = x.permute(0, 2, 3, 1).flatten(1)
        logits: Tensor = self.dense(x).squeeze(1)  # [B]
        if self.classes is not None:
            logits = logits + (self.classes(x) * encode_condition(labels, self.classes.out_features, x.dtype)).sum(1)
        return logits


def _init(module: nn.Module) -> None:
    """DCGAN's weights; transposed convolutions are 1x1 convolutions of such weights and bilinear upsampling."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.ConvTranspose2d):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / math.sqrt(5)  # their mean square is 1
        with torch.no_grad():
            module.weight.copy_(module.weight[:, :, :1, :1] * taps * taps[:, None])
