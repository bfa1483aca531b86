"""Which class an image is of: by its folder, its sidecar, the set's own dataset.json, or a file of labels."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastgan.data.archives import ArchiveReader, Entry, clean
from fastgan.data.skipped import Skipped, name_bytes
from fastgan.errors import UserError

FILE_WORDS = ("file", "filename", "file_name", "image", "image_id", "img", "id", "name", "path")
LABEL_WORDS = ("label", "labels", "class", "class_name", "category", "cls", "target")
NO_LABELS = "none"
Label = int | str


@dataclass(frozen=True)
class Labelled:
    """Entries with the numbers of their classes."""

    entries: list[Entry]
    numbers: list[int] | None  # an entry each; None in a set without labels
    classes: list[str] | None  # by number
    origin: str  # where the labels are from
    skipped: list[Skipped]


def label_entries(source: ArchiveReader, option: str | None) -> Labelled:
    """The source's images with their classes; in a set with labels, images without one are skipped.

    `option` is a file of labels, "none" for a set without, or None: then the source says it. Classes are numbered in
    the order of their names, or of their numbers where all are numbers. Raises UserError for a file that isn't right.
    """
    labels, origin = _find(source, option)
    if labels is None:
        return Labelled(source.entries, None, None, "none", [])
    names = {label for label in labels if label is not None}
    classes = _class_names(source.classes, names) if option is None else None
    order = _in_order(names) if classes is None else list(range(len(classes)))
    number = {label: index for index, label in enumerate(order)}
    pairs = list(zip(source.entries, labels, strict=True))
    return Labelled(
        entries=[entry for entry, label in pairs if label is not None],
        numbers=[number[label] for _, label in pairs if label is not None],
        classes=classes or [str(label) for label in order],
        origin=origin,
        skipped=[Skipped(entry.name, "no label") for entry, label in pairs if label is None],
    )


def _find(source: ArchiveReader, option: str | None) -> tuple[list[Label | None] | None, str]:
    """A label or None for each entry, and where they are from; None for a set without."""
    if option == NO_LABELS:
        return None, NO_LABELS
    if option is not None:
        return _by_table(source.entries, read_labels(Path(option)), option), option
    if "dataset.json" in source.notes:
        table = _parse_json(source.notes["dataset.json"], "dataset.json")
        return (_by_table(source.entries, table, "dataset.json") if table else None), "dataset.json"
    for labels, origin in (
        ([entry.label for entry in source.entries], source.kind),
        (_by_sidecar(source), "sidecars"),
        (by_folder([entry.name for entry in source.entries]) if source.has_folders else [], "folders"),
    ):
        if any(label is not None for label in labels):
            return [_plain(label) for label in labels], origin
    return None, NO_LABELS


def _plain(label: Label | None) -> Label | None:
    """Numbers as int, also where a text holds one: "7" and 7 are one class."""
    return int(label) if isinstance(label, str) and re.fullmatch(r"-?(0|[1-9]\d{0,17})", label) else label


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


def by_folder(names: list[str]) -> list[Label | None]:
    """Each image's first folder below those that all share; none where an image lies in no folder, or all in one."""
    folders = [name.split("/")[:-1] for name in names]
    depth = 0
    while folders and all(len(parts) > depth for parts in folders):
        if len({parts[depth] for parts in folders}) > 1:
            return [parts[depth] for parts in folders]
        depth += 1
    return []


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
    return found[0] if found and isinstance(found[0], int | str) and not isinstance(found[0], bool) else None


def read_labels(path: Path) -> dict[str, Label]:
    """File -> label of a CSV (file, label; header or not) or JSON file. Raises UserError that says why not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the labels in {path} ({error.strerror}): give --labels a CSV or JSON file"
        ) from None
    table = _parse_json(data, str(path)) if path.suffix.lower() == ".json" else _parse_csv(data, str(path))
    if not table:
        raise UserError(f"{path} has no labels: give rows of file and label")
    return table


def _parse_csv(data: bytes, path: str) -> dict[str, Label]:
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.endswith(".tsv") else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}): give rows of file and label") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    file, label, start = 0, 1, 0
    if any(word in head for word in FILE_WORDS) and any(word in head for word in LABEL_WORDS):
        file = next(column for column, word in enumerate(head) if word in FILE_WORDS)
        label = next(column for column, word in enumerate(head) if word in LABEL_WORDS)
        start = 1
    pairs = []
    for line, row in enumerate(rows[start:], start + 1):
        if not row:
            continue
        if len(row) <= max(file, label) or not row[label].strip():
            raise UserError(f"{path}, row {line} is {','.join(row)!r}: give a file and a label")
        pairs.append((row[file].strip(), row[label].strip()))
    return _table(pairs, path)


def _parse_json(data: bytes, path: str) -> dict[str, Label]:
    """Of {"labels": [[file, label], ...]}, the list alone, or {file: label}; empty where the labels are null."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file ({error}): fix it or give --labels none") from None
    if isinstance(value, dict) and isinstance(value.get("labels"), list | dict | None):
        value = value.get("labels", None if path == "dataset.json" else value)
    if value is None:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else value
    whole = isinstance(pairs, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    for pair in pairs if whole else [pairs]:
        if not whole or not isinstance(pair[0], str) or type(pair[1]) not in (int, str):
            raise UserError(f"{path} has {str(pair)[:60]!r}: give [file, label] with a whole number or a name, or none")
    return _table(pairs, path)


def _table(pairs: Iterable[tuple[str, Label]], path: str) -> dict[str, Label]:
    table: dict[str, Label] = {}
    for file, label in pairs:
        name, value = clean(file.replace("\\", "/")) or file, _plain(label)
        assert value is not None
        if table.setdefault(name, value) != value:
            raise UserError(f"{path} gives {file!r} the labels {table[name]!r} and {value!r}: leave one")
    return table


def _by_table(entries: list[Entry], table: dict[str, Label], origin: str) -> list[Label | None]:
    """By the whole name, else without its folders, else without its ending, where these name one image only."""
    shorter = [_shorter(entry.name) for entry in entries]
    counts = Counter(name for names in shorter for name in names)
    labels = []
    for entry, names in zip(entries, shorter, strict=True):
        candidates = [entry.name, *(name for name in names if counts[name] == 1)]
        labels.append(next((table[name] for name in candidates if name in table), None))
    if entries and not any(label is not None for label in labels):
        raise UserError(f"{origin} names none of the images, e.g. {entries[0].name!r}: name files as they lie in SRC")
    return labels


def _shorter(name: str) -> list[str]:
    """The name without its folders, its ending, both."""
    path = PurePosixPath(name)
    shorter = (path.name, str(path.with_suffix("")), path.stem)
    return [short for short in dict.fromkeys(shorter) if short != name]
