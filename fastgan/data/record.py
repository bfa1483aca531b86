"""What a run remembers of its data set, by which a changed set is known: `data.json` in its folder."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from fastgan.data.images import ImageDataset
from fastgan.data.names import NAMES
from fastgan.errors import UserError

NAMED_CLASSES = 3  # in a message


@dataclass(frozen=True)
class DatasetRecord:
    """The images of a set, and their classes where it has any."""

    name: str
    num_images: int
    content_hash: str
    labels_hash: str | None = None
    classes: list[str] | None = None

    @classmethod
    def of(cls, dataset: ImageDataset) -> Self:
        labels = dataset.labels
        hashed = None if labels is None else sha256(labels.cpu().numpy().tobytes()).hexdigest()[:16]
        return cls(dataset.name, len(dataset), dataset.content_hash(), hashed, dataset.classes)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    def change(self, now: Self, conditional: bool) -> str | None:
        """Return how the images of `now` aren't these, as a part of a sentence; None where they are.

        Labels count where a run is told them.
        """
        if self.num_images != now.num_images:
            return f"{self.num_images:,} images then, {now.num_images:,} now"
        if self.content_hash != now.content_hash:
            return f"{now.num_images:,} images as then, others"
        return "the same images, other labels" if conditional and self.labels_hash != now.labels_hash else None

    def class_change(self, now: Self) -> str | None:
        """Return which classes `now` doesn't have or has besides.

        None where they are the same, or not known by name.
        """
        then, classes = self.classes, now.classes
        if then is None or classes is None or then == classes:
            return None
        gone, new = [name for name in then if name not in classes], [name for name in classes if name not in then]
        if not gone and not new:
            return "now in another order"
        parts = [f"{word} {_names(names)}" for word, names in (("without", gone), ("with", new)) if names]
        return f"now {' and '.join(parts)}"


def read_record(path: Path) -> DatasetRecord | None:
    """Return what a run's data.json says; None for a run of an earlier version, which has none. Raises UserError."""
    try:
        return DatasetRecord(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}): put it back from a copy, or train in a new folder") from None


def find_change(
    path: Path, dataset: ImageDataset, place: str, conditional: bool, say: Callable[[str], None] = print
) -> str | None:
    """Return how the set at `place` isn't that of the run whose data.json `path` is, as a sentence; None where it is.

    Where there is no record, as earlier versions kept none, that is said. Raises UserError where it can't be read.
    """
    last = read_record(path)
    if last is None and place not in NAMES:
        say(f"{path.parent} has no hash of the images that it was trained on: taking those of {place} for them")
    change = None if last is None else last.change(DatasetRecord.of(dataset), conditional)
    return None if change is None else f"the data set {place} isn't what {path.parent} was trained on ({change})"


def _names(names: list[str]) -> str:
    return ", ".join(map(str, names[:NAMED_CLASSES])) + (", ..." if len(names) > NAMED_CLASSES else "")
