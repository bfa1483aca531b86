"""A relativistic GAN with R1 and R2 as one writes it in plain PyTorch: what fastgan's step is to be faster than.

The networks have the shapes of a preset's of the family r3gan, with its dtypes; the step is D's and G's phase with
fused Adam. Convolutions are torch's own, resampling is a convolution of one channel a group, the penalties' gradients
are asked of autograd with `create_graph=True`. Left out, in its favour: augmentation, averages, schedules.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.config import Config


class PlainBlock(nn.Module):
    """x + 1x1(leaky ReLU(grouped 3x3(leaky ReLU(1x1(x))))), twice as wide inside."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.expand = _weight(inner, width, 1)
        self.grouped = _weight(inner, inner // groups, 3)
        self.project = _weight(width, inner, 1)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(inner)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (bias.to(x.dtype) for bias in self.biases)
        y = F.leaky_relu(F.conv2d(x, self.expand.to(x.dtype), first), 0.2)
        y = F.leaky_relu(F.conv2d(y, self.grouped.to(x.dtype), second, padding=1, groups=self.groups), 0.2)
        return x + F.conv2d(y, self.project.to(x.dtype))


class Resample(nn.Module):
    """Twice or half the height and width through the filter [1, 3, 3, 1] / 8, and another width if need be."""

    taps: Tensor

    def __init__(self, width: int, other: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.match = None if width == other else _weight(other, width, 1)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("taps", torch.outer(taps, taps)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.up and self.match is not None:
            x = F.conv2d(x, self.match.to(x.dtype))
        taps = self.taps.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * taps, stride=2, padding=1, groups=x.shape[1])
        x = F.conv2d(x, taps, stride=2, padding=1, groups=x.shape[1])
        return x if self.match is None else F.conv2d(x, self.match.to(x.dtype))


class Trunk(nn.Module):
    """All stages, upwards or downwards, each in its dtype."""

    def __init__(self, config: Config, up: bool) -> None:
        super().__init__()
        network = config.networks
        half = torch.float32 if network.precision == "float32" else getattr(torch, network.precision)
        levels = list(enumerate(network.stages)) if up else list(enumerate(network.stages))[::-1]
        self.layers, self.dtypes = nn.ModuleList(), []

        def append(layer: nn.Module, level: int) -> None:
            self.layers.append(layer)
            self.dtypes.append(half if level >= network.float32_stages else torch.float32)

        before = None
        for level, width in levels:
            if before is not None:
                append(Resample(before, width, up), level if up else level + 1)
            inner = width * network.expansion
            groups = max(1, inner // network.group_width) if network.group_width else 1
            for _ in range(network.blocks):
                append(PlainBlock(width, inner, groups), level)
            before = width

    def forward(self, x: Tensor) -> Tensor:
        for layer, dtype in zip(self.layers, self.dtypes, strict=True):
            x = layer(x.to(dtype))
        return x.float()


class PlainGenerator(nn.Module):
    """z and a class -> image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        network = config.networks
        side = config.data.image_size[0] >> (len(network.stages) - 1)
        self.classes = nn.Embedding(max(1, network.num_classes), 64)
        self.factors = nn.Linear(network.z_dim + 64, network.stages[0], bias=False)
        self.picture = nn.Parameter(torch.randn(1, network.stages[0], side, side))
        self.trunk = Trunk(config, up=True)
        self.output = _weight(config.data.channels, network.stages[-1], 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        factors = self.factors(torch.cat([z, self.classes(labels)], 1))
        x = (self.picture * factors[:, :, None, None]).contiguous(memory_format=torch.channels_last)
        return F.conv2d(self.trunk(x), self.output)


class PlainDiscriminator(nn.Module):
    """Image and class -> logit."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        network = config.networks
        side = config.data.image_size[0] >> (len(network.stages) - 1)
        self.input = _weight(network.stages[-1], config.data.channels, 1)
        self.trunk = Trunk(config, up=False)
        self.picture = nn.Parameter(torch.randn(1, network.stages[0], side, side) / side)
        self.features = nn.Linear(network.stages[0], max(network.stages), bias=False)
        self.classes = nn.Embedding(max(1, network.num_classes), max(network.stages))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.trunk(F.conv2d(images, self.input))
        x = self.features((x * self.picture).sum((2, 3)))
        return (x * self.classes(labels)).sum(1)


class PlainGan:
    """Both players, their optimizers and a batch of drawn images; `step` takes one step of each."""

    def __init__(self, config: Config, device: torch.device) -> None:
        size, (height, width) = config.data.batch_size, config.data.image_size
        self.G, self.D = (kind(config).to(device) for kind in (PlainGenerator, PlainDiscriminator))
        settings = {"lr": config.optimizer.g_lr, "betas": config.optimizer.betas, "fused": True}
        self.optimizers = [torch.optim.Adam(net.parameters(), **settings) for net in (self.G, self.D)]
        self.gamma, self.z_dim = config.objective.gamma or 1.0, config.networks.z_dim
        images = torch.rand(2, size, config.data.channels, height, width, device=device) * 2 - 1
        self.reals = [part.contiguous(memory_format=torch.channels_last) for part in images]
        self.labels = torch.arange(size, device=device) % max(1, config.networks.num_classes)

    def step(self) -> tuple[Tensor, Tensor]:
        """Take one step of D, then of G; return their losses."""
        G_optimizer, D_optimizer = self.optimizers
        with torch.no_grad():
            fakes = self._fakes()
        real, r1 = self._logits_and_penalty(self.reals[0])
        fake, r2 = self._logits_and_penalty(fakes)
        d_loss = (F.softplus(fake - real) + self.gamma / 2 * (r1 + r2)).mean()
        self._descend(d_loss, D_optimizer)
        self.D.requires_grad_(False)
        with torch.no_grad():
            real = self.D(self.reals[1], self.labels)
        g_loss = F.softplus(real - self.D(self._fakes(), self.labels)).mean()
        self._descend(g_loss, G_optimizer)
        self.D.requires_grad_(True)
        return d_loss.detach(), g_loss.detach()

    def _fakes(self) -> Tensor:
        images: Tensor = self.G(torch.randn(len(self.labels), self.z_dim, device=self.labels.device), self.labels)
        return images

    def _logits_and_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_()
        logits = self.D(images, self.labels)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return logits, gradient.square().sum((1, 2, 3))

    @staticmethod
    def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _weight(c_out: int, c_in: int, side: int) -> nn.Parameter:
    """Make a convolution's weight, channels last."""
    weight = torch.randn(c_out, c_in, side, side) / math.sqrt(c_in * side * side)
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
