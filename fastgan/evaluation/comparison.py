"""Any images against any others, or against statistics of some: what `fastgan metrics` compares."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan import __version__
from fastgan.config import Config, DataConfig
from fastgan.data import stacked
from fastgan.data.images import ImageDataset
from fastgan.data.listed import ListedDataset, show_size
from fastgan.data.local_folder import RUN, own_folder
from fastgan.data.named import open_named
from fastgan.data.names import NAMES
from fastgan.data.npz import array_names, read_images
from fastgan.data.pixels import MODES, Size
from fastgan.data.preparation.inputs import open_archive
from fastgan.data.prepared import PreparedDataset, is_prepared
from fastgan.data.tones import BLACK
from fastgan.errors import UserError
from fastgan.evaluation import distances, extractors, fidelity
from fastgan.evaluation.extractors import INCEPTION_FEATURES, Extractor
from fastgan.evaluation.features import NUM_NEIGHBOR_IMAGES, FeatureStatistics, Gaussian
from fastgan.evaluation.generated_set import GeneratedDataset, open_generated
from fastgan.evaluation.reference import collect_set, real_statistics
from fastgan.evaluation.sampling import CheckpointSelector, print_on_main
from fastgan.evaluation.saved_statistics import ARRAYS, SavedStatistics, read_statistics
from fastgan.runs.exported import is_export
from fastgan.utils.tone_options import AUTO

Side = ImageDataset | SavedStatistics
KINDS = "a folder, a zip or tar, a prepared set, a run, an .npz of images or of statistics"
PICKLES = (".pkl", ".pickle", ".pt", ".pth")
UNKNOWN = "unknown"  # whose features another program's statistics are
REMEDIES = {  # what must be the same of both sides, and what to do where it isn't
    "extractor": "give the --extractor that the statistics are of, or other statistics",
    "extractor_weights": "figures of different weights don't compare: compute the statistics again",
    "transform": "images that are resized in different ways don't compare: compute the statistics again",
    "num_features": "give the --extractor that the statistics are of, or other statistics",
    "image_size": "give --size, by which images of folders and archives are cropped and resized, or prepare the set",
}


@dataclass(frozen=True)
class Request:
    """What is asked of each side."""

    images: int  # that a run makes
    size: Size | None = None  # to which the images of folders and archives are fitted
    background: str = AUTO  # on which those of them lie that have alpha
    data: str | None = None  # where a run's own data set is now
    which: CheckpointSelector = field(default_factory=CheckpointSelector)


def open_side(text: str, request: Request, device: torch.device, handles: ExitStack) -> Side:
    """Return what the text names; an archive stays open as long as `handles`. Raises UserError."""
    side = _open_side(text, request, device, handles)
    if request.size and not isinstance(side, SavedStatistics) and side.image_size != request.size:
        size, has = show_size(request.size), show_size(side.image_size)
        remedy = "only images of folders and archives are resized: leave it out, or prepare the set again with it"
        raise UserError(f"size is {size}: the images of {text} are of {has}, and {remedy}")
    return side


def _open_side(text: str, request: Request, device: torch.device, handles: ExitStack) -> Side:
    if text in NAMES:
        return open_named(text)
    path = Path(text).expanduser()
    if path.is_file() and path.suffix.lower() == ".npz":
        names = array_names(path)
        if not names & {"arr_0", *ARRAYS}:
            found = ", ".join(sorted(names)) or "none"
            raise UserError(f"{path} has the arrays {found}: give images as arr_0, or statistics as mu and sigma")
        if "arr_0" in names and names & ARRAYS:  # as ADM's own references
            print_on_main(f"{path} holds statistics and images: its statistics are taken")
        return read_statistics(path) if names & ARRAYS else read_images(path)
    if path.is_dir() and is_prepared(path):
        return PreparedDataset(path)
    if path.is_dir() and (own_folder({entry.name for entry in path.iterdir()}) == RUN or is_export(path)):
        return open_generated(path, request.images, request.which, request.data, device)
    if not path.exists() and "{" not in text:
        raise UserError(f"there is no {text!r}: give {KINDS}, or one of {', '.join(NAMES)}")
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path} holds pickled objects, which are never loaded: save mu and sigma by np.savez")
    spool = Path(handles.enter_context(tempfile.TemporaryDirectory()))
    archive = handles.enter_context(open_archive(text, spool, with_own=True))
    return ListedDataset(text, archive, request.size, request.background)


def choose_extractor(asked: str, sides: list[Side], inception_weights: Path | None) -> str:
    """Return the extractor `asked` for.

    `auto`: that of statistics, where they say it or have as many numbers as Inception's; else what `evaluate` takes
    for such images.
    """
    if asked != "auto":
        return asked
    for side in sides:
        if isinstance(side, SavedStatistics) and "extractor" in side.protocol:
            return str(side.protocol["extractor"])
    if any(isinstance(side, SavedStatistics) and side.num_features == INCEPTION_FEATURES for side in sides):
        return "inception"
    sets = [side for side in sides if not isinstance(side, SavedStatistics)]
    if not sets:
        return UNKNOWN
    channels = max(side.channels for side in sets)
    data = DataConfig(data=sets[-1].name, channels=channels, image_size=sets[-1].image_size)
    return extractors.choose("auto", Config(data=data), inception_weights)


class Comparison:
    """Generated images against real ones; or one side alone, of which only the Gaussian is wanted.

    The extractor, of this name, is None where all sides are statistics. Raises UserError where the sides, or one and
    the extractor, don't fit.
    """

    def __init__(self, sides: list[Side], name: str, extractor: Extractor | None, device: torch.device) -> None:
        self.sides, self.name, self._extractor, self.device = sides, name, extractor, device
        self.counts_modes = name == "digits" and isinstance(sides[-1], stacked.StackedDataset) and not self.left_out
        self.counts = [_count(side) for side in sides]  # None where it isn't known
        self.background = next(filter(None, map(background_of, reversed(sides))), BLACK)
        self._made = self._agreed()
        sets = [side for side in sides if not isinstance(side, SavedStatistics)]
        if self.counts_modes and sets[0].channels != sets[-1].channels:
            raise UserError(
                f"{sets[0].name} has {sets[0].channels} channels: {stacked.NAME}'s modes are counted in RGB"
            )
        if not self.counts_modes:
            enough = [2 if count is None else count for count in self.counts]
            fidelity.require_enough(enough[0], enough[-1])
            for side in sets:
                self._seen_by(side)  # raises

    @property
    def extractor(self) -> Extractor:
        """What sees the images."""
        assert self._extractor is not None
        return self._extractor

    def _seen_by(self, images: ImageDataset) -> Extractor:
        return extractors.with_alpha(self.extractor, images.channels, self.background, self.device)

    def _agreed(self) -> dict[str, Any]:
        """What the sides have in common, as far as it is known. Raises UserError where they can't be compared."""
        facts: list[tuple[str, dict[str, Any]]] = []
        for side in self.sides:
            if isinstance(side, SavedStatistics):
                facts.append((side.name, {**side.protocol, "num_features": side.num_features}))
            else:
                seen = self.extractor
                made = {"extractor": seen.name, "extractor_weights": seen.version, "transform": seen.transform}
                sizes = {"num_features": seen.num_features, "image_size": [*side.image_size]}
                facts.append((side.name, {**made, **sizes}))
        if self.name != UNKNOWN:
            facts.append(("--extractor", {"extractor": self.name}))
        for key, remedy in REMEDIES.items():
            (first, wanted), *others = [(name, found[key]) for name, found in facts if key in found] or [("", None)]
            for name, value in others:
                if value != wanted:
                    what = key.replace("num_", "number of ").replace("_", " ")
                    differ = f"{first} and {name} differ in the {what}, {_show(wanted)} and {_show(value)}"
                    raise UserError(f"{differ}: {remedy}")
        return {key: found[key] for _, found in facts for key in REMEDIES if key in found}

    def measure(self) -> tuple[dict[str, float], Gaussian | None]:
        """Return the metrics and the last side's Gaussian, None where it has none; all processes ask."""
        first, last = self.sides[0], self.sides[-1]
        if self.counts_modes and not isinstance(first, SavedStatistics):
            return fidelity.count_modes(partial(self._pixels, first), len(first), self.extractor), None
        reals = last if isinstance(last, SavedStatistics) else real_statistics(last, self._seen_by(last), self.device)
        if len(self.sides) == 1:
            return {}, reals.gaussian
        fakes = first if isinstance(first, SavedStatistics) else self._collect(first)
        if isinstance(fakes, SavedStatistics) or isinstance(reals, SavedStatistics):
            name = fidelity.distance_name(self.name)
            return {name: distances.frechet(fakes.gaussian, reals.gaussian)}, reals.gaussian
        return fidelity.measure(fakes, reals, self.extractor), reals.gaussian

    def _pixels(self, images: ImageDataset, numbers: range) -> Tensor:
        return images.pixels(torch.tensor(numbers)).to(self.device)

    def _collect(self, images: ImageDataset) -> FeatureStatistics:
        """In their order, as `evaluate` takes seeds; of files, which may be sorted, a random part stands for many."""
        is_shuffled = len(images) > NUM_NEIGHBOR_IMAGES and not isinstance(images, GeneratedDataset)
        return collect_set(images, self._seen_by(images), self.device, is_shuffled=is_shuffled)

    def remarks(self) -> list[str]:
        """Return what must be known of the sides and of the figures, a line each."""
        found = [line for side in self.sides if isinstance(side, ListedDataset) for line in side.summary]
        for side in self.sides:
            if isinstance(side, SavedStatistics) and not side.protocol:
                taken = "" if self.name == UNKNOWN else f": taken for {self.name}'s"
                found.append(f"{side.name} doesn't say which network its statistics are of{taken}")
        if self._extractor is not None and not self.counts_modes:
            found += fidelity.warnings(self.counts[0], self.counts[-1], self._extractor)[-len(self.sides) :]
        return found

    @property
    def left_out(self) -> str:
        """Return which metrics aren't measured, and why; "" where all are."""
        names = [side.name for side in self.sides if isinstance(side, SavedStatistics)]
        return f"all but the Frechet distance, as {names[0]} holds no images" if names else ""

    def protocol(self) -> dict[str, Any]:
        """Return what must agree before two figures may be compared."""
        sides = {"fakes": _identity(self.sides[0]), "reals": _identity(self.sides[-1])}
        found = self._made | sides | {"background": self.background, "torch_fidelity": version("torch-fidelity")}
        if self.left_out:
            return found | {"left_out": self.left_out}
        counts = [count or 0 for count in self.counts]
        return found | ({} if self.counts_modes else fidelity.settings(counts[0], counts[-1]))

    def statistics_protocol(self) -> dict[str, Any]:
        """Return what to keep beside the last side's Gaussian."""
        found = {"fastgan": __version__, **self._made, **_identity(self.sides[-1])}
        return found | ({"background": self.background} if found["channels"] == 4 else {})


