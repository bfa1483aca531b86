"""Measures generators against a data set, in training and afterwards."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data.folder import FolderDataset
from fastgan.data.images import ImageDataset
from fastgan.data.prepared import PreparedDataset
from fastgan.data.stacked import StackedDataset
from fastgan.data.tones import Tones
from fastgan.distributed.collectives import all_reduce_min
from fastgan.errors import UserError
from fastgan.evaluation import distances, extractors, fidelity
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.features import FeatureStatistics, collect
from fastgan.evaluation.reference import RealStatistics, Subset, real_statistics
from fastgan.evaluation.sampling import CheckpointSelector
from fastgan.runs.run_folder import session

CURVE_KID_SUBSETS = 10  # of the 2,000 images that a curve has, more tell little more, and cost the most
NO_EVALUATION = "give more images, or --eval-every 0 to train without evaluations"


@functools.cache
def made_by() -> dict[str, object]:
    """Return what made the figures of a training process, of which generator; asked for once."""
    return {"which": asdict(CheckpointSelector()), "session": session()}


def best_of(values: list[float], metric: str) -> int:
    """Return how many values came after the best one of the metric; the first of equal ones is the best."""
    ranked = [-value if fidelity.more_is_better(metric) else value for value in values]
    return len(values) - 1 - ranked.index(min(ranked))


class Evaluator:
    """Measures generators of one config against its data set, whose statistics are taken at the first use.

    All processes take part in each measurement, and all have its figures. Images with alpha are seen laid on the data
    set's background. Raises UserError for an extractor that can't see the data set's images.
    """

    def __init__(
        self,
        config: Config,
        dataset: ImageDataset,
        extractor: Extractor,
        device: torch.device,
    ) -> None:
        self.config, self.dataset, self.extractor, self.device = config, dataset, extractor, device
        if not self.counts_modes:
            tones = dataset.tones if isinstance(dataset, FolderDataset | PreparedDataset) else Tones()
            self.extractor = extractors.with_alpha(extractor, dataset.channels, tones.background, device)
        self._reals: RealStatistics | None = None

    @property
    def curve_images(self) -> int:
        """How many images an evaluation during training generates: the modes that are found depend on the number."""
        run = self.config.run
        return run.eval_images if self.counts_modes else min(run.eval_curve_images, run.eval_images)

    @property
    def counts_modes(self) -> bool:
        """Whether modes are counted, instead of distances measured."""
        return self.extractor.name == "digits" and isinstance(self.dataset, StackedDataset)

    @property
    def metrics(self) -> list[str]:
        """The names of what is measured."""
        if self.counts_modes:
            return list(fidelity.MODE_METRICS)
        return fidelity.names(self.extractor)

    def __call__(self, G: nn.Module, num_images: int, kid_subsets: int | None = None) -> dict[str, float]:
        """The metrics of `num_images` images of the seeds 0, 1, 2 …, rounded to 8 bits as saved images are.

        Where G is told classes, or vectors, those are the data set's, as often as there: see `fidelity`.
        The digits extractor counts the modes of stacked-mnist; else distances are measured, digits' legibility too.
        """
        networks = self.config.networks
        labels = None
        if networks.is_conditional and self.dataset.labels is not None:
            labels = fidelity.labels_of_data(torch.arange(num_images), self.dataset.labels)
        if self.counts_modes:
            return fidelity.count_modes(lambda numbers: self._images(G, numbers, labels), num_images, self.extractor)
        self.require_enough(num_images)
        if self._reals is None:
            self._reals = real_statistics(self.dataset, self.extractor, self.device)
        fakes = self._fakes(G, num_images, labels)
        return fidelity.measure(fakes, self._reals, self.extractor, kid_subsets)

    def require_enough(self, num_images: int) -> None:
        """Raise UserError where metrics of so many generated images can't be: said before training, not after it."""
        if not self.counts_modes:
            fidelity.require_enough(num_images, len(self.dataset), NO_EVALUATION)

    def per_class(self, G: nn.Module, num_images: int) -> dict[str, float]:
        """Return the Frechet distance of each class by itself, of `num_images` over all classes, in equal numbers.

        Class c's images are those of the seeds 0, 1, 2 … when G is told c. Raises UserError where G is told no
        classes, or a class is too small.
        """
        size, found = num_images // max(1, self.config.networks.num_classes), {}
        for number, part in enumerate(self.class_parts(num_images)):
            reals = real_statistics(part, self.extractor, self.device)
            fakes = self._fakes(G, size, torch.full([size], number))
            name = f"{fidelity.distance_name(self.extractor.name)}_class_{number}"
            found[name] = distances.frechet(fakes.gaussian, reals.gaussian)
        return found

    def class_parts(self, num_images: int) -> list[Subset]:
        """Return the real images of each class. Raises UserError as `per_class` does."""
        num_classes, labels = self.config.networks.num_classes, self.dataset.labels
        if not num_classes or labels is None:
            raise UserError(
                "per_class: the run's generator is not class-conditional, so its images have no classes: leave it out"
            )
        size, parts = num_images // num_classes, []
        for number in range(num_classes):
            part = Subset(self.dataset, (labels == number).nonzero().flatten(), f"{self.dataset.name}, class {number}")
            if min(size, len(part)) < 2:
                raise UserError(
                    f"per_class: class {number} has {len(part)} real and {size} generated images: "
                    "a distance needs two a side; give more --images, or leave it out"
                )
            parts.append(part)
        return parts

    def warnings(self, num_images: int) -> list[str]:
        """Return what must be known of figures from so few images, a line each."""
        return [] if self.counts_modes else fidelity.warnings(num_images, len(self.dataset), self.extractor)

    def protocol(self, num_images: int, kid_subsets: int | None = None) -> dict[str, object]:
        """Return what must agree before two figures may be compared."""
        found: dict[str, object] = {
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.version,
            "transform": self.extractor.transform,
            "data": self.dataset.name,
            "data_hash": self.dataset.content_hash(),
            "split": "train",
            "num_reals": len(self.dataset),
            "num_fakes": num_images,
            "sample_seeds": f"0-{num_images - 1}",
            "classes": "the data set's" if self.config.networks.is_conditional else "none",
            "truncation": "none",
            "pixels": "8 bits",
            "torch_fidelity": version("torch-fidelity"),
        }
        return found | ({} if self.counts_modes else fidelity.settings(num_images, len(self.dataset), kid_subsets))

    def _images(self, G: nn.Module, numbers: range, labels: Tensor | None) -> Tensor:
        given = None if labels is None else labels[numbers.start : numbers.stop]
        return fidelity.images_of(G, numbers, self.config.networks.z_dim, self.device, given)

    def _fakes(self, G: nn.Module, num_images: int, labels: Tensor | None) -> FeatureStatistics:
        return collect(self.extractor, num_images, lambda numbers: self._images(G, numbers, labels), self.device)


