"""`fastgan evaluate RUN`: how far the run's images are from the real ones."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastgan.distributed.collectives import rank_and_world_size
from fastgan.errors import UserError
from fastgan.evaluation import extractors
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.sampling import (
    MAX_TRUNCATION,
    CheckpointSelector,
    Truncated,
    launch_device,
    open_run,
    open_training_set,
)
from fastgan.run_config import MAX_EVAL_IMAGES, ExtractorName
from fastgan.runs.rows import put_row
from fastgan.runs.run_folder import session
from fastgan.utils.fields import require_positive


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare a run's images with the real ones."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder; or an export of it, with --data."""
    images: int = 50_000
    """How many images to generate."""
    extractor: ExtractorName = "auto"
    """Features to compare; inception_clean: inception behind clean-fid's resizing; auto: digits for gray 28x28 images
    and stacked-mnist, else inception where its weights are available, else efficientnet where it is installed."""
    data: str | None = None
    """Where the run's data set is now, if it has moved."""
    per_class: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure the distance of each class by itself, too, of a run with classes."""
    truncation: float = 1.0
    """Scales the latents: below 1 images are better and more alike, above 1 worse and less so."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        require_positive(self, "images", at_most=MAX_EVAL_IMAGES)
        require_positive(self, "truncation", at_most=MAX_TRUNCATION)


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Measure the run's newest checkpoint, or `which` is asked for; the figures are printed and kept in
    evaluation.jsonl.

    The processes of a launch, `accelerate launch -m fastgan.cli evaluate RUN`, share the work. Raises UserError for a
    folder without a run, a checkpoint, or the extractor's weights.
    """
    with launch_device() as device:
        return _evaluate(options, device)


def _evaluate(options: EvaluateOptions, device: torch.device) -> dict[str, float]:
    folder, config, checkpoint, G = open_run(options.run, options.which)
    torch.backends.cudnn.allow_tf32 = config.run.tf32  # as in training, whose figures it repeats
    name = extractors.choose(options.extractor, config, options.inception_weights)
    extractor = extractors.load(name, device, options.inception_weights)
    dataset = open_training_set(config, folder, options.data)
    evaluator = Evaluator(config, dataset, extractor, device)
    evaluator.require_enough(options.images)
    if options.per_class:
        evaluator.class_parts(options.images)  # raises
    G = Truncated(G, options.truncation).to(device)
    metrics = evaluator(G, options.images)
    protocol = evaluator.protocol(options.images)
    if options.truncation != 1:
        protocol["truncation"] = options.truncation
    if options.per_class:
        metrics |= evaluator.per_class(G, options.images)
        protocol["class_fakes"] = options.images // config.networks.num_classes
    if rank_and_world_size()[0] == 0:
        seen = checkpoint.state["images_seen"]
        row = {"images_seen": seen, "which": asdict(options.which), "metrics": metrics, "protocol": protocol}
        for remark in evaluator.warnings(options.images):
            print(remark)
        print(f"{seen:,} images seen; {options.images:,} generated, {len(dataset):,} real; features of {name}")
        for metric, value in metrics.items():
            print(f"  {metric:26} {value:z10.4f}")
        try:
            put_row(folder.evaluation, row | {"session": session()}, ("images_seen", "which", "protocol"))
        except OSError as error:
            raise UserError(f"these figures aren't kept: cannot write {folder.evaluation} ({error.strerror})") from None
    return metrics
