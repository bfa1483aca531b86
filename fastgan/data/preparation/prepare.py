"""`fastgan data prepare SRC DEST`: any images as shards of one size; the same bytes on any number of processes."""

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tyro
from tqdm import tqdm

from fastgan import __version__
from fastgan.data.archives import ArchiveReader, Entry
from fastgan.data.labels import AUTO, Labelled, LabelOptions, label_entries
from fastgan.data.names import NAMES
from fastgan.data.pixels import BadImage, EncodedImage, RawImage, Size, Transform, count_channels, encode
from fastgan.data.preparation import shard_writer
from fastgan.data.preparation.inputs import open_archive
from fastgan.data.preparation.pool import Pool
from fastgan.data.preparation.shard_writer import INDEX, JOB, Shard, ShardWriter
from fastgan.data.skipped import Skipped, few, in_order, name_bytes, show
from fastgan.data.summary import describe_source, name_classes
from fastgan.data.survey import missed_lines, survey
from fastgan.data.tones import Tones
from fastgan.errors import UserError
from fastgan.utils.cores import require_startable
from fastgan.utils.tone_options import parse_background, parse_range

T = TypeVar("T")

BATCH_IMAGES = 64  # sent to a worker in one go, or fewer where they are large
BATCH_BYTES = 8 * 2**20
MAX_SIDE = 8192
CRASHED: BadImage | EncodedImage = BadImage("its decoder crashed")


@dataclass(frozen=True)
class PrepareOptions:
    """Make any images a data set to train on: one size, in shards, each file that can't be used named."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder, zip, tar, folder or {000..012} pattern of tars, folder of parquet files; mnist, fashion-mnist, toy."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """A new folder for the data set; the same command resumes after a stop."""
    size: str
    """The images' size: 128, or 96x160 (height x width)."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How other shapes get the size: cut the centre out, add background (black where nothing is transparent), bend."""
    channels: Literal["auto", "1", "3", "4"] = "auto"
    """auto: 1 where all are grey, 4 where any is transparent, else 3."""
    background: str = "auto"
    """What is transparent lies on it where the set has no 4 channels: white, black, #RRGGBB; auto: what keeps the
    pictures visible."""
    range: str = "auto"
    """LOW:HIGH, which numbers in the files are black and white; full: the least and the most that such files hold;
    auto: full, or, of files of more than 8 bits, what the set's numbers take up."""
    format: Literal["png", "jpeg"] = "png"
    """How images are stored: png keeps every pixel, jpeg is smaller."""
    quality: int = 95
    """Of JPEGs, 1 to 100."""
    labels: str | None = None
    """CSV or JSON file of file names and labels; none: a set without; by default as SRC has them (class folders)."""
    condition: Literal["class", "vector"] = "class"
    """What labels are: classes, or vectors of attributes, several numbers an image."""
    label_column: str | None = None
    """The column of a CSV file's labels, by name or, without names, by number; of a vector several: a,b,c."""
    file_column: str | None = None
    """The column of a CSV file's file names."""
    workers: int | None = None
    """Processes; by default one a core."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fail where any file is skipped."""


def parse_size(text: str) -> Size:
    """Return (height, width) of `128` or `96x160`. Raises UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip().lower())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise UserError(f"size is {text!r}: give a side or HEIGHTxWIDTH of 1 to {MAX_SIDE}, like 128 or 96x160")
    return size


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Make DEST a prepared data set; return its index.

    Raises UserError where nothing is left, or in `strict` a file skipped.
    """
    size, dest = _check(options), options.dest.expanduser().resolve()
    try:
        shard_writer.check_dest(dest)
        try:
            with (
                shard_writer.lock(dest),
                open_archive(options.source, dest) as source,
                Pool(options.workers) as pool,
            ):
                return _prepare(options, size, dest, source, pool)
        finally:
            if not (dest / JOB).exists():  # nothing was begun
                shard_writer.clear(dest)
                with contextlib.suppress(OSError):
                    dest.rmdir()
    except BrokenPipeError:  # of the console, not of DEST
        raise
    except OSError as error:
        raise UserError(f"cannot write {dest} ({error.strerror or error}): fix that and run the same again") from None


