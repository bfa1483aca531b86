"""Files that are no part of a data set, and how they are told."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

NAMED_FILES = 3  # of each reason, on the console


class Skipped(NamedTuple):
    """A file that is no part of the set."""

    file: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without what differs from file to file."""
        return self.reason.split(":")[0]


def name_bytes(name: str) -> bytes:
    """Return the name as it lies on a disk, also where it is no text: what names are sorted by."""
    return name.encode("utf-8", "surrogateescape")


def in_order(skipped: Iterable[Skipped]) -> list[Skipped]:
    """Return each once, by name."""
    return sorted({*skipped}, key=lambda one: (name_bytes(one.file), one.reason))


def few(skipped: Iterable[Skipped]) -> str:
    """Return how many files of each kind, the most frequent first, with some names, as one line."""
    ordered = in_order(skipped)
    parts = []
    for kind, count in Counter(one.kind for one in ordered).most_common():
        names = [show(one.file) for one in ordered if one.kind == kind][:NAMED_FILES]
        parts.append(f"{count:,} {kind} ({', '.join(names)}{', ...' if count > NAMED_FILES else ''})")
    return "; ".join(parts)


def show(name: str) -> str:
    """Return the name on one line of text, also where it has signs that no terminal shows."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
