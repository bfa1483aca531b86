"""`fastgan metrics A B`: how far any images are from any others."""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastgan.data.preparation.prepare import parse_size
from fastgan.distributed.collectives import rank_and_world_size
from fastgan.errors import UserError
from fastgan.evaluation import extractors
from fastgan.evaluation.comparison import (
    Comparison,
    Request,
    Side,
    background_of,
    choose_extractor,
    describe,
    open_side,
)
from fastgan.evaluation.features import EvaluationFailed, Gaussian
from fastgan.evaluation.sampling import CheckpointSelector, launch_device, print_on_main
from fastgan.evaluation.saved_statistics import SavedStatistics, write_statistics
from fastgan.run_config import MAX_EVAL_IMAGES, ExtractorName
from fastgan.runs.run_folder import session
from fastgan.utils.fields import require, require_positive
from fastgan.utils.files import write_atomically


@dataclass(frozen=True)
class MetricsOptions:
    """Compare any images with any others. Each is a folder, a zip or tar, a prepared or a named set, an .npz of images
    (arr_0, as ADM has it), a run, whose generator makes them, or an .npz of statistics (mu and sigma)."""

    generated: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The generated images."""
    real: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None
    """The real images; only --save-statistics can do without."""
    images: int = 50_000
    """How many images a run generates."""
    size: str | None = None
    """Crop and resize the images of folders and archives to 128, or 96x160 (height x width)."""
    background: str = "auto"
    """What transparent images of folders and archives lie on: white, black, #RRGGBB; auto: as the real ones do, or what
    keeps the pictures visible."""
    extractor: ExtractorName = "auto"
    """Features to compare; inception_clean: inception behind clean-fid's resizing; auto: that of statistics, else
    digits for gray 28x28 images and stacked-mnist, else inception where its weights are available, else efficientnet
    where it is installed."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    data: str | None = None
    """Where the data set of a conditional run is now, if it has moved: its labels are what G is told."""
    out: Path | None = None
    """A JSON file for the figures and their protocol."""
    save_statistics: Path | None = None
    """An .npz file for mu and sigma of B, or of A alone, which pytorch-fid, clean-fid and EDM read, too."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        require_positive(self, "images", at_most=MAX_EVAL_IMAGES)
        saved, wanted = self.save_statistics, "give a file's name that ends in .npz"
        require(self, "save_statistics", saved is None or saved.suffix.lower() == ".npz", wanted)
        if not self.real and saved is None:
            raise UserError("B is missing: name the real images, or give --save-statistics FILE.npz for A's statistics")
        for name in ("out", "save_statistics"):
            path = getattr(self, name)
            is_fine = path is None or (os.access(path.parent, os.W_OK) and path.parent.is_dir() and not path.is_dir())
            require(self, name, is_fine, "give a file in a folder that is there and can be written")


def metrics(options: MetricsOptions) -> dict[str, float]:
    """Measure A against B, and print the figures and what they depend on.

    The processes of a launch, `accelerate launch -m fastgan.cli metrics A B`, share the work. Raises UserError.
    """
    try:
        with launch_device() as device, ExitStack() as handles:
            return _metrics(options, device, handles)
    except EvaluationFailed as error:  # of several processes
        if isinstance(error.__cause__, UserError | None):
            raise UserError(str(error)) from None
        raise


def _metrics(options: MetricsOptions, device: torch.device, handles: ExitStack) -> dict[str, float]:
    size = None if options.size is None else parse_size(options.size)
    request = Request(options.images, size, options.background, options.data, options.which)
    sides: list[Side] = []
    for text in filter(None, (options.real, options.generated)):
        sides.insert(0, open_side(text, request, device, handles))
        request = replace(request, background=background_of(sides[0]) or request.background)
    comparison = _compare(sides, options, device)
    for side, role in zip(comparison.sides, ("generated", "real") if options.real else ("images",), strict=True):
        print_on_main(f"{role}: {describe(side)}")
    for line in comparison.remarks():
        print_on_main(line)
    figures, gaussian = comparison.measure()
    if rank_and_world_size()[0] == 0:
        _report(options, comparison, figures, gaussian)
    return figures


def _compare(sides: list[Side], options: MetricsOptions, device: torch.device) -> Comparison:
    """The comparison, with its extractor where there are images. Raises UserError."""
    if options.save_statistics is not None and isinstance(sides[-1], SavedStatistics):
        raise UserError(f"save_statistics is {options.save_statistics}: {sides[-1].name} holds statistics already")
    name = choose_extractor(options.extractor, sides, options.inception_weights)
    extractor = None
    if not all(isinstance(side, SavedStatistics) for side in sides):
        extractor = extractors.load(name, device, options.inception_weights)
    comparison = Comparison(sides, name, extractor, device)
    if options.save_statistics is not None and comparison.counts_modes:
        raise UserError(f"save_statistics is {options.save_statistics}: modes are counted here, there are none to save")
    return comparison


def _report(
    options: MetricsOptions, comparison: Comparison, figures: dict[str, float], gaussian: Gaussian | None
) -> None:
    """Print the figures with what they depend on, and write the files that are asked for."""
    protocol = comparison.protocol()
    plain = [f"{name} {value}" for name, value in protocol.items() if value and not isinstance(value, dict)]
    print(f"protocol: {'; '.join(plain)}")
    for name, value in figures.items():
        print(f"  {name:26} {value:z10.4f}")
    row = {"which": asdict(options.which), "metrics": figures, "protocol": protocol, "session": session()}
    try:
        if options.out is not None:
            write_atomically(options.out, json.dumps(row, indent=1).encode() + b"\n")
        if options.save_statistics is not None and gaussian is not None:
            write_statistics(options.save_statistics, gaussian, comparison.statistics_protocol())
    except OSError as error:
        raise UserError(f"cannot write {error.filename} ({error.strerror}): give another file") from None
