"""What each player descends, as a module: its forward returns the scalar and the terms to log.

These modules, not the bare networks, are what is compiled and what an engine wraps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastgan.config import Config
from fastgan.networks.layers import BatchNorm, Dropout
from fastgan.training import schedules
from fastgan.training.augment import augment
from fastgan.training.losses import logit_centring, loss_named
from fastgan.training.penalties import Critic, exact_slopes, finite_difference_slopes, one_centred, zero_centred
from fastgan.utils import rng
from fastgan.utils.rng import Stream

FD_STEP = 0.02  # of images in [-1, 1]: far above the rounding of float32 logits, below what bends them
FD_DIRECTIONS = 1
JOINED_ON_CPU = 64  # images: activations of twice as many no longer fit a CPU's caches, which costs more than calls do
Terms = dict[str, Tensor]
Judge = Callable[..., Tensor]  # images, labels and keys -> logits


class Judged(NamedTuple):
    """What D says of images, and the squared norms of its gradients in them where they were asked for: each [B]."""

    logits: Tensor
    slopes: Tensor | None = None


class Streams(NamedTuple):
    """Where the random numbers of a batch that D sees come from."""

    augment: Stream
    noise: Stream  # of D's dropout
    directions: Stream  # of finite differences


REALS = Streams(Stream.AUGMENT_D, Stream.NOISE_REALS, Stream.DIRECTIONS_REALS)
FAKES = Streams(Stream.AUGMENT_D_FAKES, Stream.NOISE_FAKES, Stream.DIRECTIONS_FAKES)


class _Objective(nn.Module):
    """What both objectives know of D, and of what stands before it."""

    def __init__(self, D: nn.Module, config: Config, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.D, self.seed, self.config = D, config.seed, config.objective
        self.loss = loss_named(config.objective.loss, label_smoothing)
        self.has_dropout = any(isinstance(layer, Dropout) for layer in D.modules())
        couples_images = any(isinstance(layer, BatchNorm) for layer in D.modules())
        self.one_by_one = couples_images or config.run.activation_checkpointing

    def changes(self, index: Tensor, *streams: Stream) -> Tensor | None:
        """Return the keys of the augmentation of as many batches as there are streams, one behind the other."""
        return None if self.config.augment == "none" else rng.keys(self.seed, streams, index)

    def noise(self, index: Tensor, *streams: Stream) -> Tensor | None:
        """Return the keys of D's dropout, likewise."""
        return rng.keys(self.seed, streams, index) if self.has_dropout else None


