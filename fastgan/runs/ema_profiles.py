"""How much an average holds of each moment of training, and how stored averages make one of another length.

A power-function average at t images holds p(tau) = (gamma + 1) tau**gamma / t**(gamma + 1) of the weights at tau, from
0 to t: its length stays the same share of training. That share is named by p's standard deviation over t,
sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2). Karras 2023 (EDM2, arXiv 2312.02696), section 3 and appendix
C. Where a step of any batch size multiplies the average by (t before / t after)**(gamma + 1), it holds of each step's
weights exactly p's integral over that step, so that what is derived here of p is true of what training tracked.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np


@cache
def gamma_of(std: float) -> float:
    """Return the exponent of the profile whose sigma_rel is `std`.

    It is a root of (gamma + 2)^2 (gamma + 3) std^2 = gamma + 1.
    """
    square = std**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def beta(images_seen: int, batch_size: int, std: float) -> float:
    """Return the average's share of its old self after the batch that starts at `images_seen`; 0 after the first."""
    return float((images_seen / (images_seen + batch_size)) ** (gamma_of(std) + 1))


def inner_product(t: np.ndarray, gamma: np.ndarray, other_t: np.ndarray, other_gamma: np.ndarray) -> np.ndarray:
    """Return the integral of the product of two profiles, elementwise, as the arrays broadcast (appendix C)."""
    end = np.minimum(t, other_t)
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    shares: np.ndarray = scale * (end / t) ** gamma * (end / other_t) ** other_gamma / np.maximum(t, other_t)
    return shares


class Fit(NamedTuple):
    """The sum of profiles that comes nearest to another one."""

    coefficients: np.ndarray  # float64, one a stored average; their sum is 1
    error: float  # what remains of the wanted profile, relative, both as root mean squares


def fit(stored: Sequence[tuple[int, float]], at: int, std: float) -> Fit:
    """Return the least-squares fit of the averages stored, (images seen, sigma_rel) each, to the one of `std` at
    `at` images.

    Unlike the paper's, the coefficients have to sum to 1, as all profiles do: weights that never moved come out as
    they were, however few averages there are. One that is stored is itself, without error.
    """
    if (at, std) in stored:
        return Fit(np.eye(len(stored))[stored.index((at, std))], 0.0)
    t = np.array([images_seen / at for images_seen, _ in stored])
    gamma = np.array([gamma_of(width) for _, width in stored])
    wanted = np.array(1.0), np.array(gamma_of(std))
    products = inner_product(t[:, None], gamma[:, None], t, gamma)
    with_wanted, wanted_square = inner_product(t, gamma, *wanted), float(inner_product(*wanted, *wanted))
    norms = np.sqrt(np.diag(products))  # early profiles are tall: the system is solved for profiles of norm 1
    system = np.zeros((len(t) + 1, len(t) + 1))  # its last row and column: Lagrange's multiplier of the sum
    system[:-1, :-1] = products / np.outer(norms, norms)
    system[:-1, -1] = system[-1, :-1] = 1 / norms
    coefficients = np.linalg.lstsq(system, np.append(with_wanted / norms, 1.0), rcond=None)[0][:-1] / norms
    rest = wanted_square - 2 * coefficients @ with_wanted + coefficients @ products @ coefficients
    return Fit(coefficients, float(np.sqrt(max(rest, 0.0) / wanted_square)))
