"""What a set is made of, as lines on the console: training on a folder and preparing it tell the same."""

from collections.abc import Sequence

from fastgan.data.archives import ArchiveReader
from fastgan.data.labels import Labelled
from fastgan.data.skipped import few, show

ALL_NAMED = 8  # classes; of more the first ones and the last are named


def classes_line(classes: Sequence[str], counts: Sequence[int], num_classes: int | None) -> str:
    """Return how many classes, their names with their images, and, where `num_classes` is 0, how they are used."""
    said = f"classes: {len(classes):,} ({name_classes([*map(_with_count, classes, counts)])})"
    return said if num_classes != 0 else f"{said}, not used: --num-classes {len(classes)} tells the networks"


def name_classes(classes: Sequence[str]) -> str:
    """Return the names, the middle of many left out."""
    names = [show(name) for name in classes]
    return ", ".join(names if len(names) <= ALL_NAMED else [*names[: ALL_NAMED - 2], "...", names[-1]])


def _with_count(name: str, count: int) -> str:
    return f"{name} {count:,}"


def describe_source(name: str, source: ArchiveReader, labelled: Labelled, num_classes: int | None) -> list[str]:
    """Return the classes, and what is no part of the set by what or where it is, in a line each where there is any.

    `num_classes` is the run's, None where there is none.
    """
    lines = []
    if labelled.classes is not None and (num_classes != 0 or len(labelled.classes) > 1):
        lines.append(classes_line(labelled.classes, labelled.counts(), num_classes))
    elif labelled.origin.startswith("none (") and not labelled.notes:
        lines.append(f"classes: {labelled.origin}")
    if source.left_out:
        other = next(iter(source.splits.held_out.values()), None)
        remedy = f"; to take another part, name its folder: {show(name)}/{show(other)}" if other else ""
        lines.append(f"left out: {few(source.left_out)}{remedy}")
    return lines + labelled.notes
