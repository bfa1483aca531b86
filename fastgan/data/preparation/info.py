"""`fastgan data info DEST`: what is in a prepared data set, and what in it may harm training."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from safetensors import SafetensorError
from safetensors.numpy import load

from fastgan.data.pixels import BadImage, decode, digest
from fastgan.data.preparation.pool import Pool
from fastgan.data.preparation.shard_writer import FORMAT, INDEX, MEMBERS
from fastgan.data.skipped import Skipped, show
from fastgan.data.tones import Tones
from fastgan.errors import UserError

CONTACT_SHEET = "contact-sheet.png"
SHEET_IMAGES = 64
FLAT_STD = 2  # of 255 levels: below it nothing is to be seen
FEW_IMAGES = 2000
BATCH_IMAGES = 64
NAMED = 5


@dataclass(frozen=True)
class InfoOptions:
    """Show what is in a prepared data set: counts, labels, duplicates, flat images; writes a contact sheet."""

    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """The folder of the data set."""
    workers: int | None = None
    """Processes; by default one a core."""


class Look(NamedTuple):
    """What is seen of an image."""

    digest: bytes
    std: float  # of the channel that varies most, in levels


CRASHED: BadImage | Look = BadImage("its decoder crashed")


@dataclass(frozen=True)
class Facts:
    """What there is to know of a data set."""

    index: dict[str, Any]
    label_counts: list[int] | None  # by class
    duplicates: list[list[int]]  # the numbers of images with equal pixels
    flat: list[int]  # the numbers of images without contents


def info(options: InfoOptions) -> Facts:
    """Print the set's facts and leave its contact sheet in the folder. Raises UserError for a set that isn't whole."""
    index, members = read(options.dest)
    places = [*zip(*(members[name].tolist() for name in ("shard", "offset", "length")), strict=True)]
    looks = _look(options, index, places)
    if sha256(b"".join(look.digest for look in looks)).hexdigest()[:16] != index["content_hash"]:
        raise UserError(f"{options.dest} isn't as it was prepared (its hash is another): prepare the data set again")
    labels = members.get("label")
    facts = Facts(
        index=index,
        label_counts=None if labels is None else np.bincount(labels, minlength=len(index["labels"])).tolist(),
        duplicates=_duplicates(looks),
        flat=[number for number, look in enumerate(looks) if look.std < FLAT_STD],
    )
    print("\n".join(_lines(options.dest, facts)))
    _save_contact_sheet(options.dest, index, places)
    return facts


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return index.json and members.safetensors. Raises UserError."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        members = load((folder / MEMBERS).read_bytes())
        lengths = {name: len(members[name]) for name in ("shard", "offset", "length")}
        if missing := {"labels", "skipped", "shards", "content_hash", "image_size", "channels"} - {*index}:
            raise KeyError(*missing)
        if index["format"] != FORMAT or {*lengths.values()} != {index["num_images"]}:
            raise KeyError(f"format {index['format']}, {index['num_images']} images, {lengths}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"{folder} is no whole prepared data set ({error}): make it with fastgan data prepare"
        ) from None
    return index, members


def _read_image(folder: Path, index: dict[str, Any], location: tuple[int, int, int]) -> np.ndarray:
    shard, offset, length = location
    with (folder / index["shards"][shard]["name"]).open("rb") as file:
        file.seek(offset)
        return decode(file.read(length), None, index["fit"], index["channels"])


def _look(options: InfoOptions, index: dict[str, Any], places: list[tuple[int, int, int]]) -> list[Look]:
    """Raises UserError for an image that can't be read."""
    batches: Iterator[list[tuple[int, int, int]]] = (
        places[start : start + BATCH_IMAGES] for start in range(0, len(places), BATCH_IMAGES)
    )
    looks: list[Look] = []
    with Pool(options.workers) as pool:
        for batch in pool.map(partial(look_at, options.dest, index), batches, CRASHED):
            for look in batch:
                if isinstance(look, BadImage):
                    raise UserError(f"image {len(looks)} of {options.dest} is damaged ({look}): prepare it again")
                looks.append(look)
    return looks


def look_at(folder: Path, index: dict[str, Any], places: list[tuple[int, int, int]]) -> list[Look | BadImage]:
    """Return what is seen of the images at the places, or why nothing is."""
    looks: list[Look | BadImage] = []
    for location in places:
        try:
            pixels = _read_image(folder, index, location)
            looks.append(Look(digest(pixels), float(pixels.std(axis=(0, 1)).max())))
        except (OSError, IndexError) as error:
            looks.append(BadImage(str(error)))
        except BadImage as bad:
            looks.append(bad)
    return looks


def _duplicates(looks: list[Look]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for number, look in enumerate(looks):
        groups.setdefault(look.digest, []).append(number)
    return [numbers for numbers in groups.values() if len(numbers) > 1]


def _lines(folder: Path, facts: Facts) -> Iterator[str]:
    index = facts.index
    height, width = index["image_size"]
    yield f"{folder}: {index['num_images']:,} images of {height}x{width}, {index['channels']} channels"
    yield f"{index['encoding']}, shards: {len(index['shards']):,}, from {show(index['source'])} by {index['fit']}"
    tones = Tones.from_plain(index)
    if tones != Tones():
        values = (
            ""
            if tones.value_range is None
            else ", {:g} in the files as black, {:g} as white".format(*tones.value_range)
        )
        yield f"background {tones.background}{values}"
    if facts.label_counts is None:
        yield f"labels: vectors of {index['vector_dim']} numbers" if "vector_dim" in index else "labels: none"
    else:
        yield f"labels: {len(facts.label_counts):,}"
        for name, count in zip(index["labels"], facts.label_counts, strict=True):
            yield f"  {count:8,}  {show(name)}"
    skipped = [Skipped(**one) for one in index["skipped"]]
    yield f"skipped files: {len(skipped):,}"
    for kind, count in sorted(Counter(one.kind for one in skipped).items()):
        yield f"  {count:8,}  {kind}"
    more = sum(len(numbers) - 1 for numbers in facts.duplicates)
    groups = "; ".join(" = ".join(map(str, numbers[:NAMED])) for numbers in facts.duplicates[:NAMED])
    yield f"duplicates: {more:,}" + (f" (images {groups})" if groups else "")
    yield f"nearly one colour: {len(facts.flat):,}" + (
        f" (images {', '.join(map(str, facts.flat[:NAMED]))})" if facts.flat else ""
    )
    if index["num_images"] < FEW_IMAGES:
        yield f"warning: under {FEW_IMAGES:,} images a GAN memorises them: find more, or train with augmentation"
    yield f"contact sheet: {folder / CONTACT_SHEET}"


def _save_contact_sheet(folder: Path, index: dict[str, Any], places: list[tuple[int, int, int]]) -> None:
    """Up to 64 images, evenly spread over the set."""
    import torch

    from fastgan.utils.pngs import grid, save_png

    chosen = np.linspace(0, len(places) - 1, min(SHEET_IMAGES, len(places))).round().astype(int).tolist()
    images = np.stack([_read_image(folder, index, places[number]) for number in chosen])
    try:
        save_png(folder / CONTACT_SHEET, grid(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()))
    except OSError as error:
        raise UserError(f"cannot write {folder / CONTACT_SHEET} ({error.strerror}): check its permissions") from None
