"""Do the metrics order images sensibly, and does evaluation run at its extractor's speed?

Digits: MNIST's test images, as they are and spoiled, against its training images. Faces: one half of a prepared set, as
it is and spoiled, against the other half. In turn, in the same call: bare extraction of a batch that is there already,
again and again, against evaluations of whole sets, with reading, generating, copying and sums.
"""

import functools
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from unittest import mock

import harness
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fastgan.data import named
from fastgan.data.images import ArrayDataset, ImageDataset
from fastgan.data.prepared import PreparedDataset
from fastgan.data.sampler import Sampler
from fastgan.distributed.processes import tune_malloc
from fastgan.evaluation import extractors, fidelity
from fastgan.evaluation.evaluator import CURVE_KID_SUBSETS
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.features import BATCH_SIZE, FeatureStatistics, collect
from fastgan.evaluation.reference import RealStatistics, Subset, real_statistics
from fastgan.utils.arguments import parse

NOISE = 25.0  # standard deviation, of 255
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Options:
    """Tables of metrics of real and spoiled images, and of the speed of evaluation."""

    faces: Annotated[Path | None, tyro.conf.Positional] = None
    """A prepared set of RGB images, for `efficientnet`."""
    images: int = 1400
    """Images of each half of them."""
    rounds: int = 3
    """How often speeds are measured; medians are shown."""
    speed_images: int = 1000
    """Images of a round, in whole batches."""
    only_speed: bool = False
    """No tables of metrics."""
    save: bool = False
    """Write the tables into results/."""


