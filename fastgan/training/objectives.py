"""The objective of D and of G, each a module whose forward returns the scalar loss and the metrics to log.

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
from fastgan.training.penalties import (
    ImagesToLogits,
    finite_difference_sq_norm,
    gradient_sq_norm,
    wgan_gp_penalty,
    zero_centered_penalty,
)
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

FD_STEP = 0.02  # of images in [-1, 1]: far above the rounding of float32 logits, below what bends them
FD_DIRECTIONS = 1
JOINED_ON_CPU = 64  # images: activations of twice as many no longer fit a CPU's caches, which costs more than calls do
Metrics = dict[str, Tensor]
DiscriminatorFunction = Callable[..., Tensor]  # images, labels and keys -> logits


class DOutput(NamedTuple):
    """What D says of images, and the squared norms of its gradients in them where they were asked for: each [B]."""

    logits: Tensor
    grad_sq_norm: Tensor | None = None


class Streams(NamedTuple):
    """Where the random numbers of a batch that D sees come from."""

    augment: RngStream
    noise: RngStream  # of D's dropout
    directions: RngStream  # of finite differences


REALS = Streams(RngStream.AUGMENT_D, RngStream.NOISE_REALS, RngStream.DIRECTIONS_REALS)
FAKES = Streams(RngStream.AUGMENT_D_FAKES, RngStream.NOISE_FAKES, RngStream.DIRECTIONS_FAKES)


class _Objective(nn.Module):
    """D, the loss by it, and the random numbers of what stands before it."""

    def __init__(self, D: nn.Module, config: Config, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.D, self.seed, self.config = D, config.seed, config.objective
        self.loss = loss_named(config.objective.loss, label_smoothing)
        self.has_dropout = any(isinstance(layer, Dropout) for layer in D.modules())
        couples_images = any(isinstance(layer, BatchNorm) for layer in D.modules())
        self.one_by_one = couples_images or config.run.activation_checkpointing

    def changes(self, sample_ids: Tensor, *streams: RngStream) -> Tensor | None:
        """Return the keys of the augmentation of as many batches as there are streams, one behind the other."""
        return None if self.config.augment == "none" else rng.keys(self.seed, streams, sample_ids)

    def noise(self, sample_ids: Tensor, *streams: RngStream) -> Tensor | None:
        """Return the keys of D's dropout, likewise."""
        return rng.keys(self.seed, streams, sample_ids) if self.has_dropout else None