def describe(side: Side) -> str:
    """Return what the side is, for the console."""
    if not isinstance(side, SavedStatistics):
        return f"{side.name}, {len(side):,} images of {show_size(side.image_size)}, {MODES[side.channels]}"
    if not (made := side.protocol):
        return f"{side.name}, statistics of an unknown number of images"
    return f"{side.name}, statistics of {made['num_images']:,} images of {_show(made['image_size'])} of {made['data']}"


def _identity(side: Side) -> dict[str, Any]:
    """Which images, how many and what they are."""
    if isinstance(side, SavedStatistics):
        keys = ("data", "data_hash", "num_images", "image_size", "channels")
        return {"data": side.name} | {key: side.protocol[key] for key in keys if key in side.protocol}
    return {
        "data": side.name,
        "data_hash": side.content_hash(),
        "num_images": len(side),
        "image_size": [*side.image_size],
        "channels": side.channels,
    }


def _count(side: Side) -> int | None:
    return side.protocol.get("num_images") if isinstance(side, SavedStatistics) else len(side)


def background_of(side: Side) -> str | None:
    """Return the colour that the side's images lie on; None where they have no alpha, or the side doesn't say."""
    if isinstance(side, SavedStatistics):
        return side.protocol.get("background")
    if isinstance(side, ListedDataset | PreparedDataset) and side.channels == 4:
        return side.tones.background
    return None


def _show(value: Any) -> str:
    return show_size((value[0], value[1])) if isinstance(value, list) and len(value) == 2 else str(value)