def noisy(images: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return (images + NOISE * torch.randn(images.shape, generator=draws)).round().clamp(0, 255).to(torch.uint8)


def repeated(images: Tensor, times: int = 10) -> Tensor:
    """A tenth of the images, each ten times."""
    return images[: -(-len(images) // times)].repeat(times, 1, 1, 1)[: len(images)]


def variants(images: Tensor, sigma: float, foreign: Tensor) -> dict[str, Tensor]:
    """The images as they are, and in ways that a metric must notice."""
    return {
        "as they are": images,
        "blurred a little": gaussian_blur(images, [9, 9], [sigma / 2] * 2),
        "blurred": gaussian_blur(images, [9, 9], [sigma] * 2),
        "noisy": noisy(images),
        "a tenth, ten times": repeated(images),
        "foreign (Fashion-MNIST)": foreign[: len(images)],
    }


def figures(images: Tensor, reals: RealStatistics, extractor: Extractor) -> dict[str, float]:
    found = collect(extractor, len(images), lambda numbers: images[numbers.start : numbers.stop].to(DEVICE), DEVICE)
    return fidelity.measure(found, reals, extractor)


def table(title: str, sets: dict[str, Tensor], reals: RealStatistics, extractor: Extractor) -> str:
    """A row a set, a column a metric."""
    found = {name: figures(images, reals, extractor) for name, images in sets.items()}
    metrics = [name for name in fidelity.names(extractor) if "_std_" not in name]
    lines = [f"## {title}", "", f"| images | {' | '.join(metrics)} |", f"| --- |{' --- |' * len(metrics)}"]
    lines += [f"| {name} | {' | '.join(f'{row[metric]:.4f}' for metric in metrics)} |" for name, row in found.items()]
    remarks = fidelity.warnings(len(next(iter(sets.values()))), reals.num_images, extractor)
    return "\n".join(lines + [""] * bool(remarks) + remarks)


def digits_table() -> str:
    extractor = extractors.load("digits", DEVICE)
    train, test, foreign = named.load("mnist"), named.load("mnist", "test"), named.load("fashion-mnist", "test")
    reals = real_statistics(train, extractor, DEVICE)
    title = f"`digits`: {len(test):,} MNIST test images against its {len(train):,} training images"
    return table(title, variants(test.images, 1.0, foreign.images), reals, extractor)


def halves(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """Two sets of different images of a prepared set, drawn at random."""
    source = PreparedDataset(folder)
    items = Sampler(len(source), seed=0).dataset_indices(range(2 * size))
    return source.pixels(items[:size]).contiguous(), source.pixels(items[size:]).contiguous()


def faces_table(folder: Path, size: int) -> str:
    extractor = extractors.load("efficientnet", DEVICE)
    first, second = halves(folder, size)
    height, width = second.shape[2:]
    gray = named.load("fashion-mnist", "test").images[:size].float()
    large = F.interpolate(gray, (height, width), mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    reals = real_statistics(ArrayDataset("half", first), extractor, DEVICE)
    title = f"`efficientnet`: {size:,} images of {folder.name} against {size:,} others"
    return table(title, variants(second, 3.0, large.expand(-1, 3, -1, -1)), reals, extractor)


class Painter(nn.Module):
    """A generator that costs next to nothing."""

    def forward(self, z: Tensor) -> Tensor:
        return F.interpolate(z.view(-1, 3, 4, 4), (128, 128))


def some(options: Options) -> ImageDataset:
    """So many real images, in whole batches: of the prepared set, where one is given, else drawn ones."""
    count = max(1, options.speed_images // BATCH_SIZE) * BATCH_SIZE
    if options.faces is None:
        draws = torch.Generator().manual_seed(0)
        return ArrayDataset("drawn", torch.randint(0, 256, (count, 3, 128, 128), generator=draws, dtype=torch.uint8))
    source = PreparedDataset(options.faces)
    count = min(count, len(source) // BATCH_SIZE * BATCH_SIZE)
    return Subset(source, Sampler(len(source), seed=0).dataset_indices(range(count)), "part")


def speed_table(options: Options) -> str:
    """Bare extraction against an evaluation's two sides and the whole of one, of efficientnet.

    And what the cache saves. Of processor time as well, which other work on the machine changes less than the clock's.
    """
    extractor, source = extractors.load("efficientnet", DEVICE), some(options)
    count, batch = len(source), source.pixels(torch.arange(BATCH_SIZE)).contiguous().to(DEVICE)
    extractor(batch)
    kept = real_statistics(source, extractor, DEVICE)

    def bare() -> None:
        for _ in range(count // BATCH_SIZE):
            extractor(batch)

    def generated() -> FeatureStatistics:
        return collect(extractor, count, lambda numbers: fidelity.images_of(Painter(), numbers, 48, DEVICE), DEVICE)

    def real() -> None:
        with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, FASTGAN_CACHE=cache):
            spent["first"].append(harness.seconds(lambda: real_statistics(source, extractor, DEVICE)))
            spent["again"].append(harness.seconds(lambda: real_statistics(source, extractor, DEVICE)))

    def whole() -> None:
        fidelity.measure(generated(), kept, extractor, CURVE_KID_SUBSETS)

    works = {"bare extractor": bare, "real images": real, "generated images": generated, "evaluation of a curve": whole}
    spent: dict[str, list[float]] = {"first": [], "again": []}
    busy: dict[str, list[float]] = {name: [] for name in works}

    def rate(name: str) -> float:
        began = time.process_time()
        seconds = harness.seconds(works[name])
        busy[name].append((time.process_time() - began) / count)
        return count / seconds

    values = harness.in_turn({name: functools.partial(rate, name) for name in works}, options.rounds)
    rates, costs = ({name: statistics.median(v) for name, v in found.items()} for found in (values, busy))
    rows = [
        f"| {name} | {harness.spread(found, 2)} | {rates[name] / rates['bare extractor']:.2f} "
        f"| {costs['bare extractor'] / costs[name]:.2f} |"
        for name, found in values.items()
    ]
    return "\n".join(
        [
            f"## Speed: {count} images of 128x128, batches of {BATCH_SIZE}",
            "",
            "| `efficientnet` | images/s | of bare | of bare, by processor time |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Real statistics of {count} images, seconds: the first time {harness.spread(spent['first'], 2)}, from the "
            f"cache {harness.spread(spent['again'], 3)}. Covariance, root and neighbours' radii are in the first; "
            f"distances, {CURVE_KID_SUBSETS} subsets for the kernel's, and neighbours in the evaluation of a curve.",
        ]
    )


def main(options: Options) -> None:
    tune_malloc()  # as training does
    parts = [] if options.only_speed else [digits_table()]
    if options.faces is not None and not options.only_speed:
        parts.append(faces_table(options.faces, options.images))
    if extractors.has_efficientnet():
        parts.append(speed_table(options))
    tables = "\n\n".join(parts)
    print(tables)
    if options.save:
        print(harness.save("metrics", "Metrics of real and spoiled images, and the speed of evaluation", tables))


if __name__ == "__main__":
    main(parse(Options, sys.argv[1:], prog="bench_metrics.py"))
