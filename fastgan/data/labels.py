"""Which class an image is of: by its folder, its sidecar, the set's own dataset.json, or a file of labels."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from fastgan.data.archives import ArchiveReader, Entry
from fastgan.data.class_folders import by_folder
from fastgan.data.label_table import (
    LABEL_WORDS,
    Columns,
    Label,
    LabelFault,
    Vector,
    as_name,
    load_json,
    parse_json,
    plain,
    read_table,
)
from fastgan.data.skipped import NAMED_FILES, Skipped, name_bytes, show

AUTO, NO_LABELS = "auto", "none"
FLAGS = {"--label-column": "label_column", "--file-column": "file_column"}
FOLDERS = "folders"  # where labels are from
NO_LABEL = "no label"  # why an image is skipped


@dataclass(frozen=True)
class LabelOptions:
    """Which labels are wanted, and for what."""

    labels: str = AUTO
    condition: Literal["class", "vector"] = "class"
    label_column: str | None = None
    file_column: str | None = None
    num_classes: int | None = None  # of the networks; None where a set is prepared

    @property
    def are_used(self) -> bool:
        """Whether each image must have one."""
        return self.condition == "vector" or self.num_classes != 0

    @property
    def way_out(self) -> str:
        """What to give where labels can't be used."""
        if self.num_classes is None or not self.are_used:
            return "--labels none"
        return "--condition class --num-classes 0" if self.condition == "vector" else "--num-classes 0"

    def unused_columns(self, reason: str) -> list[str]:
        """Return a line that says that the columns which are asked for aren't used; none where none is."""
        given = [flag for flag, name in FLAGS.items() if getattr(self, name) is not None]
        return [f"{' and '.join(given)} not used: {reason}"] if given else []

    @property
    def columns(self) -> Columns:
        return Columns(self.file_column, self.label_column, self.condition == "vector")

    def ask_for_vectors(self, length: int) -> str:
        """Return the flags by which vectors of so many numbers are used."""
        if self.num_classes is None:
            return "--condition vector"
        return f"--condition vector --vector-dim {length}" + " --num-classes 0" * (self.num_classes > 0)


@dataclass(frozen=True)
class Labelled:
    """Entries with the numbers of their classes, or their vectors."""

    entries: list[Entry]
    numbers: list[int] | None  # an entry each; None in a set without classes
    classes: list[str] | None  # by number
    origin: str  # where the labels are from
    skipped: list[Skipped] = field(default_factory=list)
    vectors: list[Vector] | None = None  # an entry each, equally long; None in a set without
    notes: list[str] = field(default_factory=list)  # what the user should know, in lines

    @property
    def labels(self) -> Sequence[int] | Sequence[Vector] | None:
        """Each entry's label as networks are told it."""
        return self.vectors or self.numbers

    def counts(self) -> list[int]:
        """Return the images of each class."""
        found = Counter(self.numbers)
        return [found[number] for number in range(len(self.classes or []))]


def label_entries(source: ArchiveReader, options: LabelOptions | None = None) -> Labelled:
    """Return the source's images with their labels; where labels are used, images without one are skipped.

    Where they aren't used, all images stay and nothing is refused, unless it was asked for. Classes are numbered in
    the order of their names, or of their numbers where all are numbers. Raises UserError for labels that aren't right.
    """
    options = options or LabelOptions()
    is_asked_for = options.labels != AUTO
    if not is_asked_for and (options.label_column or options.file_column):
        raise LabelFault("--label-column and --file-column are of a file of labels", "give --labels FILE.csv, too")
    notes = options.unused_columns("--labels is none") if options.labels == NO_LABELS else []
    origin = "dataset.json"  # all else is asked for, or is right
    try:
        labels, origin = _find(source, options, notes)
        labels = None if labels is None else _of_one_kind(labels, origin, options)
    except LabelFault as fault:
        is_vectors = isinstance(fault, _VectorFault)
        if is_asked_for or (options.are_used and not (is_vectors and options.num_classes is None)):
            raise LabelFault(fault.reason, f"{fault.remedy}, or give {options.way_out}") from None
        note = fault.reason + (f": {fault.remedy}" if is_vectors else "")
        return Labelled(source.entries, None, None, NO_LABELS, notes=[f"labels in {origin} aren't used: {note}"])
    if labels is None:
        if options.condition == "vector" and options.num_classes is None:
            raise LabelFault(
                f"condition is 'vector': {source.kind} has no labels", "give --labels FILE, or leave it out"
            )
        return Labelled(source.entries, None, None, origin, notes=notes)
    found = (_used if options.are_used else _unused)(source, labels, origin, options)
    return replace(found, notes=[*notes, *found.notes])