def _check(options: PrepareOptions) -> Size:
    if not 1 <= options.quality <= 100:
        raise UserError(f"quality is {options.quality}: give 1 to 100")
    require_startable("workers", options.workers)
    if options.format == "jpeg" and options.channels == "4":
        raise UserError("format is jpeg, which has no channel for transparency: give --format png or --channels 3")
    if (
        options.source not in NAMES
        and Path(options.source).expanduser().resolve() == options.dest.expanduser().resolve()
    ):
        raise UserError(f"DEST is {options.dest}, which is SRC: give another folder")
    parse_background(options.background)
    parse_range(options.range)
    return parse_size(options.size)


def _prepare(options: PrepareOptions, size: Size, dest: Path, source: ArchiveReader, pool: Pool) -> dict[str, Any]:
    labels = LabelOptions(options.labels or AUTO, options.condition, options.label_column, options.file_column)
    labelled = label_entries(source, labels)
    before = [*source.skipped, *labelled.skipped]
    if not labelled.entries:
        why = few([*before, *source.left_out]) or "it has none"
        raise UserError(f"no image in {options.source!r} can be used: {why}")
    job = _job(options, size, labelled)
    begun = shard_writer.resume_state(dest, job)
    if begun is not None and (dest / INDEX).exists():
        return _report_old(dest, options.strict)
    print(f"{show(options.source)}: {len(labelled.entries):,} images ({source.kind}); labels: {labelled.origin}")
    for line in describe_source(options.source, source, labelled, None):
        print(line)
    if begun is None:
        begun = _resolve(options, labelled.entries, pool)
        shard_writer.begin(dest, job, *begun)
    channels, tones, watch = begun
    recipe = Transform(size, options.fit, channels, options.format, options.quality, tones, watch)
    shards, rest = _write_shards(dest, recipe, labelled, pool)
    skipped = in_order([*before, *rest, *(one for shard in shards for one in shard.skipped)])
    if not shards:
        (dest / JOB).unlink()
        raise UserError(f"no image in {options.source!r} can be used: {few(skipped)}")
    _be_strict(options.strict, skipped)
    index = {
        "image_size": [*size],
        "channels": channels,
        **tones.to_plain(),
        "encoding": options.format,
        "labels": labelled.classes,
        **({"vector_dim": len(labelled.vectors[0])} if labelled.vectors else {}),
        "label_counts": _label_counts(labelled, shards),
        "fit": options.fit,
        "source": options.source,
        "fastgan": __version__,
        "skipped": [one._asdict() for one in skipped],
        "left_out": [one._asdict() for one in in_order(source.left_out)],
    }
    whole = shard_writer.finish(dest, shards, index)
    shard_writer.clear(dest)
    seen = sum((Counter(shard.seen) for shard in shards), Counter[str]())
    for line in missed_lines(seen, whole["num_images"], tones):
        print(line)
    print(describe(dest, whole))
    return whole


def _label_counts(labelled: Labelled, shards: list[Shard]) -> list[int] | None:
    """The images of each class that are in the shards."""
    if labelled.classes is None:
        return None
    found = Counter(label for shard in shards for label in shard.labels)
    return [found[number] for number in range(len(labelled.classes))]


def _job(options: PrepareOptions, size: Size, labelled: Labelled) -> dict[str, Any]:
    """What the bytes of the set depend on."""
    files = sha256(repr(labelled.classes).encode())
    for entry, number in zip(labelled.entries, labelled.labels or itertools.repeat(None), strict=False):
        files.update(f"{name_bytes(entry.name)!r} {entry.size} {number}\n".encode())
    source = options.source if options.source in NAMES else str(Path(options.source).expanduser().resolve())
    return {
        "source": ascii(source),
        "size": f"{size[0]}x{size[1]}",
        "fit": options.fit,
        "channels": options.channels,
        "background": options.background,
        "range": options.range,
        "format": options.format,
        "quality": options.quality if options.format == "jpeg" else None,
        "labels": options.labels or "auto",
        "files": files.hexdigest(),
    }


def _resolve(options: PrepareOptions, entries: list[Entry], pool: Pool) -> tuple[int, Tones, tuple[str, ...]]:
    """The channels and tones of the set, and what to watch for; a line each is printed where that is of interest."""
    channels = _resolve_channels(options, entries, pool) if options.channels == "auto" else int(options.channels)
    tones, remarks, watch = survey(entries, options.background, options.range, keeps_alpha=channels == 4)
    for remark in remarks:
        print(remark)
    return channels, tones, watch