def load_on_all(
    config: Config, dataset: ImageDataset, device: torch.device, say: Callable[[str], None]
) -> Evaluator | None:
    """Return the evaluator that the config asks for, of all processes; None, on all, where one of them can't have it.

    What `auto` chose for want of Inception's weights, and why there is none, is said.
    """
    # Where machines differ, `auto` is what comes last in the list: it is on all of them, or the loading tells.
    ranked = ("efficientnet", "inception", "digits", "dinov2", extractors.CLEAN)
    name = ranked[all_reduce_min(ranked.index(extractors.name_for(config)))]
    reason: str | None = None
    try:
        extractor = extractors.load(name, device, config.run.inception_weights)
        evaluator = Evaluator(config, dataset, extractor, device)
    except UserError as error:
        reason = str(error)
    if not all_reduce_min(int(reason is None)):
        say(f"training goes on without evaluation: {reason or f'a process has no extractor {name}'}")
        return None
    if name == "efficientnet" and config.run.extractor == "auto":
        say(
            "evaluation by efficientnet, as no Inception weights are available: its figures are fd_efficientnet, no FID"
        )
    return evaluator


def check_metric(name: str | None, evaluator: Evaluator | None) -> None:
    """Check that the evaluator measures the metric. Raises UserError where it doesn't."""
    if name is not None and evaluator is not None and name not in evaluator.metrics:
        raise UserError(f"best_by is {name!r}: choose from {', '.join(evaluator.metrics)}")
