"""`fastgan evaluate RUN`: how far the run's images are from the real ones."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import nn

from fastgan.board import append_row
from fastgan.config import Config
from fastgan.data.images import ImageSource
from fastgan.data.loaders import check, open_source
from fastgan.data.stacked import StackedSet
from fastgan.metrics import extractors, fidelity, modes
from fastgan.metrics.extractors import Extractor
from fastgan.run_folder import session
from fastgan.sample import Which, open_run, to_device


class Evaluator:
    """Measures generators of one config against its data set, whose statistics are taken at the first use."""

    def __init__(self, config: Config, source: ImageSource, extractor: Extractor, device: torch.device) -> None:
        self.config, self.source, self.extractor, self.device = config, source, extractor, device

    def __call__(self, G: nn.Module, num_images: int) -> dict[str, float]:
        """The metrics of `num_images` images of the seeds 0, 1, 2 …, rounded to 8 bits as saved images are.

        Where G is told classes, those are the data set's, as often as there: see `fidelity.labels_for`.
        The digits extractor counts the modes of stacked-mnist; else distances are measured, digits' legibility too.
        """
        networks = self.config.networks
        labels = fidelity.labels_for(torch.arange(num_images), networks.num_classes, self.source.labels)
        fakes = fidelity.generate(G, num_images, networks.z_dim, self.device, labels)
        if self.extractor.name == "digits" and isinstance(self.source, StackedSet):
            found = modes.count_modes(fakes, self.extractor)
            return {"modes": found.modes, "kl": found.kl, "kl_floor": found.floor}
        reals = fidelity.real_statistics(self.source, self.extractor, self.device)
        features, logits = fidelity.extract(self.extractor, fakes)
        metrics = fidelity.measure(features, logits, reals, self.extractor.name)
        if self.extractor.name == "digits":
            confident, shares = modes.legibility_of(logits)
            metrics |= {"confident_digits": confident}
            metrics |= {"min_class_share_digits": min(shares), "max_class_share_digits": max(shares)}
        return metrics


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare a run's images with the real ones."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    images: int = 50_000
    """How many images to generate."""
    extractor: Literal["auto", "inception", "digits"] = "auto"
    """Features to compare; auto: digits for gray 28x28 images and stacked-mnist, else inception."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    which: Which = field(default_factory=Which)


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """The run's newest checkpoint is measured; the figures are printed and kept in evaluation.jsonl.

    Raises UserError for a folder without a run, a checkpoint, or the extractor's weights.
    """
    folder, config, snapshot, G = open_run(options.run, options.which)
    device = to_device()
    name = extractors.name_for(config) if options.extractor == "auto" else options.extractor
    extractor = extractors.load(name, device, options.inception_weights)
    source = open_source(config)
    check(config, source)
    metrics = Evaluator(config, source, extractor, device)(G.to(device), options.images)
    row = {
        "images_seen": snapshot.state["images_seen"],
        "which": asdict(options.which),
        "metrics": metrics,
        "protocol": protocol(extractor, source, options.images),
        "session": session(),
    }
    append_row(folder.evaluation, row)
    print(f"{snapshot.state['images_seen']:,} images seen; {options.images:,} generated, {len(source):,} real")
    for metric, value in metrics.items():
        print(f"  {metric:22} {value:10.4f}")
    return metrics


def protocol(extractor: Extractor, source: ImageSource, num_fakes: int) -> dict[str, object]:
    """What must agree before two figures may be compared."""
    return {
        "extractor": extractor.name,
        "extractor_weights": extractor.version,
        "data": source.name,
        "data_hash": source.content_hash(),
        "num_reals": len(source),
        "num_fakes": num_fakes,
        "sample_seeds": f"0-{num_fakes - 1}",
        "num_neighbor_images": fidelity.NUM_NEIGHBOR_IMAGES,
    }
