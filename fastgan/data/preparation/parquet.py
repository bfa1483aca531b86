"""Images in the rows of parquet files, as the Hugging Face hub stores data sets."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastgan.data.archives import BROKEN, MAX_BYTES, ArchiveReader, Entry
from fastgan.data.label_table import plain
from fastgan.data.pixels import BadImage, RawImage
from fastgan.data.skipped import Skipped
from fastgan.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def list_parquet(paths: list[Path]) -> ArchiveReader:
    """Return the images of every row, in the order of the rows.

    Raises UserError without pyarrow or a column of images.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{paths[0]} is a parquet file, which pyarrow reads: pip install 'fastgan[parquet]'") from None
    source = ArchiveReader("parquet" if len(paths) == 1 else f"{len(paths)} parquet files", has_folders=False)
    for path in paths:
        try:
            file = source.handles.enter_context(pyarrow.parquet.ParquetFile(path))
            _list_rows(source, path, file)
        except UserError:
            raise
        except BROKEN as error:
            source.skipped.append(Skipped(path.name, f"damaged archive: {' '.join(str(error).split())}"))
    return source


def _list_rows(source: ArchiveReader, path: Path, file: Any) -> None:
    name, size = path.name, path.stat().st_size
    columns = file.schema_arrow.names
    image = next((column for column in IMAGE_COLUMNS if column in columns), None)
    if image is None:
        raise UserError(f"{name} has the columns {', '.join(columns)}: one named image, of {{bytes, path}}, is needed")
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    labels = file.read(columns=[label])[label].to_pylist() if label else [None] * file.metadata.num_rows
    source.classes = source.classes or (_class_names(file.schema_arrow.metadata, label) if label else None)
    rows = _Rows(file, image)
    for row, value in enumerate(labels):
        source.entries.append(Entry(f"{name}/{row:09d}", size, partial(rows.read, row), plain(value)))


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names that the hub's description of the columns gives the labels 0, 1, ..."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


class _Rows:
    """The images of a file, a group of rows in memory at a time: they are asked for in order."""

    def __init__(self, file: Any, column: str) -> None:
        self._file, self._column = file, column
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._group, self._images = -1, None

    def read(self, row: int) -> RawImage:
        group = int(np.searchsorted(self._ends, row, side="right"))
        try:
            if group != self._group:
                self._images = self._file.read_row_group(group, columns=[self._column])[self._column]
                self._group = group
            assert self._images is not None
            value = self._images[row - int(self._ends[group]) + len(self._images)].as_py()
        except BROKEN as error:
            raise BadImage(f"cannot be read: {' '.join(str(error).split())}") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage("row without the bytes of an image")
        if len(data) > MAX_BYTES:
            raise BadImage(f"above {MAX_BYTES // 2**20} MiB")
        return data
