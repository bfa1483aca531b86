"""Generated images, and what they measure: FID and its kin.

A metric's name ends in its extractor's. Only Inception's Frechet distance is an FID; with other features it is an FD.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fastgan.config import NetworkConfig
from fastgan.data.images import to_bytes
from fastgan.data.sampler import Sampler
from fastgan.distributed.collectives import all_reduce_sum
from fastgan.errors import UserError
from fastgan.evaluation import distances, modes
from fastgan.evaluation.extractors import CLEAN, Extractor
from fastgan.evaluation.features import NUM_NEIGHBOR_IMAGES, FeatureStatistics, all_or_none, batches
from fastgan.evaluation.reference import RealStatistics
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

MODE_METRICS = ("modes", "kl", "kl_floor")
DIGIT_METRICS = ("confident_digits", "min_class_share_digits", "max_class_share_digits")
KINDS = ("kid", "kid_std", "is", "is_std", "precision", "recall", "density", "coverage")
MORE_IS_BETTER = ("is_", "precision_", "recall_", "density_", "coverage_", "confident_", "modes", "min_class")


def latents(seeds: Tensor, z_dim: int) -> Tensor:
    """Return the latents [B, z_dim] of sample seeds [B]: the same in every run, on every device."""
    return rng.normal(rng.keys(0, RngStream.SAMPLES, seeds), z_dim)


def labels_for(seeds: Tensor, num_classes: int, data_labels: Tensor | None = None) -> Tensor | None:
    """Return the classes [B] of sample seeds [B]; None where the networks know none (`num_classes` 0).

    They take turns: seed % num_classes. Or they follow a data set with `data_labels` [N]: seed s gets the class of
    image s of its order of seed 0, so that N seeds have the data's classes, each as often as there.
    """
    if not num_classes:
        return None
    if data_labels is None:
        return seeds % num_classes
    return labels_of_data(seeds, data_labels)


def labels_of_data(seeds: Tensor, data_labels: Tensor) -> Tensor:
    """Return the labels of the data set's images [N] or [N, K] that sample seeds [B] stand for, in its order of seed
    0.
    """
    order = Sampler(len(data_labels), seed=0)
    items = [order.dataset_indices(range(seed, seed + 1)) for seed in seeds.tolist()]
    return data_labels.cpu()[torch.cat(items)].to(seeds.device)


def conditions_for(seeds: Tensor, networks: NetworkConfig, data_labels: Tensor | None) -> Tensor | None:
    """Return what networks are told of sample seeds [B] where nothing is asked for: classes in turn, or vectors."""
    if networks.condition != "vector":
        return labels_for(seeds, networks.num_classes)
    assert data_labels is not None  # as `loaders.check` made sure
    return labels_of_data(seeds, data_labels)


@torch.inference_mode()
def images_of(
    G: nn.Module, seeds: Iterable[int], z_dim: int, device: torch.device, labels: Tensor | None = None
) -> Tensor:
    """Return uint8 images [B, C, H, W] of the seeds, in 8 bits as saved images are.

    G is told `labels`, where it is told any.
    """
    numbers = torch.tensor(list(seeds), device=device)
    given = () if labels is None else (labels.to(device),)
    return to_bytes(G(latents(numbers, z_dim), *given))


def distance_name(extractor_name: str) -> str:
    """Return what the Frechet distance of the extractor's features may be called."""
    return f"{'fid' if extractor_name in ('inception', CLEAN) else 'fd'}_{extractor_name}"


def names(extractor: Extractor) -> list[str]:
    """Return the metrics that `measure` finds with the extractor."""
    kinds = [kind for kind in KINDS if extractor.num_classes or not kind.startswith("is")]
    found = [distance_name(extractor.name), *(f"{kind}_{extractor.name}" for kind in kinds)]
    return found + (list(DIGIT_METRICS) if extractor.name == "digits" else [])


def more_is_better(metric: str) -> bool:
    """Return whether a larger value of the metric means better images."""
    return metric.startswith(MORE_IS_BETTER)


def require_enough(num_fakes: int, num_reals: int, remedy: str = "give more images") -> None:
    """Raise UserError for fewer than two images a side, of which there is no covariance and no pair."""
    if min(num_fakes, num_reals) < 2:
        raise UserError(f"{num_fakes:,} generated and {num_reals:,} real images: metrics need two of each; {remedy}")


def measure(
    fakes: FeatureStatistics, reals: RealStatistics, extractor: Extractor, kid_subsets: int | None = None
) -> dict[str, float]:
    """Return metrics of generated images against real ones, by name.

        `fid_` (`fd_` unless Inception's), `kid_` and `is_` with their standard deviations over subsets and splits, and
        `precision_`, `recall_`, `density_`, `coverage_`: see `distances`; all but the first and `is_` of at most 10,000
    a side. Of the digits extractor, how legible the generated images are, too.
    """
    name = extractor.name
    kernel, kernel_std = distances.kernel(fakes.features, reals.features, kid_subsets)
    found = {
        distance_name(name): distances.frechet(fakes.gaussian, reals.gaussian),
        f"kid_{name}": kernel,
        f"kid_std_{name}": kernel_std,
    }
    if extractor.num_classes:
        found[f"is_{name}"], found[f"is_std_{name}"] = distances.inception_score(fakes.splits)
    near = distances.neighbors(fakes.features, reals.features, reals.radii)
    found |= {f"{kind}_{name}": value for kind, value in near._asdict().items()}
    if name == "digits":
        confident, shares = modes.legibility_from(fakes.legible)
        found |= dict(zip(DIGIT_METRICS, (confident, min(shares), max(shares)), strict=True))
    return found


def count_modes(images: Callable[[range], Tensor], num_images: int, digits: Extractor) -> dict[str, float]:
    """Return how generated images spread over the modes of stacked-mnist; `images` as `features.collect` has them."""
    with all_or_none():
        counts = modes.mode_counts(map(images, batches(num_images)), digits)
    found = modes.score(all_reduce_sum(counts))
    return dict(zip(MODE_METRICS, (found.modes, found.kl, found.floor), strict=True))


def warnings(num_fakes: int | None, num_reals: int | None, extractor: Extractor) -> list[str]:
    """Return what must be known of figures from so few images, a line each; none where there are enough.

    None: how many there are isn't known.
    """
    found = []
    for kind, count in (("generated", num_fakes), ("real", num_reals)):
        if count is not None and count <= extractor.num_features:
            found.append(
                f"{count:,} {kind} images for {extractor.num_features:,} features of {extractor.name}: their "
                f"covariance is singular, {distance_name(extractor.name)} compares only with that of as many images"
            )
    return found


def settings(num_fakes: int, num_reals: int, kid_subsets: int | None = None) -> dict[str, object]:
    """Return what else the metrics depend on, for the protocol beside them."""
    near = [min(count, NUM_NEIGHBOR_IMAGES) for count in (num_fakes, num_reals)]
    return {
        "num_neighbor_images": NUM_NEIGHBOR_IMAGES,
        "kid_subsets": kid_subsets or distances.KID_SUBSETS,
        "kid_subset_size": min(distances.KID_SUBSET_SIZE, *near),
        "precision_neighbors": distances.PRECISION_NEIGHBORS,
        "density_neighbors": distances.DENSITY_NEIGHBORS,
    }