class _VectorFault(LabelFault):
    """Labels that are vectors where classes are wanted: they must be asked for."""


def _used(source: ArchiveReader, labels: list[Label | None], origin: str, options: LabelOptions) -> Labelled:
    """The images that have a label, with theirs."""
    pairs = list(zip(source.entries, labels, strict=True))
    entries = [entry for entry, label in pairs if label is not None]
    without = [entry for entry, label in pairs if label is None]
    count = f"{len(without):,} of {len(pairs):,} images have no label"
    notes = [f"{count} in {origin} and are left out ({_named(without)})"] if without else []
    skipped = [Skipped(entry.name, NO_LABEL) for entry in without]
    if origin == FOLDERS:
        skipped, notes = [Skipped(entry.name, "in no class folder") for entry in without], []
    if options.condition == "vector":
        vectors = [label for label in labels if isinstance(label, tuple)]
        return Labelled(entries, None, None, origin, skipped, vectors, notes)
    names = {label for label in labels if label is not None}
    classes = _class_names(source.classes, names) if options.labels == AUTO else None
    order = _in_order(names) if classes is None else list(range(len(classes)))
    number = {label: index for index, label in enumerate(order)}
    numbers = [number[label] for label in labels if label is not None]
    return Labelled(entries, numbers, classes or [str(label) for label in order], origin, skipped, notes=notes)


def _unused(source: ArchiveReader, labels: list[Label | None], origin: str, options: LabelOptions) -> Labelled:
    """All images, with the classes that networks without any aren't told."""
    found = _used(source, labels, origin, options)
    if len(found.entries) < len(source.entries):
        without = [entry for entry, label in zip(source.entries, labels, strict=True) if label is None]
        count = f"{len(without):,} of {len(labels):,} images have none ({_named(without)})"
        return Labelled(source.entries, None, None, NO_LABELS, notes=[f"labels in {origin} aren't used: {count}"])
    return found


def _named(entries: list[Entry]) -> str:
    """Some of the entries' names."""
    names = [show(entry.name) for entry in entries[:NAMED_FILES]]
    return ", ".join([*names, "..."] if len(entries) > NAMED_FILES else names)


def _find(source: ArchiveReader, options: LabelOptions, notes: list[str]) -> tuple[list[Label | None] | None, str]:
    """A label or None for each entry, and where they are from; None for a set without, and why.

    What says no labels, though its name is that of a file which does, comes to the notes.
    """
    if options.labels == NO_LABELS:
        return None, NO_LABELS
    names = _Names(source.entries)
    if options.labels != AUTO:
        table = read_table(Path(options.labels), names.has, options.columns)
        origin = f"{options.labels} ({table.columns})" if table.columns else options.labels
        return names.look_up(table.labels, options.labels), origin
    if "dataset.json" in source.notes:
        value = load_json(source.notes["dataset.json"], "dataset.json")
        if isinstance(value, dict) and "labels" in value and value["labels"] is None:
            return None, f"{NO_LABELS} (dataset.json has none)"
        if _is_of_labels(value, names):
            return names.look_up(
                parse_json(source.notes["dataset.json"], "dataset.json"), "dataset.json"
            ), "dataset.json"
        notes.append("labels in dataset.json aren't used: it names none of the images")
    folders = by_folder(
        [entry.name for entry in source.entries] if source.has_folders else [], options.num_classes or 0
    )
    candidates: tuple[tuple[Sequence[Label | None], str], ...] = (
        ([entry.label for entry in source.entries], source.kind),
        (_by_sidecar(source), "sidecars"),
        (folders.labels, FOLDERS),
    )
    for labels, origin in candidates:
        if any(label is not None for label in labels):
            return [None if label is None else plain(label) for label in labels], origin
    reason = notes[0] if notes else folders.reason
    return None, f"{NO_LABELS} ({reason})" if reason else NO_LABELS


