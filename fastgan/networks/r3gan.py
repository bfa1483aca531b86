"""R3GAN's convolutional G and D (Huang et al. 2024, arXiv 2501.05441): residual blocks, no normalization.

G and D are each other's mirror image: stages of residual blocks with a resampling by two between them. A weight starts
normal with standard deviation gain / sqrt(fan_in); the gain is 1 outside the blocks, and inside as in Fixup (Zhang et
al. 2019, arXiv 1901.09321). Every image size is a base times a power of two: `stages_for` finds it.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.kernels.bias_act import bias_act
from fastgan.kernels.conv2d import conv2d
from fastgan.kernels.resample import downsample2, upsample2
from fastgan.networks.activation_checkpointing import Checkpointed
from fastgan.networks.layers import encode_condition

SLOPE = 0.2
CLASS_DIM = 64  # of the class embedding that G gets beside z


def stages_for(image_size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Return the base from which G leads to `image_size`, and the number of stages on the way, each twice the one
    before.

    Both sides are halved while both are even and the smaller stays 3 or more; it must end at 7 or less. (28, 28) gives
    (7, 7), 3; (96, 160) gives (3, 5), 6. Raises UserError for a size that can't be made.
    """
    height, width = image_size
    num_stages = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 6:
        height, width, num_stages = height // 2, width // 2, num_stages + 1
    if 3 <= min(height, width) <= 7:
        return (height, width), num_stages
    step = 1
    while min(image_size) > 7 * step:
        step *= 2
    near = tuple(step * max(3, round(side / step)) for side in image_size)
    raise UserError(f"image_size is {image_size}: halving both sides must take the smaller to 3 ... 7; {near} would do")


class Conv2d(nn.Conv2d):
    """A convolution that computes in its input's dtype; its weights stay in their own."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self._convolve(x, None if self.bias is None else self.bias.to(x.dtype))

    def activated(self, x: Tensor) -> Tensor:
        """Return the same behind a leaky ReLU. On a GPU that takes the bias along; on a CPU the convolution does."""
        if not x.is_cuda:
            return F.leaky_relu(self(x), SLOPE)
        return bias_act(self._convolve(x, None), self.bias, SLOPE)

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(self.padding, tuple)
        return conv2d(x, self.weight.to(x.dtype), bias, self.stride, self.padding, self.groups)


class ConvTranspose2d(nn.ConvTranspose2d):
    """The same of a transposed convolution without bias."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # [B, C, H, W]
        assert isinstance(self.padding, tuple)
        return F.conv_transpose2d(x, self.weight.to(x.dtype), None, self.stride, self.padding)


