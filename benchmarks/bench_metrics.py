"""Do the metrics order images sensibly, and does evaluation run at its extractor's speed?

Digits: MNIST's test images, as they are and spoiled, against its training images. Faces: one half of a prepared set, as
it is and spoiled, against the other half. In turn, in the same call: bare extraction of a batch that is there already,
again and again, against evaluations of whole sets, with reading, generating, copying and sums.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
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

from fastgan.data import sources
from fastgan.data.images import ImageSet
from fastgan.data.order import Order
from fastgan.data.prepared import PreparedSet
from fastgan.distributed import keep_freed_memory
from fastgan.flags import parse
from fastgan.metrics import extractors, fidelity
from fastgan.metrics.extractors import Extractor
from fastgan.metrics.features import BATCH_SIZE, collect
from fastgan.metrics.reals import RealStatistics, real_statistics

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
    speed_images: int = 300
    """Images of a round."""
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
    remarks = fidelity.remarks(len(next(iter(sets.values()))), reals.num_images, extractor)
    return "\n".join(lines + [""] * bool(remarks) + remarks)


def digits_table() -> str:
    extractor = extractors.load("digits", DEVICE)
    train, test, foreign = sources.load("mnist"), sources.load("mnist", "test"), sources.load("fashion-mnist", "test")
    reals = real_statistics(train, extractor, DEVICE)
    title = f"`digits`: {len(test):,} MNIST test images against its {len(train):,} training images"
    return table(title, variants(test.images, 1.0, foreign.images), reals, extractor)


def halves(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """Two sets of different images of a prepared set, drawn at random."""
    source = PreparedSet(folder)
    items = Order(len(source), seed=0).items(range(2 * size))
    return source.pixels(items[:size]).contiguous(), source.pixels(items[size:]).contiguous()


def faces_table(folder: Path, size: int) -> str:
    extractor = extractors.load("efficientnet", DEVICE)
    first, second = halves(folder, size)
    height, width = second.shape[2:]
    gray = sources.load("fashion-mnist", "test").images[:size].float()
    large = F.interpolate(gray, (height, width), mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    reals = real_statistics(ImageSet("half", first), extractor, DEVICE)
    title = f"`efficientnet`: {size:,} images of {folder.name} against {size:,} others"
    return table(title, variants(second, 3.0, large.expand(-1, 3, -1, -1)), reals, extractor)


class Painter(nn.Module):
    """A generator that costs next to nothing."""

    def forward(self, z: Tensor) -> Tensor:
        return F.interpolate(z.view(-1, 3, 4, 4), (128, 128))


def speed_table(options: Options) -> str:
    """Bare extraction against an evaluation's two sides, and what the cache saves, of efficientnet."""
    extractor, count = extractors.load("efficientnet", DEVICE), options.speed_images
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 128, 128), generator=draws, dtype=torch.uint8)
    batch, source = images[:BATCH_SIZE].to(DEVICE), ImageSet("drawn", images)
    extractor(batch)

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: count / harness.seconds(work)

    def bare() -> None:
        for _ in range(count // BATCH_SIZE):
            extractor(batch)

    def generated() -> None:
        collect(extractor, count, lambda numbers: fidelity.images_of(Painter(), numbers, 48, DEVICE), DEVICE)

    def real() -> None:
        with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, FASTGAN_CACHE=cache):
            spent["first"].append(harness.seconds(lambda: real_statistics(source, extractor, DEVICE)))
            spent["again"].append(harness.seconds(lambda: real_statistics(source, extractor, DEVICE)))

    spent: dict[str, list[float]] = {"first": [], "again": []}
    values = harness.in_turn(
        {"bare extractor": rate(bare), "generated images": rate(generated), "real images": rate(real)}, options.rounds
    )
    middle = statistics.median(values["bare extractor"])
    rows = [
        f"| {name} | {harness.spread(found, 2)} | {statistics.median(found) / middle:.2f} |"
        for name, found in values.items()
    ]
    return "\n".join(
        [
            f"## Speed: {count} images of 128x128, batches of {BATCH_SIZE}",
            "",
            "| `efficientnet` | images/s | of bare |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"Real statistics of {count} images, seconds: the first time {harness.spread(spent['first'], 2)}, from the "
            f"cache {harness.spread(spent['again'], 3)}. Covariance, root and neighbours' radii are in the first.",
        ]
    )


def main(options: Options) -> None:
    keep_freed_memory()  # as training does
    parts = [digits_table()]
    if options.faces is not None:
        parts.append(faces_table(options.faces, options.images))
    if extractors.has_efficientnet():
        parts.append(speed_table(options))
    tables = "\n\n".join(parts)
    print(tables)
    if options.save:
        print(harness.save("metrics", "Metrics of real and spoiled images, and the speed of evaluation", tables))


if __name__ == "__main__":
    main(parse(Options, sys.argv[1:], prog="bench_metrics.py"))
