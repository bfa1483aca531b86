"""What the folders of a set say: which of its images are for training, and of which class each is."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastgan.errors import UserError

TRAINING = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing")
# seg_train, train2017, test_images, val-00000-of-00001.parquet: what stands before it must be alike in all siblings.
DECORATED = re.compile(rf"(?:(.*)[-_. ])?({'|'.join((*TRAINING, *HELD_OUT))})(?:[-_. \d].*)?", re.IGNORECASE)
# A folder of such a name that holds class folders is no class itself.
WRAPPERS = ("data", "dataset", "datasets", "image", "images", "img", "imgs", "photos", "pictures", *TRAINING)


FEW_PARTS = 3  # that are named


class Splits(NamedTuple):
    """The split of each image that isn't for training."""

    held_out: dict[int, str]  # image -> its split's folder
    training: str  # the names of the training parts


NO_SPLITS = Splits({}, "")


def find_splits(names: list[str]) -> Splits:
    """Return which images lie beside, not in, a training folder that has a folder of another split beside it, at any
    depth.

    Raises UserError where folders are splits of which none is for training.
    """
    folders = {name: name.rpartition("/")[0] for name in names}
    children: dict[str, set[str]] = defaultdict(set)  # by the folder they are in, which ends with /
    for folder in {*folders.values()}:
        for parent, child in _steps(folder):
            children[parent].add(child)
    parents = [*children]
    training = {parent: found for parent in parents if (found := _training_among(parent, children))}
    if not training:
        return NO_SPLITS
    split_of = {folder: _held_out(folder, training) for folder in {*folders.values()}}
    held_out = {number: split for number, name in enumerate(names) if (split := split_of[folders[name]]) is not None}
    parts = sorted({part for those in training.values() for part in those})
    return Splits(held_out, ", ".join(parts) if len(parts) <= FEW_PARTS else "the training part")


def _steps(folder: str) -> Iterator[tuple[str, str]]:
    """(a/, b) for each part of a folder's name; those of the top are ("", a)."""
    parent = ""
    for part in folder.split("/") if folder else []:
        yield parent, part
        parent += f"{part}/"


def _training_among(parent: str, children: dict[str, set[str]]) -> set[str]:
    """Those of a folder's folders that are its training part, where some of them are splits; else none."""
    folders = children[parent]
    exact = {folder: folder.lower() for folder in folders if folder.lower() in (*TRAINING, *HELD_OUT)}
    training = {folder for folder, plain in exact.items() if plain in TRAINING}
    if training and len(exact) > len(training):
        return training
    if len(exact) > 1 and not training and len(exact) == len(folders):
        raise UserError(f"the folders {', '.join(sorted(exact))} are splits without a train: name one of them")
    repeating = {  # cat, dog, and test with cat and dog in it
        folder
        for folder, plain in exact.items()
        if plain in HELD_OUT and (below := children.get(f"{parent}{folder}/")) and below < folders
    }
    if repeating and not training:
        return folders - repeating
    matches = {folder: DECORATED.fullmatch(folder) for folder in folders}
    found = {folder: match for folder, match in matches.items() if match is not None}
    training = {folder for folder, match in found.items() if match[2].lower() in TRAINING}
    alike = len({match[1] for match in found.values()}) == 1 and len(found) == len(folders)
    return training if alike and training and len(found) > len(training) else set()


def _held_out(folder: str, training: dict[str, set[str]]) -> str | None:
    """The folder, of those around these images or their own, that isn't for training."""
    for parent, child in _steps(folder):
        if parent in training and child not in training[parent]:
            return parent + child
    return "the folder around it" if (f"{folder}/" if folder else "") in training else None


class ClassFolders(NamedTuple):
    """Each image's class, None for the few beside the class folders; or why folders are no classes."""

    labels: list[str | None]  # empty where there are no classes
    reason: str = ""


def by_folder(names: list[str], num_classes: int = 0) -> ClassFolders:
    """Return the class folders: what is alike in all names is no class, and as many levels count as every image has.

    A few images beside the class folders, at most one or a tenth, have no class. Where `num_classes` is the number of
    folders on an upper level, that one counts.
    """
    paths = [tuple(name.split("/")[:-1]) for name in names]
    inside, depth = [*range(len(paths))], 0
    while True:
        beside = sum(len(paths[number]) <= depth for number in inside)
        if beside and not _is_few(len(names) - len(inside) + beside, len(names)):
            if all(len(paths[number]) <= depth for number in inside):
                return ClassFolders([])
            first = next(names[number] for number in inside if len(paths[number]) <= depth)
            return ClassFolders([], f"{beside:,} images lie in no class folder, e.g. {first}")
        inside = [number for number in inside if len(paths[number]) > depth]
        counts = Counter(paths[number][depth] for number in inside)
        main = _main_folder(counts, inside, paths, depth, len(names))
        if main is None:
            break
        inside, depth = [number for number in inside if paths[number][depth] == main], depth + 1
    return ClassFolders(_labels(paths, inside, depth, num_classes))


def _is_few(beside: int, images: int) -> bool:
    return beside <= max(1, images // 10) and 2 * beside < images


def _main_folder(
    counts: Counter[str], inside: list[int], paths: list[tuple[str, ...]], depth: int, images: int
) -> str | None:
    """The folder on this level that holds all images, or is named as one that holds the classes, with few beside it."""
    if len(counts) == 1:
        return next(iter(counts))
    wrappers = [folder for folder in counts if folder.lower() in WRAPPERS]
    if len(wrappers) != 1 or not _is_few(images - counts[wrappers[0]], images):
        return None
    below = {paths[number][depth + 1 : depth + 2] for number in inside if paths[number][depth] == wrappers[0]}
    return wrappers[0] if len(below - {()}) > 1 else None


def _labels(paths: list[tuple[str, ...]], inside: list[int], depth: int, num_classes: int) -> list[str | None]:
    """The classes of those inside, by the levels that all have and not all share."""
    if not inside:
        return []
    levels = range(depth, min(len(paths[number]) for number in inside))
    levels_that_differ = [level for level in levels if len({paths[number][level] for number in inside}) > 1]
    if not levels_that_differ:
        return []
    choices = [levels_that_differ[:count] for count in range(len(levels_that_differ), 0, -1)]
    found = [_joined(paths, inside, choice) for choice in choices]
    chosen = next((classes for classes in found if len({*classes.values()}) == num_classes), found[0])
    return [chosen.get(number) for number in range(len(paths))]


def _joined(paths: list[tuple[str, ...]], inside: Iterable[int], levels: list[int]) -> dict[int, str]:
    return {number: "/".join(paths[number][level] for level in levels) for number in inside}