class R3Block(Checkpointed):
    """x + 1x1(leaky ReLU(grouped 3x3(leaky ReLU(1x1(x))))), `expansion` times as wide inside.

    It starts as the identity, as its last weights are 0. `num_blocks` is that of the whole network; a group has
    `group_width` channels, or all of them where they are fewer.
    """

    def __init__(self, width: int, num_blocks: int, group_width: int = 16, expansion: int = 2) -> None:
        super().__init__()
        inner, groups = width * expansion, _num_groups(width, group_width, expansion)
        self.expand = Conv2d(width, inner, 1)
        self.grouped = Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.project = Conv2d(inner, width, 1, bias=False)
        gain = math.sqrt(2 / (1 + SLOPE**2)) * num_blocks**-0.25
        _init(self.expand, gain)
        _init(self.grouped, gain)
        nn.init.zeros_(self.project.weight)

    def compute(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        y = self.expand.activated(x)  # [B, expansion C, H, W]
        y = self.grouped.activated(y)  # [B, expansion C, H, W]
        return x + self.project(y)  # [B, C, H, W]


class Downsample2(nn.Module):
    """Half the height and width, both even, after a low-pass filter; 0 is beyond the border."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return downsample2(x)


class Upsample2(nn.Module):
    """Twice the height and width through a low-pass filter; 0 is beyond the border."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return upsample2(x)


@dataclass(frozen=True)
class Shape:
    """What G and D, each other's mirror image, have in common.

    The image is `base` times 2 ** (len(stages) - 1) times `stem`. The paper's networks have a `stem` of 1; with 2 or 4
    the widest maps, where a CPU spends most of its time, are left out: one convolution with overlapping windows leads
    from a fraction of their resolution to the pixels.

    Stages in `reduced` have their resampling towards `base` in it as well, the highest one the convolution to pixels.
    Weights stay float32; so do z, the base picture, logits and, at their ends, images.
    """

    stages: Sequence[int]  # widths, from `base` up
    blocks: int | Sequence[int] = 2  # residual blocks of each stage
    group_width: int = 16  # channels of a group of the 3x3 convolutions; 0: one group
    expansion: int = 2  # how many times wider a block is inside
    base: tuple[int, int] = (4, 4)
    condition_width: int = 0
    stem: int = 1
    reduced: torch.dtype | None = None  # bfloat16 or float16, in which the stages from float32_stages up compute
    float32_stages: int = 0

    def dtype_at(self, level: int) -> torch.dtype | None:
        """Return what the stage computes in; None: in float32, or in the weights' own where that is wider."""
        return None if level < self.float32_stages else self.reduced


class R3Generator(nn.Module):
    """z -> a factor a channel of a learned base picture -> stages of blocks, up-sampling between them -> image.

    With classes or vectors a linear embedding of the image's is given beside z.
    """

    def __init__(self, z_dim: int, channels: int, shape: Shape) -> None:
        super().__init__()
        stages, base, condition_width = shape.stages, shape.base, shape.condition_width
        self.classes = _linear(condition_width, CLASS_DIM) if condition_width else None
        self.factors = _linear(z_dim + CLASS_DIM * bool(condition_width), stages[0])
        self.picture = nn.Parameter(torch.randn(1, stages[0], *base))
        levels = _build(shape)
        trunk = _named(0, levels[0])
        self._dtypes = [shape.dtype_at(0)] * len(trunk)  # of each part of the trunk
        for level in range(1, len(stages)):
            trunk |= _named(level, levels[level], [*_projection(stages[level - 1], stages[level]), Upsample2()])
            self._dtypes += [shape.dtype_at(level)] * (len(trunk) - len(self._dtypes))
        self.trunk = nn.Sequential(OrderedDict(trunk))
        self.output = _to_pixels(stages[-1], channels, shape.stem)

    def forward(self, z: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W], of any range, of latents [B, z_dim]; labels as in `encode_condition`."""
        if self.classes is not None:
            z = torch.cat([z, _embed(self.classes, labels, z.dtype)], dim=1)  # [B, z_dim + 64]
        x = self.picture * self.factors(z)[:, :, None, None]  # [B, stages[0], *base]
        images: Tensor = self.output(run_layers(self.trunk, self._dtypes, x))  # [B, C, H, W]
        return images.to(z.dtype)


class R3Discriminator(nn.Module):
    """Image -> stages of blocks, down-sampling between them -> one weighted sum a channel -> logit.

    The mirror image of R3Generator. With classes or vectors the logit is the dot product of features and an
    embedding of the image's (projection; Miyato & Koyama 2018, arXiv 1802.05637).
    """

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        stages, base, condition_width = shape.stages, shape.base, shape.condition_width
        self.input = _from_pixels(channels, stages[-1], shape.stem)
        levels = _build(shape)
        trunk = _named(len(stages) - 1, levels[-1])
        self._dtypes = [shape.dtype_at(len(stages) - 1)] * len(trunk)
        for level in range(len(stages) - 2, -1, -1):
            down = [Downsample2(), *_projection(stages[level + 1], stages[level])]
            trunk |= _named(level + 1, [], down) | _named(level, levels[level])
            self._dtypes += [shape.dtype_at(level + 1)] * len(down) + [shape.dtype_at(level)] * len(levels[level])
        self.trunk = nn.Sequential(OrderedDict(trunk))
        # A depthwise convolution to 1x1 is this product and its sum, which are faster.
        self.picture = nn.Parameter(torch.randn(1, stages[0], *base) / math.sqrt(math.prod(base)))
        features = max(stages) if condition_width else 1
        self.features = _linear(stages[0], features)
        self.classes = _linear(condition_width, features, gain=features**-0.5) if condition_width else None

    def forward(self, images: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Return logits [B] of images [B, C, H, W]; labels as in `encode_condition`."""
        # One grey channel is laid out both ways, so the convolution can't tell: it must be told what the rest wants.
        x = self.input(images if self._dtypes[0] is None else images.to(self._dtypes[0]))
        x = x.contiguous(memory_format=torch.channels_last)  # [B, stages[-1], H, W]
        x = run_layers(self.trunk, self._dtypes, x).to(self.picture.dtype)  # [B, stages[0], *base]
        x = self.features((x * self.picture).sum((2, 3)))  # [B, features]
        if self.classes is not None:
            x = x * _embed(self.classes, labels, x.dtype)
        return x.sum(1)  # [B]


def _init(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _linear(in_features: int, out_features: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=False)
    _init(layer, gain)
    return layer


def _conv1x1(c_in: int, c_out: int) -> Conv2d:
    layer = Conv2d(c_in, c_out, 1, bias=False)
    _init(layer, 1.0)
    return layer


def _from_pixels(channels: int, width: int, stem: int) -> Conv2d:
    """The image's channels to the first stage's, at 1/stem of the height and width."""
    if stem == 1:
        return _conv1x1(channels, width)
    layer = Conv2d(channels, width, 2 * stem, stem, stem // 2, bias=False)
    _init(layer, 1.0)
    return layer


def _to_pixels(width: int, channels: int, stem: int) -> Conv2d | ConvTranspose2d:
    """The last stage's channels to the image's, at `stem` times the height and width."""
    if stem == 1:
        return _conv1x1(width, channels)
    layer = ConvTranspose2d(width, channels, 2 * stem, stem, stem // 2, bias=False)
    nn.init.normal_(layer.weight, std=(4 * width) ** -0.5)  # four taps of each channel make a pixel
    return layer


def _projection(c_in: int, c_out: int) -> list[nn.Module]:
    """What leads from one width to the other: nothing where they are equal."""
    return [] if c_in == c_out else [_conv1x1(c_in, c_out)]


def _named(level: int, blocks: Sequence[nn.Module], resampling: Sequence[nn.Module] = ()) -> dict[str, nn.Module]:
    """A stage's parts, in their order, under names that count from the base: they are the same at every resolution.

    `resampling` leads between the stage and the next lower one.
    """
    parts: dict[str, nn.Module] = {}
    for part in resampling:
        parts[f"stage{level}_{'match' if isinstance(part, Conv2d) else 'resample'}"] = part
    return parts | {f"stage{level}_block{number}": block for number, block in enumerate(blocks)}


def _num_groups(width: int, group_width: int, expansion: int) -> int:
    inner = width * expansion
    if group_width == 0:
        return 1
    if inner > group_width and inner % group_width:
        step = group_width // math.gcd(group_width, expansion)
        fault = f"a stage is {width} wide: its blocks' {inner} channels don't divide into groups of {group_width}"
        raise UserError(f"{fault}; take a multiple of {step}")
    return max(1, inner // group_width)


def _build(shape: Shape) -> list[list[R3Block]]:
    """Every stage's blocks, from the base up."""
    stages, blocks = shape.stages, shape.blocks
    counts = [blocks] * len(stages) if isinstance(blocks, int) else list(blocks)
    if len(counts) != len(stages) or not stages or min(counts) < 1:
        raise UserError(f"blocks is {blocks}: give one number from 1 up, or one for each of {len(stages)} stages")
    widths = zip(stages, counts, strict=True)
    return [[R3Block(w, sum(counts), shape.group_width, shape.expansion) for _ in range(n)] for w, n in widths]


def run_layers(layers: Iterable[nn.Module], dtypes: Sequence[torch.dtype | None], x: Tensor) -> Tensor:
    """Return `x` after all layers, each in its dtype, or where that is None in `x`'s own, but in no less than
    float32.
    """
    own = torch.promote_types(x.dtype, torch.float32)
    for layer, dtype in zip(layers, dtypes, strict=True):
        x = layer(x.to(own if dtype is None else dtype))
    return x


def _embed(classes: nn.Linear, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The embeddings of classes or vectors, [B, E]."""
    embedded: Tensor = classes(encode_condition(labels, classes.in_features, dtype))
    return embedded
