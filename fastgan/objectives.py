"""What each player descends, as a module: its forward returns the scalar and the terms to log.

These modules, not the bare networks, are what is compiled and what an engine wraps.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastgan import counter, schedules
from fastgan.augment import augment
from fastgan.config import Config
from fastgan.counter import Stream
from fastgan.losses import logit_centring, loss_named
from fastgan.penalties import Critic, exact_slopes, finite_difference_slopes, one_centred, zero_centred

FD_STEP = 0.02  # of images in [-1, 1]: far above the rounding of float32 logits, below what bends them
FD_DIRECTIONS = 1
Terms = dict[str, Tensor]
Judge = Callable[..., Tensor]  # images, labels and keys -> logits


class Judged(NamedTuple):
    """What D says of images, and the squared norms of its gradients in them where they were asked for: each [B]."""

    logits: Tensor
    slopes: Tensor | None = None


class DiscriminatorObjective(nn.Module):
    """D's loss, penalties included, on a batch of reals and as many fakes."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__()
        self.D, self.seed, self.config = D, config.seed, config.objective
        self.loss = loss_named(config.objective.loss, config.objective.label_smoothing)

    def forward(
        self,
        reals: Tensor,
        fakes: Tensor,
        labels: Tensor | None,
        index: Tensor,
        gamma: Tensor | float = 0.0,
        augment_p: Tensor | float = 0.0,
    ) -> tuple[Tensor, Terms]:
        """Mean loss, and terms, of images [B, C, H, W] in [-1, 1]; `index` [B] is each one's number in the run.

        A gamma that is the number 0 leaves the penalty out.
        """
        penalty = self.config.penalty if isinstance(gamma, Tensor) or gamma else "none"
        critic = partial(_critic, self.D, self.seed, self.config.augment, labels, index, augment_p)
        on_reals = critic(Stream.AUGMENT_D, Stream.NOISE_REALS)
        on_fakes = critic(Stream.AUGMENT_D if self.config.augment_pairs else Stream.AUGMENT_D_FAKES, Stream.NOISE_FAKES)
        real = self._judge(on_reals, reals, index, Stream.DIRECTIONS_REALS, penalty in ("r1", "r1+r2"))
        fake = self._judge(on_fakes, fakes, index, Stream.DIRECTIONS_FAKES, penalty == "r1+r2")
        adversarial = self.loss.d(real.logits, fake.logits)
        terms = {"loss/D": adversarial, "logits/real": real.logits, "logits/fake": fake.logits}
        loss = adversarial
        for name, slopes in (("r1", real.slopes), ("r2", fake.slopes)):
            if slopes is not None:
                terms[f"penalty/{name}"] = slopes
                loss = loss + zero_centred(slopes, gamma)
        if penalty == "wgan-gp":
            share = counter.uniform(counter.keys(self.seed, Stream.MIX, index), 1).to(reals.dtype)
            _, slopes = exact_slopes(on_fakes, torch.lerp(fakes, reals, share[:, :, None, None]))
            terms["penalty/slope"] = slopes.sqrt()
            loss = loss + one_centred(slopes, gamma)
        if self.config.logit_centring:
            loss = loss + self.config.logit_centring * logit_centring(real.logits, fake.logits)
        if self.config.augment != "none":
            terms["augment/r"] = (real.logits - fake.logits if self.loss.g_needs_reals else real.logits).sign()
        return loss.mean(), {name: term.detach().mean() for name, term in terms.items()}

    def _judge(self, critic: Critic, images: Tensor, index: Tensor, stream: Stream, measure: bool) -> Judged:
        if not measure:
            return Judged(critic(images))
        if self.config.penalty_form == "exact":
            return Judged(*exact_slopes(critic, images))
        count = FD_DIRECTIONS * images[0].numel()
        signs = counter.signs(counter.keys(self.seed, stream, index), count).to(images.dtype)
        directions = signs.unflatten(1, (FD_DIRECTIONS, *images.shape[1:])).transpose(0, 1)
        return Judged(*finite_difference_slopes(critic, images, directions, FD_STEP))


def penalty_share(config: Config, images_seen: int, means: dict[str, float]) -> float | None:
    """What R1 and R2 add to D's loss on average, as a share of the adversarial loss, from means up to `images_seen`.

    None where there is no such share.
    """
    slopes = [means[f"penalty/{name}"] for name in ("r1", "r2") if f"penalty/{name}" in means]
    if not slopes or means["loss/D"] <= 0:
        return None
    return schedules.gamma_at(config, images_seen) / 2 * sum(slopes) / means["loss/D"]


class GeneratorObjective(nn.Module):
    """G's loss on fakes that G has just made; D's weights stay out of the graph."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__()
        self.D, self.seed, self.config = D, config.seed, config.objective
        self.loss = loss_named(config.objective.loss)

    def forward(
        self, reals: Tensor, fakes: Tensor, labels: Tensor | None, index: Tensor, augment_p: Tensor | float = 0.0
    ) -> tuple[Tensor, Terms]:
        """The mean loss, and the terms, of fakes [B, C, H, W] in [-1, 1]; the reals are what a relativistic D compares
        them with.
        """
        critic = partial(_critic, _frozen(self.D), self.seed, self.config.augment, labels, index, augment_p)
        real_logits = None
        if self.loss.g_needs_reals:
            with torch.no_grad():
                real_logits = critic(Stream.AUGMENT_G, Stream.NOISE_G)(reals)
        augmentation = Stream.AUGMENT_G if self.config.augment_pairs else Stream.AUGMENT_G_FAKES
        fake_logits = critic(augmentation, Stream.NOISE_G)(fakes)
        loss = self.loss.g(real_logits, fake_logits).mean()
        return loss, {"loss/G": loss.detach()}


def _frozen(D: nn.Module) -> Judge:
    """D as a function through which no gradient reaches its weights."""
    weights = {name: weight.detach() for name, weight in D.named_parameters()}

    def judge(*given: Tensor | None) -> Tensor:
        logits: Tensor = functional_call(D, weights, given)
        return logits

    return judge


def _critic(
    D: Judge,
    seed: int,
    kind: str,
    labels: Tensor | None,
    index: Tensor,
    augment_p: Tensor | float,
    augment_stream: Stream,
    noise_stream: Stream,
) -> Critic:
    """D behind the augmentation of the images that `index` numbers, as a function of the images alone."""
    noise = counter.keys(seed, noise_stream, index)
    changes = None if kind == "none" else counter.keys(seed, augment_stream, index)

    def judge(images: Tensor) -> Tensor:
        copies = len(images) // max(len(index), 1)  # a finite difference judges several versions of a batch at once
        if changes is not None:
            images = augment(images, _repeated(changes, copies), augment_p, kind)
        return D(images, None if labels is None else _repeated(labels, copies), _repeated(noise, copies))

    return judge


def _repeated(values: Tensor, copies: int) -> Tensor:
    return values if copies == 1 else values.repeat(copies)