class DiscriminatorObjective(_Objective):
    """D's loss, penalties included, on a batch of reals and as many fakes."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__(D, config, config.objective.label_smoothing)

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
        real, fake = self._judge_both(reals, fakes, labels, index, augment_p, penalty)
        adversarial = self.loss.d(real.logits, fake.logits)
        terms = {"loss/D": adversarial, "logits/real": real.logits, "logits/fake": fake.logits}
        loss = adversarial
        for name, slopes in (("r1", real.slopes), ("r2", fake.slopes)):
            if slopes is not None:
                terms[f"penalty/{name}"] = slopes
                loss = loss + zero_centred(slopes, gamma)
        if penalty == "wgan-gp":
            share = rng.uniform(rng.keys(self.seed, Stream.MIX, index), 1).to(reals.dtype)
            critic = self._critic(labels, index, (self._of_fakes,), augment_p)
            _, slopes = exact_slopes(critic, torch.lerp(fakes, reals, share[:, :, None, None]))
            terms["penalty/slope"] = slopes.sqrt()
            loss = loss + one_centred(slopes, gamma)
        if self.config.logit_centring:
            loss = loss + self.config.logit_centring * logit_centring(real.logits, fake.logits)
        if self.config.augment != "none":
            terms["augment/r"] = (real.logits - fake.logits if self.loss.g_needs_reals else real.logits).sign()
        with torch.no_grad():
            means = torch.stack(list(terms.values())).mean(1).unbind()
        return loss.mean(), dict(zip(terms, means, strict=True))

    def _judge_both(
        self, reals: Tensor, fakes: Tensor, labels: Tensor | None, index: Tensor, p: Tensor | float, penalty: str
    ) -> tuple[Judged, Judged]:
        """Return what D says of reals and of fakes: at once where both are measured alike, as one batch of both.

        A D with BatchNorm sees each by itself, as their statistics differ; so does one whose activations are computed
        again, a layer's at a time, as that moment decides about the memory; and so do many images on a CPU.
        """
        of_reals, of_fakes = (REALS,), (self._of_fakes,)
        too_many = reals.device.type == "cpu" and len(reals) > JOINED_ON_CPU
        if penalty == "r1" or self.one_by_one or too_many:
            judged = [
                self._judge(self._critic(labels, index, streams, p), images, index, streams, penalty in measuring)
                for images, streams, measuring in ((reals, of_reals, ("r1", "r1+r2")), (fakes, of_fakes, ("r1+r2",)))
            ]
            return judged[0], judged[1]
        streams, labels = of_reals + of_fakes, None if labels is None else labels.repeat(2)
        critic = self._critic(labels, index, streams, p)
        both = self._judge(critic, torch.cat([reals, fakes]), index, streams, penalty == "r1+r2")
        slopes = (None, None) if both.slopes is None else both.slopes.chunk(2)
        real_logits, fake_logits = both.logits.chunk(2)
        return Judged(real_logits, slopes[0]), Judged(fake_logits, slopes[1])

    @property
    def _of_fakes(self) -> Streams:
        return FAKES._replace(augment=REALS.augment) if self.config.augment_pairs else FAKES

    def _critic(self, labels: Tensor | None, index: Tensor, streams: tuple[Streams, ...], p: Tensor | float) -> Critic:
        """Return D behind the augmentation, as a function of one batch for each of the streams, one after another."""
        changes = self.changes(index, *(stream.augment for stream in streams))
        noise = self.noise(index, *(stream.noise for stream in streams))
        count = max(1, len(index) * len(streams))

        def judge(images: Tensor) -> Tensor:
            copies = len(images) // count  # a finite difference judges several versions of the images at once
            if changes is not None:
                images = augment(images, changes if copies == 1 else changes.repeat(copies), p, self.config.augment)
            logits: Tensor = self.D(images, _repeated(labels, copies), _repeated(noise, copies))
            return logits

        return judge

    def _judge(
        self, critic: Critic, images: Tensor, index: Tensor, streams: tuple[Streams, ...], measure: bool
    ) -> Judged:
        if not measure:
            return Judged(critic(images))
        if self.config.penalty_form == "exact":
            return Judged(*exact_slopes(critic, images))
        keys = rng.keys(self.seed, [stream.directions for stream in streams], index)
        signs = rng.signs(keys, FD_DIRECTIONS * images[0].numel()).to(images.dtype)
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


class GeneratorObjective(_Objective):
    """G's loss on fakes that G has just made; D's weights stay out of the graph."""

    def forward(
        self, reals: Tensor, fakes: Tensor, labels: Tensor | None, index: Tensor, augment_p: Tensor | float = 0.0
    ) -> tuple[Tensor, Terms]:
        """The mean loss, and the terms, of fakes [B, C, H, W] in [-1, 1]; the reals are what a relativistic D compares
        them with.
        """
        D, noise, real_logits = _frozen(self.D), self.noise(index, Stream.NOISE_G), None
        augmentation = Stream.AUGMENT_G if self.config.augment_pairs else Stream.AUGMENT_G_FAKES
        if self.loss.g_needs_reals:
            changes = self.changes(index, Stream.AUGMENT_G, augmentation)
            if changes is not None:
                reals, fakes = augment(torch.cat([reals, fakes]), changes, augment_p, self.config.augment).chunk(2)
            with torch.no_grad():
                real_logits = D(reals, labels, noise)
        elif (changes := self.changes(index, augmentation)) is not None:
            fakes = augment(fakes, changes, augment_p, self.config.augment)
        loss = self.loss.g(real_logits, D(fakes, labels, noise)).mean()
        return loss, {"loss/G": loss.detach()}


def _frozen(D: nn.Module) -> Judge:
    """D as a function through which no gradient reaches its weights."""

    def judge(*given: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            weights = {name: weight.detach() for name, weight in D.named_parameters()}
            traced: Tensor = functional_call(D, weights, given)
            return traced
        wanted = [weight for weight in D.parameters() if weight.requires_grad]
        for weight in wanted:
            weight.requires_grad = False
        try:
            logits: Tensor = D(*given)
        finally:
            for weight in wanted:
                weight.requires_grad = True
        return logits

    return judge


def _repeated(values: Tensor | None, copies: int) -> Tensor | None:
    return values if values is None or copies == 1 else values.repeat(copies)
