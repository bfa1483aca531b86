"""The metrics as pure functions of features: torch-fidelity's formulas in float64, and density and coverage."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan.evaluation.features import SHUFFLE_SEED, Gaussian

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
PRECISION_NEIGHBORS = 3  # Kynkaanniemi 2019
DENSITY_NEIGHBORS = 5  # Naeem 2020
ROWS = 1000  # of a matrix of distances at a time
KERNEL_ROWS = 250  # of a kernel's: so few stay in a processor's cache until they are cubed


class NeighborMetrics(NamedTuple):
    """How generated images lie among real ones, and the reverse."""

    precision: float
    recall: float
    density: float
    coverage: float


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Frechet distance of two Gaussians. Heusel 2017, 1706.08500, eq. 6.

    Tr sqrt(A B) of A = R R', B = S S' is the sum of the singular values of R' S: no root is taken of an eigenvalue
    that is 0 but for rounding, so that singular covariances, of few images, are no special case.
    """
    shared = torch.linalg.svdvals(a.root.T @ b.root).sum() if a.root.numel() and b.root.numel() else torch.tensor(0.0)
    distance = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * shared
    return float(distance)


def kernel(fakes: Tensor, reals: Tensor, subsets: int | None = None) -> tuple[float, float]:
    """Return mean and standard deviation of the unbiased squared MMD over subsets, 100 if None, of 1000 features a
    side.

    Kernel (x.y / F + 1)^3. Binkowski 2018, 1801.01401. Features [N, F]; the subsets are torch-fidelity's, and where a
    side has fewer than 1000 images they are as large as it.
    """
    size = min(KID_SUBSET_SIZE, len(fakes), len(reals))
    random = np.random.RandomState(SHUFFLE_SEED)
    sides = [_with_one(side) for side in (fakes, reals)]
    found = []
    for _ in range(subsets or KID_SUBSETS):
        x, y = (side[torch.from_numpy(random.choice(len(side), size, replace=False))] for side in sides)
        across = sum(_cubes(rows @ y.T) for rows in x.split(KERNEL_ROWS))
        found.append((_within(x) + _within(y)) / (size * (size - 1)) - 2 * across / size**2)
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def _with_one(features: Tensor) -> Tensor:
    """Features [N, F] as [N, F + 1], float64, whose products are x.y / F + 1."""
    values = features.double() / features.shape[1] ** 0.5
    return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)


def _within(x: Tensor) -> float:
    """The sum of the kernel over all pairs of different rows; each pair is computed once."""
    total, start = 0.0, 0
    for rows in x.split(KERNEL_ROWS):
        start += len(rows)
        total += _cubes(rows @ rows.T) + 2 * _cubes(rows @ x[start:].T)
    return total - _cubes(x.square().sum(1))


def _cubes(values: Tensor) -> float:
    """The sum of the values' cubes."""
    flat = values.flatten()
    return float((flat * flat).dot(flat))


def inception_score(splits: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp(mean KL(p(class | image) || p(class))).

    Salimans 2016, 1606.03498.

    From the sums [S, K + 1] of `features.FeatureStatistics`.
    """
    p, p_log_p = splits[:, :-1], splits[:, -1]
    sizes = p.sum(1)  # each image's probabilities sum to 1
    shares = p / sizes[:, None]
    scores = (p_log_p / sizes - torch.xlogy(shares, shares).sum(1)).exp()
    return float(scores.mean()), float(scores.std(correction=0))


def radii(features: Tensor) -> Tensor:
    """Return each feature's distances [N, 2], float64, to its third and fifth nearest other one of [N, F].

    Where there are fewer others, to the farthest.
    """
    most = min(DENSITY_NEIGHBORS, len(features) - 1)
    values = features.double()
    nearest = torch.cat([torch.cdist(rows, values).topk(most + 1, largest=False).values for rows in values.split(ROWS)])
    places = [min(neighbors, most) for neighbors in (PRECISION_NEIGHBORS, DENSITY_NEIGHBORS)]  # 0 is itself
    return nearest.sort(1).values[:, places]


def neighbors(fakes: Tensor, reals: Tensor, real_radii: Tensor) -> NeighborMetrics:
    """Return precision, recall, density and coverage of features [N, F] and [M, F], `real_radii` the reals' `radii`.

    precision: share of fakes inside some real's ball, as far as the real's third neighbour; recall: the reverse.
    Kynkaanniemi 2019, 1904.06991. density: in how many reals' balls a fake lies, to the fifth neighbour, over 5;
    coverage: share of reals whose ball holds some fake. Naeem 2020, 2002.09797, eq. 3 and 4.
    """
    fake_radii, values = radii(fakes)[:, 0], fakes.double()
    inside = torch.zeros(len(fakes), dtype=torch.bool)
    recalled, covered, count = 0, 0, 0
    for rows, bounds in zip(reals.double().split(ROWS), real_radii.split(ROWS), strict=True):
        distances = torch.cdist(rows, values)
        inside |= (distances <= bounds[:, :1]).any(0)
        recalled += int((distances <= fake_radii).any(1).sum())
        covered += int((distances.amin(1) <= bounds[:, 1]).sum())
        count += int((distances <= bounds[:, 1:]).count_nonzero())
    return NeighborMetrics(
        precision=float(inside.double().mean()),
        recall=recalled / len(reals),
        density=count / (DENSITY_NEIGHBORS * len(fakes)),
        coverage=covered / len(reals),
    )
