"""FID and its kin: torch-fidelity's formulas on features of real and generated images.

A metric's name ends in its extractor's. Only Inception's Frechet distance is an FID; with other features it is an FD.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan import counter
from fastgan.counter import Stream
from fastgan.data.images import ImageSource, to_bytes
from fastgan.data.order import Order
from fastgan.data.sources import cache_dir
from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.metrics.extractors import Extractor

STATISTICS_VERSION = 1
NUM_NEIGHBOR_IMAGES = 10_000  # of each side, for kernel distance, precision and recall
KID_SUBSET_SIZE = 1000
BATCH_SIZE = 250


class RealStatistics(NamedTuple):
    """What metrics need of the real images."""

    mean: np.ndarray  # [F], float64
    covariance: np.ndarray  # [F, F], float64
    features: Tensor  # [up to 10,000, F], float32: of a random part of the set
    num_images: int


def latents(seeds: Tensor, z_dim: int) -> Tensor:
    """The latents [B, z_dim] of sample seeds [B]: the same in every run, on every device."""
    return counter.normal(counter.keys(0, Stream.SAMPLES, seeds), z_dim)


def labels_for(seeds: Tensor, num_classes: int, data_labels: Tensor | None = None) -> Tensor | None:
    """The classes [B] of sample seeds [B]; None where the networks know none (`num_classes` 0).

    They take turns: seed % num_classes. Or they follow a data set with `data_labels` [N]: seed s gets the class of
    image s of its order of seed 0, so that N seeds have the data's classes, each as often as there.
    """
    if not num_classes:
        return None
    if data_labels is None:
        return seeds % num_classes
    items = Order(len(data_labels), seed=0).items(range(int(seeds.max()) + 1))
    return data_labels.to(seeds.device)[items.to(seeds.device)[seeds]]


@torch.inference_mode()
def generate(
    G: nn.Module, num_images: int, z_dim: int, device: torch.device, labels: Tensor | None = None
) -> Iterator[Tensor]:
    """uint8 batches of the images of seeds 0, 1, 2 …, of the classes `labels` [N] where G is to be told one."""
    for start in range(0, num_images, BATCH_SIZE):
        seeds = torch.arange(start, min(start + BATCH_SIZE, num_images), device=device)
        given = () if labels is None else (labels.to(device)[seeds],)
        yield to_bytes(G(latents(seeds, z_dim), *given))


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features [N, F] and logits [N, K] of all images, float32, on the CPU."""
    parts = [extractor(batch) for batch in batches]
    features, logits = (torch.cat([part[side].cpu() for part in parts]) for side in (0, 1))
    return features, logits


def moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and covariance [F, F] of features [N, F], in float64."""
    values = features.double().numpy()
    return values.mean(axis=0), np.cov(values, rowvar=False)


def real_statistics(source: ImageSource, extractor: Extractor, device: torch.device) -> RealStatistics:
    """The set's statistics, from the cache where the same images and extractor were measured before."""
    name = f"{source.content_hash()}-{extractor.name}-{extractor.version}-v{STATISTICS_VERSION}.safetensors"
    path = cache_dir() / "statistics" / name
    if path.exists():
        try:
            kept = safetensors.torch.load(path.read_bytes())
            return RealStatistics(kept["mean"].numpy(), kept["covariance"].numpy(), kept["features"], len(source))
        except (OSError, KeyError, safetensors.SafetensorError):
            pass  # a damaged cache is only a slower start
    features, _ = extract(
        extractor, (source.pixels(items).to(device) for items in torch.arange(len(source)).split(BATCH_SIZE))
    )
    mean, covariance = moments(features)
    part = features[Order(len(features), seed=0).items(range(min(len(features), NUM_NEIGHBOR_IMAGES)))]
    tensors = {"mean": torch.from_numpy(mean), "covariance": torch.from_numpy(covariance), "features": part}
    write_atomically(path, safetensors.torch.save(tensors))
    return RealStatistics(mean, covariance, part, len(source))


def measure(fakes: Tensor, logits: Tensor, reals: RealStatistics, extractor_name: str) -> dict[str, float]:
    """Metrics of generated images' features [N, F] and logits [N, K] against the reals'.

    `fid_` (`fd_` unless Inception's): Heusel 2017, 1706.08500, eq. 6. `kid_` with its standard deviation over
    subsets: Binkowski 2018, 1801.01401. `is_` with its standard deviation over ten splits: Salimans 2016, 1606.03498.
    `precision_`, `recall_`: Kynkaanniemi 2019, 1904.06991, k = 3. Raises UserError for fewer than two images a side.
    """
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    if min(len(fakes), reals.num_images) < 2:
        raise UserError(f"eval_images is {len(fakes)}: metrics need two images a side at least")
    mean, covariance = moments(fakes)
    distance = fid_statistics_to_metric(
        {"mu": mean, "sigma": covariance}, {"mu": reals.mean, "sigma": reals.covariance}, verbose=False
    )["frechet_inception_distance"]
    near = fakes[:NUM_NEIGHBOR_IMAGES]
    subset = min(KID_SUBSET_SIZE, len(near), len(reals.features))
    kid = kid_features_to_metric(near, reals.features, kid_subset_size=subset, verbose=False)
    inception_score = isc_features_to_metric(logits, splits=min(10, len(logits)))
    neighbors = prc_features_to_metric(near, reals.features, save_cpu_ram=True, verbose=False)
    return {
        f"{'fid' if extractor_name == 'inception' else 'fd'}_{extractor_name}": distance,
        f"kid_{extractor_name}": kid["kernel_inception_distance_mean"],
        f"kid_std_{extractor_name}": kid["kernel_inception_distance_std"],
        f"is_{extractor_name}": inception_score["inception_score_mean"],
        f"is_std_{extractor_name}": inception_score["inception_score_std"],
        f"precision_{extractor_name}": neighbors["precision"],
        f"recall_{extractor_name}": neighbors["recall"],
    }