def _is_of_labels(value: object, names: "_Names") -> bool:
    """Whether a dataset.json is about labels: other programs' files bear that name, too."""
    labels = value.get("labels", value) if isinstance(value, dict) else value
    return isinstance(labels, list) or (isinstance(labels, dict) and any(map(names.has, labels)))


def _of_one_kind(labels: list[Label | None], origin: str, options: LabelOptions) -> list[Label | None]:
    """The labels, all of them of the kind that is wanted. Raises LabelFault where they aren't."""
    lengths = sorted({len(label) for label in labels if isinstance(label, tuple)})
    if options.condition == "class":
        if lengths:
            count = f"{' or '.join(map(str, lengths))} number{'s' * (lengths != [1])}"
            reason = f"{origin} has vectors: {count} an image"
            raise _VectorFault(reason, options.ask_for_vectors(lengths[-1]))
        return labels
    if names := [label for label in labels if isinstance(label, str)]:
        raise LabelFault(f"{origin} has the label {show(names[0])!r}", "--condition vector wants numbers")
    if len({*lengths, *(1 for label in labels if isinstance(label, int))}) > 1:
        found = " and ".join(map(str, lengths or [1]))
        raise LabelFault(f"{origin} has vectors of {found} numbers", "give equally long ones")
    return [(float(label),) if isinstance(label, int) else label for label in labels]


def _class_names(known: list[str] | None, labels: set[Label]) -> list[str] | None:
    """The names that the source has for its labels, where they are numbers of them."""
    if known and all(isinstance(label, int) and 0 <= label < len(known) for label in labels):
        return known
    return None


def _in_order(labels: set[Label]) -> list[Label]:
    """Numbers by value; names, and numbers among names, by their bytes."""
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return [*sorted(numbers)]
    return sorted(labels, key=lambda label: name_bytes(str(label)))


def _by_sidecar(source: ArchiveReader) -> list[Label | None]:
    """By KEY.cls or KEY.json beside an image KEY.png, as WebDataset has it; a key ends at a name's first dot."""
    labels: dict[str, Label] = {}
    for name, data in source.notes.items():
        label = _sidecar_label(name, data)
        if label is not None:
            labels.setdefault(_key(name), label)
    return [labels.get(_key(entry.name)) for entry in source.entries]


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}"


def _sidecar_label(name: str, data: bytes) -> Label | None:
    text = data.decode("utf-8", "replace").strip()
    if name.endswith(".cls"):
        return text or None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = [value[word] for word in LABEL_WORDS if word in value] if isinstance(value, dict) else []
    return plain(found[0]) if found else None


class _Names:
    """Of each image: the whole name, without its folders, without its ending, where these name one image only."""

    def __init__(self, entries: list[Entry]) -> None:
        shorter = [_shorter(entry.name) for entry in entries]
        counts = Counter(name for names in shorter for name in names)
        self._names = [
            [entry.name, *(name for name in names if counts[name] == 1)]
            for entry, names in zip(entries, shorter, strict=True)
        ]
        self._all = {name for names in self._names for name in names}

    def has(self, text: str) -> bool:
        return as_name(text) in self._all

    def look_up(self, table: dict[str, Label], origin: str) -> list[Label | None]:
        """Return a label or None for each image. Raises LabelFault where the table has none for any."""
        labels = [next((table[name] for name in names if name in table), None) for names in self._names]
        if labels and table and not any(label is not None for label in labels):
            reason = f"{origin} names none of the images, e.g. {self._names[0][0]!r}, but e.g. {next(iter(table))!r}"
            raise LabelFault(reason, "name files as they lie in the data set")
        return labels


def _shorter(name: str) -> list[str]:
    """The name without its folders, its ending, both."""
    path = PurePosixPath(name)
    shorter = (path.name, str(path.with_suffix("")), path.stem)
    return [short for short in dict.fromkeys(shorter) if short != name]
