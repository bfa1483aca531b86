"""What changes as training goes on, as pure functions of the images seen: nothing to save, nothing to restore."""

from dataclasses import dataclass

from fastgan.config import Config


@dataclass(frozen=True)
class Knobs:
    """The settings of one step."""

    g_lr: float
    d_lr: float
    ema_beta: float


def ema_beta(images_seen: int, batch_size: int, half_life: float, ramp: float) -> float:
    """G_ema's share of its old self after a batch: 0.5 ** (batch / half-life); 0 where there is no half-life.

    Early on the half-life is at most `ramp` times the images seen, so that the first, random weights are soon gone.
    """
    half_life = min(half_life, ramp * images_seen)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


def legacy_decay(lr: float, decay: float, step: int) -> float:
    """lr / (1 + decay * step), `step` counting the steps before this one: Keras's `decay`, since 2022 a legacy."""
    return lr / (1 + decay * step)


def at(config: Config, images_seen: int, batch_size: int, step: int) -> Knobs:
    """The knobs of the step that goes from `images_seen` on by `batch_size` images, after `step` others."""
    optimizer = config.optimizer
    beta = ema_beta(images_seen, batch_size, optimizer.ema_half_life, optimizer.ema_ramp)
    g_lr, d_lr = (legacy_decay(lr, optimizer.lr_decay, step) for lr in (optimizer.g_lr, optimizer.d_lr))
    return Knobs(g_lr, d_lr, beta)
