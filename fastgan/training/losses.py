"""Logits to losses, one number an image: pure functions, on logits, never on probabilities.

a = D(x) and b = D(G(z)) are logits [B]; every function returns [B], of which a player descends the mean.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def nonsaturating_d(real_logits: Tensor, fake_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return binary cross-entropy on logits, -log D(x) - log(1 - D(G(z))) (Goodfellow 2014, 1406.2661).

    With `label_smoothing` s reals are called real with confidence 1 - s only (Salimans 2016, 1606.03498, section 3.4).
    """
    loss = F.softplus(-real_logits) + F.softplus(fake_logits)
    if label_smoothing:
        loss = (
            loss + label_smoothing * real_logits
        )  # (1 - s) softplus(-a) + s softplus(a), as softplus(a) - softplus(-a) = a
    return loss


def nonsaturating_g(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return -log D(G(z)) (Goodfellow 2014, section 3: the form with strong gradients early on)."""
    return F.softplus(-fake_logits)


def least_squares_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return (a - 1)^2 / 2 + b^2 / 2 (Mao 2016, 1611.04076, equation 8 with a = 0, b = c = 1)."""
    return ((real_logits - 1).square() + fake_logits.square()) / 2


def least_squares_g(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return (b - 1)^2 / 2 (Mao 2016, equation 8)."""
    return (fake_logits - 1).square() / 2


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return max(0, 1 - a) + max(0, 1 + b) (Lim & Ye 2017, 1705.02894)."""
    return F.relu(1 - real_logits) + F.relu(1 + fake_logits)


def wasserstein_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return b - a (Arjovsky 2017, 1701.07875); D must be kept Lipschitz by a penalty or spectral normalization."""
    return fake_logits - real_logits


def linear_g(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return -b: what G descends under the hinge and the Wasserstein loss."""
    return -fake_logits


def relativistic_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return softplus(-(a - b)) on pairs of a real and a fake.

    Jolicoeur-Martineau 2018, 1807.00734; R3GAN, 2501.05441.
    """
    return F.softplus(fake_logits - real_logits)


def relativistic_g(real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return softplus(-(b - a)) on pairs (R3GAN, equation 2): G, too, is told by D how real the reals look."""
    assert real_logits is not None
    return F.softplus(real_logits - fake_logits)


class Loss(NamedTuple):
    """An adversarial loss: what D descends and what G descends, both of (real_logits, fake_logits)."""

    d: Callable[..., Tensor]
    g: Callable[[Tensor | None, Tensor], Tensor]
    g_needs_reals: bool = False  # else G's real_logits may be None


LOSSES = {
    "nonsaturating": Loss(nonsaturating_d, nonsaturating_g),
    "least-squares": Loss(least_squares_d, least_squares_g),
    "hinge": Loss(hinge_d, linear_g),
    "wasserstein": Loss(wasserstein_d, linear_g),
    "relativistic": Loss(relativistic_d, relativistic_g, g_needs_reals=True),
}


def loss_named(name: str, label_smoothing: float = 0.0) -> Loss:
    """Return the loss of LOSSES; smoothing is the non-saturating one's. Raises KeyError for another name."""
    loss = LOSSES[name]
    return loss._replace(d=partial(loss.d, label_smoothing=label_smoothing)) if label_smoothing else loss


def logit_centring(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return (a + b)^2: holds the logits around zero, of which the relativistic loss sees differences alone."""
    return (real_logits + fake_logits).square()