class DiscriminatorObjective(_Objective):
    """D's loss, penalties included, on a batch of reals and as many fakes."""

    def __init__(self, D: nn.Module, config: Config) -> None:
        super().__init__(D, config, config.objective.label_smoothing)

    def forward(
        self,
        reals: Tensor,
        fakes: Tensor,
        labels: Tensor | None,
        sample_ids: Tensor,
        gamma: Tensor | float = 0.0,
        augment_p: Tensor | float = 0.0,
    ) -> tuple[Tensor, Metrics]:
        """Return the mean loss and the metrics of images [B, C, H, W] in [-1, 1].

        `sample_ids` [B] are their numbers in the run, of which all that is random here is a function.

        A gamma that is the number 0 leaves the penalty out.
        """
        penalty = self.config.penalty if isinstance(gamma, Tensor) or gamma else "none"
        real, fake = self._discriminate_both(reals, fakes, labels, sample_ids, augment_p, penalty)
        adversarial = self.loss.d(real.logits, fake.logits)
        metrics = {"loss/D": adversarial, "logits/real": real.logits, "logits/fake": fake.logits}
        loss = adversarial
        for name, sq_norm in (("r1", real.grad_sq_norm), ("r2", fake.grad_sq_norm)):
            if sq_norm is not None:
                metrics[f"penalty/{name}"] = sq_norm
                loss = loss + zero_centered_penalty(sq_norm, gamma)
        if penalty == "wgan-gp":
            ratio = rng.uniform(rng.keys(self.seed, RngStream.MIX, sample_ids), 1).to(reals.dtype)
            D = self._augmented_discriminator(labels, sample_ids, (self._of_fakes,), augment_p)
            _, sq_norm = gradient_sq_norm(D, torch.lerp(fakes, reals, ratio[:, :, None, None]))
            metrics["penalty/slope"] = sq_norm.sqrt()
            loss = loss + wgan_gp_penalty(sq_norm, gamma)
        if self.config.logit_centring:
            loss = loss + self.config.logit_centring * logit_centring(real.logits, fake.logits)
        if self.config.augment != "none":
            metrics["augment/r"] = (real.logits - fake.logits if self.loss.g_needs_reals else real.logits).sign()
        with torch.no_grad():
            means = torch.stack(list(metrics.values())).mean(1).unbind()
        return loss.mean(), dict(zip(metrics, means, strict=True))

    def _discriminate_both(
        self, reals: Tensor, fakes: Tensor, labels: Tensor | None, sample_ids: Tensor, p: Tensor | float, penalty: str
    ) -> tuple[DOutput, DOutput]:
        """Return what D says of reals and of fakes: at once where both are measured alike, as one batch of both.

        A D with BatchNorm sees each by itself, as their statistics differ; so does one whose activations are computed
        again, a layer's at a time, as that moment decides about the memory; and so do many images on a CPU.
        """
        too_many = reals.device.type == "cpu" and len(reals) > JOINED_ON_CPU
        if penalty == "r1" or self.one_by_one or too_many:
            real = self._discriminate(reals, labels, sample_ids, (REALS,), p, penalty in ("r1", "r1+r2"))
            fake = self._discriminate(fakes, labels, sample_ids, (self._of_fakes,), p, penalty == "r1+r2")
            return real, fake
        images, labels = torch.cat([reals, fakes]), _repeated(labels, 2)
        both = self._discriminate(images, labels, sample_ids, (REALS, self._of_fakes), p, penalty == "r1+r2")
        sq_norms = (None, None) if both.grad_sq_norm is None else both.grad_sq_norm.chunk(2)
        real_logits, fake_logits = both.logits.chunk(2)
        return DOutput(real_logits, sq_norms[0]), DOutput(fake_logits, sq_norms[1])

    @property
    def _of_fakes(self) -> Streams:
        return FAKES._replace(augment=REALS.augment) if self.config.augment_pairs else FAKES

    def _augmented_discriminator(
        self, labels: Tensor | None, sample_ids: Tensor, streams: tuple[Streams, ...], p: Tensor | float
    ) -> ImagesToLogits:
        """Return D behind the augmentation, as a function of one batch for each of the streams, one after another."""
        changes = self.changes(sample_ids, *(stream.augment for stream in streams))
        noise = self.noise(sample_ids, *(stream.noise for stream in streams))
        count = max(1, len(sample_ids) * len(streams))

        def discriminate(images: Tensor) -> Tensor:
            copies = len(images) // count  # a finite difference takes several versions of the images at once
            if changes is not None:
                images = augment(images, changes if copies == 1 else changes.repeat(copies), p, self.config.augment)
            logits: Tensor = self.D(images, _repeated(labels, copies), _repeated(noise, copies))
            return logits

        return discriminate

    def _discriminate(
        self,
        images: Tensor,
        labels: Tensor | None,
        sample_ids: Tensor,
        streams: tuple[Streams, ...],
        p: Tensor | float,
        with_sq_norm: bool,
    ) -> DOutput:
        """Return what D says of a batch for each of the streams, with the squared norms of its gradients if wanted."""
        D = self._augmented_discriminator(labels, sample_ids, streams, p)
        if not with_sq_norm:
            return DOutput(D(images))
        if self.config.penalty_form == "exact":
            return DOutput(*gradient_sq_norm(D, images))
        keys = rng.keys(self.seed, [stream.directions for stream in streams], sample_ids)
        signs = rng.rademacher(keys, FD_DIRECTIONS * images[0].numel()).to(images.dtype)
        directions = signs.unflatten(1, (FD_DIRECTIONS, *images.shape[1:])).transpose(0, 1)
        return DOutput(*finite_difference_sq_norm(D, images, directions, FD_STEP))


def penalty_ratio(config: Config, images_seen: int, means: dict[str, float]) -> float | None:
    """Return the ratio of what R1 and R2 add to D's loss to the adversarial loss, from means up to `images_seen`.

    None where there is no such ratio.
    """
    sq_norms = [means[f"penalty/{name}"] for name in ("r1", "r2") if f"penalty/{name}" in means]
    if not sq_norms or means["loss/D"] <= 0:
        return None
    return schedules.gamma_at(config, images_seen) / 2 * sum(sq_norms) / means["loss/D"]


class GeneratorObjective(_Objective):
    """G's loss on fakes that G has just made; D's weights stay out of the graph."""

    def forward(
        self, reals: Tensor, fakes: Tensor, labels: Tensor | None, sample_ids: Tensor, augment_p: Tensor | float = 0.0
    ) -> tuple[Tensor, Metrics]:
        """Return the mean loss and the metrics of fakes [B, C, H, W] in [-1, 1].

        A relativistic D compares them with the reals.
        """
        D, noise, real_logits = _frozen(self.D), self.noise(sample_ids, RngStream.NOISE_G), None
        augmentation = RngStream.AUGMENT_G if self.config.augment_pairs else RngStream.AUGMENT_G_FAKES
        if self.loss.g_needs_reals:
            changes = self.changes(sample_ids, RngStream.AUGMENT_G, augmentation)
            if changes is not None:
                reals, fakes = augment(torch.cat([reals, fakes]), changes, augment_p, self.config.augment).chunk(2)
            with torch.no_grad():
                real_logits = D(reals, labels, noise)
        elif (changes := self.changes(sample_ids, augmentation)) is not None:
            fakes = augment(fakes, changes, augment_p, self.config.augment)
        loss = self.loss.g(real_logits, D(fakes, labels, noise)).mean()
        return loss, {"loss/G": loss.detach()}


def _frozen(D: nn.Module) -> DiscriminatorFunction:
    """Return D as a function through which no gradient reaches its weights."""

    def discriminate(*given: Tensor | None) -> Tensor:
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

    return discriminate


def _repeated(values: Tensor | None, copies: int) -> Tensor | None:
    return values if values is None or copies == 1 else torch.cat([values] * copies)
