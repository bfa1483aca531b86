"""Logits to losses, one number an image: pure functions, on logits, never on probabilities."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def nonsaturating_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Binary cross-entropy on logits, -log D(x) - log(1 - D(G(z))): [B], [B] -> [B] (Goodfellow 2014, 1406.2661)."""
    return F.softplus(-real_logits) + F.softplus(fake_logits)


def nonsaturating_g(fake_logits: Tensor) -> Tensor:
    """-log D(G(z)): [B] -> [B] (Goodfellow 2014, section 3: the form with strong gradients early on)."""
    return F.softplus(-fake_logits)


class Loss(NamedTuple):
    """An adversarial loss: what D descends and what G descends."""

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor], Tensor]


LOSSES = {"nonsaturating": Loss(nonsaturating_d, nonsaturating_g)}