def _resolve_channels(options: PrepareOptions, entries: list[Entry], pool: Pool) -> int:
    most, position = 1, 0
    with contextlib.closing(pool.map(count_channels, _batches(entries), 0)) as counts:
        for batch in _progress(counts, entries, 0, "headers"):
            most = max(most, *batch)
            if most == 4:
                name = show(entries[position + batch.index(4)].name)
                break
            position += len(batch)
    if most == 4 and options.format == "jpeg":
        raise UserError(f"format is jpeg and {name} is transparent: give --format png or --channels 3")
    if most == 4:
        print(f"4 channels, as {name} is transparent; --channels 3 lays it on a background")
    return most


def _batches(entries: list[Entry], start: int = 0) -> Iterator[list[RawImage]]:
    """The entries' raw images from `start` on, several at a time."""
    batch: list[RawImage] = []
    num_bytes = 0
    for position in range(start, len(entries)):
        try:
            raw: RawImage = entries[position].path or entries[position].read()
        except BadImage as bad:
            raw = bad
        batch.append(raw)
        num_bytes += raw.nbytes if isinstance(raw, np.ndarray) else len(raw) if isinstance(raw, bytes) else 0
        if len(batch) == BATCH_IMAGES or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _progress(batches: Iterable[list[T]], entries: list[Entry], start: int, what: str) -> Iterator[list[T]]:
    """The same batches, with a bar on a terminal."""
    with tqdm(total=len(entries), initial=start, desc=what, unit=" images", disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _write_shards(dest: Path, recipe: Transform, labelled: Labelled, pool: Pool) -> tuple[list[Shard], list[Skipped]]:
    """All shards, those of a stopped run kept, and what was skipped where no image came after it."""
    shards = shard_writer.finished_shards(dest)
    start = shards[-1].next if shards else 0
    cooked = pool.map(partial(encode, recipe), _batches(labelled.entries, start), CRASHED)
    results = itertools.chain.from_iterable(_progress(cooked, labelled.entries, start, "prepare"))
    writer, labels = ShardWriter(dest, shards, recipe.encoding), labelled.labels
    try:
        for position, result in enumerate(results, start):
            if isinstance(result, BadImage):
                writer.skip(Skipped(labelled.entries[position].name, result.args[0]), position + 1)
                continue
            if not writer.fits(result):
                shards.append(writer.close())
                writer = ShardWriter(dest, shards, recipe.encoding)
            writer.add(result, labels[position] if labels else None, position + 1)
        if writer.shard.offsets:
            shards.append(writer.close())
            return shards, []
        return shards, writer.shard.skipped
    finally:
        writer.drop()


def _report_old(dest: Path, strict: bool) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((dest / INDEX).read_bytes())
    shard_writer.clear(dest)
    _be_strict(strict, [Skipped(**one) for one in whole["skipped"]])
    print(f"{describe(dest, whole)}\nnothing to do: it was there already")
    return whole


def _be_strict(strict: bool, skipped: list[Skipped]) -> None:
    if strict and skipped:
        raise UserError(f"--strict is given and files can't be used: {few(skipped)}")


def describe(dest: Path, index: dict[str, Any]) -> str:
    """Return a prepared set in two lines."""
    height, width = index["image_size"]
    labels = "no labels" if index["labels"] is None else f"{len(index['labels']):,} labels"
    counts = index.get("label_counts") or []
    empty = [name for name, count in zip(index["labels"] or [], counts, strict=False) if not count]
    labels += f" (no image of class {name_classes(empty)})" if empty else ""
    if "vector_dim" in index:
        labels = f"vectors of {index['vector_dim']} numbers"
    skipped = [Skipped(**one) for one in index["skipped"]]
    return (
        f"{show(str(dest))}: {index['num_images']:,} images of {height}x{width}, {index['channels']} channels, "
        f"{labels}, {index['encoding']}, shards: {len(index['shards'])}\n"
        f"skipped files: {len(skipped):,}{f', which {INDEX} lists: {few(skipped)}' if skipped else ''}"
    )
