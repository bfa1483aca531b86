"""What each player descends, as a module: its forward returns the scalar and the terms to log.

These modules, not the bare networks, are what is compiled and what an engine wraps.
"""

from torch import Tensor, nn

from fastgan import counter
from fastgan.config import Config
from fastgan.counter import Stream
from fastgan.errors import UserError
from fastgan.losses import LOSSES, Loss

Terms = dict[str, Tensor]


def loss_of(config: Config) -> Loss:
    """The adversarial loss that the config names. Raises UserError that lists them all."""
    name = config.objective.loss
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}: choose from {', '.join(sorted(LOSSES))}")
    return LOSSES[name]


class DiscriminatorObjective(nn.Module):
    """D's loss on a batch of reals and as many fakes."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__()
        self.D, self.loss, self.seed = D, loss_of(config), config.seed

    def forward(self, reals: Tensor, fakes: Tensor, labels: Tensor | None, index: Tensor) -> tuple[Tensor, Terms]:
        """Mean loss, and terms, of images [B, C, H, W] in [-1, 1]; `index` [B] is each one's number in the run."""
        real_logits = self.D(reals, labels, counter.keys(self.seed, Stream.NOISE_REALS, index))
        fake_logits = self.D(fakes, labels, counter.keys(self.seed, Stream.NOISE_FAKES, index))
        loss = self.loss.d(real_logits, fake_logits).mean()
        terms = {"loss/D": loss, "logits/real": real_logits.mean(), "logits/fake": fake_logits.mean()}
        return loss, {name: term.detach() for name, term in terms.items()}


class GeneratorObjective(nn.Module):
    """G's loss on fakes that G has just made; D's weights stay out of the graph."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__()
        self.D, self.loss, self.seed = D, loss_of(config), config.seed

    def forward(self, fakes: Tensor, labels: Tensor | None, index: Tensor) -> tuple[Tensor, Terms]:
        """The mean loss, and the terms, of fakes [B, C, H, W] in [-1, 1]."""
        self.D.requires_grad_(False)
        fake_logits = self.D(fakes, labels, counter.keys(self.seed, Stream.NOISE_G, index))
        self.D.requires_grad_(True)
        loss = self.loss.g(fake_logits).mean()
        return loss, {"loss/G": loss.detach()}
