"""What changes as training goes on, as pure functions of the images seen: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Any

from fastgan import presets
from fastgan.config import Config
from fastgan.runs import ema_profiles

NEAR = 2.0  # gammas that differ by less than this factor do as well
Value = Any  # a number or, in a recorded step, a tensor [] on the device


@dataclass(frozen=True)
class StepHyperparameters:
    """The settings of one step."""

    g_lr: Value
    d_lr: Value
    beta2: Value  # Adam's
    gamma: Value
    augment_p: Value
    ema_betas: tuple[Value, ...]  # one for each half-life
    power_betas: tuple[Value, ...]  # one for each of ema_stds


def cosine(start: float, end: float, images_seen: int, burn_in: int) -> float:
    """Go from `start` to `end` along half a cosine while the first `burn_in` images are seen, then `end`."""
    if images_seen >= burn_in:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * images_seen / burn_in)) / 2


def moving(config: Config, start: float, end: float | None, images_seen: int) -> float:
    """Go from `start` along the config's burn-in to `end`; without an end it stays."""
    return start if end is None else cosine(start, end, images_seen, config.optimizer.burn_in)


def decay(batch_size: int, half_life: float) -> float:
    """Return G_ema's share of its old self after a batch: 0.5 ** (batch / half-life); 0 where there is no half-life."""
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


def ema_beta(images_seen: int, batch_size: int, half_life: float, ramp: float) -> float:
    """Return `decay` where early on the half-life is at most `ramp` times the images seen.

    So first, random weights are soon forgotten.
    """
    return decay(batch_size, min(half_life, ramp * images_seen))


def legacy_decay(lr: float, decay: float, step: int) -> float:
    """Return lr / (1 + decay * step), `step` counting the steps before this one.

    It is Keras's `decay`, since 2022 a legacy.
    """
    return lr / (1 + decay * step)


def gamma_rule(image_size: tuple[int, int], batch_size: int) -> float:
    """Return 0.0002 * pixels / batch size, a start for gamma where none is known.

    Karras 2020 (ADA), 2006.06676, appendix C.
    """
    return 0.0002 * image_size[0] * image_size[1] / batch_size


def first_gamma(config: Config) -> float:
    """Return gamma at the start: the config's, else by the rule; WGAN-GP's own weight is 10."""
    if config.objective.gamma is not None:
        return config.objective.gamma
    return 10.0 if config.objective.penalty == "wgan-gp" else gamma_rule(config.data.image_size, config.data.batch_size)


def preset_gamma_note(config: Config) -> str | None:
    """Say that gamma is still the preset's where images or batches are of another size; None where that fits.

    A gamma is made for its images' pixels and its batches: by the rule it goes with the one over the other.
    """
    if config.preset not in presets.PRESETS or config.objective.penalty not in ("r1", "r1+r2"):
        return None
    theirs, gamma, end = presets.get(config.preset), config.objective.gamma, config.objective.gamma_end
    factor = gamma_rule(config.data.image_size, config.data.batch_size)
    factor /= gamma_rule(theirs.data.image_size, theirs.data.batch_size)
    if not gamma or gamma != theirs.objective.gamma or 1 / NEAR < factor < NEAR:
        return None
    kept = f"gamma {gamma:g}" if end is None else f"gamma {gamma:g} and gamma_end {end:g}"
    ruled = f"--gamma {gamma * factor:.3g}" + ("" if end is None else f" --gamma-end {end * factor:.3g}")
    (height, width), size = theirs.data.image_size, theirs.data.batch_size
    return (
        f"{kept}: {config.preset}'s, for {height}x{width} and batches of {size:,}; by the rule pixels / batch size it "
        f"would be {ruled}: try with fastgan sweep gamma"
    )


def _gamma(config: Config, gamma: float, step: int) -> float:
    """The gamma of a step: 0 where no penalty is due, and so much more where it is that their mean is gamma."""
    every = config.objective.penalty_every
    return 0.0 if config.objective.penalty == "none" or step % every else gamma * every


def gamma_at(config: Config, images_seen: int) -> float:
    """Return the mean gamma of the steps around there."""
    return moving(config, first_gamma(config), config.objective.gamma_end, images_seen)


def _ema_betas(config: Config, images_seen: int, batch_size: int, warm: bool) -> tuple[float, ...]:
    optimizer = config.optimizer
    half_lives = optimizer.ema_half_lives or (0.0,)
    if warm:
        return tuple(decay(batch_size, half_life) for half_life in half_lives)
    grown = [cosine(0.0, half_life, images_seen, optimizer.burn_in) for half_life in half_lives]
    return tuple(ema_beta(images_seen, batch_size, half_life, optimizer.ema_ramp) for half_life in grown)


def evaluate(
    config: Config, images_seen: int, batch_size: int, step: int, warm_started: bool = False
) -> StepHyperparameters:
    """Return the hparams of the step that goes from `images_seen` on by `batch_size` images, after `step` others.

    `warm`: the first weights are worth keeping, so half-lives are whole from the start (as in StyleGAN2-ADA).
    """
    optimizer, objective = config.optimizer, config.objective

    g_lr = moving(config, optimizer.g_lr, optimizer.g_lr_end, images_seen)
    d_lr = moving(config, optimizer.d_lr, optimizer.d_lr_end, images_seen)
    return StepHyperparameters(
        g_lr=legacy_decay(g_lr, optimizer.lr_decay, step),
        d_lr=legacy_decay(d_lr, optimizer.lr_decay, step),
        beta2=moving(config, optimizer.betas[1], optimizer.beta2_end, images_seen),
        gamma=_gamma(config, gamma_at(config, images_seen), step),
        augment_p=cosine(0.0, objective.augment_p, images_seen, optimizer.burn_in),
        ema_betas=_ema_betas(config, images_seen, batch_size, warm_started),
        power_betas=tuple(ema_profiles.beta(images_seen, batch_size, std) for std in optimizer.ema_stds),
    )
