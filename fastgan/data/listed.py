"""The images of a folder or an archive as they are: for measuring, where no image may stand in for another."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.data.archives import ArchiveReader, Entry
from fastgan.data.content import hash_set
from fastgan.data.images import decoded
from fastgan.data.pixels import BadImage, RawImage, Size, Transform, read, shape_of
from fastgan.data.skipped import Skipped, few
from fastgan.data.survey import survey
from fastgan.errors import UserError
from fastgan.utils.tone_options import AUTO

NAMED_SIZES = 4  # in a message


class ListedDataset:
    """The images that an archive's reader, open as long as they are asked for, lists; all of one size, or fitted to it.

    `summary` says, in lines, what is left out. Raises UserError where there is no image, or where their sizes differ
    and `size` is None.
    """

    labels = None
    classes = None

    def __init__(self, name: str, source: ArchiveReader, size: Size | None = None, background: str = AUTO) -> None:
        self.name, self._is_folder = name, source.kind == "folder"
        if self._is_folder:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                shapes = [*pool.map(_shape_of, source.entries)]
        else:
            shapes = [*map(_shape_of, source.entries)]  # tars are no place for threads
        looked_at = [*zip(source.entries, shapes, strict=True)]
        found = [(entry, shape) for entry, shape in looked_at if isinstance(shape, tuple)]
        bad = [Skipped(entry.name, str(shape)) for entry, shape in looked_at if isinstance(shape, BadImage)]
        left_out = [*source.left_out, *source.skipped, *bad]
        if not found:
            raise UserError(f"{name} holds no images ({few(left_out) or 'nor anything else'}): name another")
        self._entries = [entry for entry, _ in found]
        self.image_size = size or _one_size(name, [shape[:2] for _, shape in found])
        self.channels = max(shape[2] for _, shape in found)
        self.tones, self.summary, _ = survey(self._entries, background, AUTO, keeps_alpha=self.channels == 4)
        if left_out:
            self.summary.append(f"left out: {few(left_out)}")
        self._transform = Transform(self.image_size, "crop", self.channels, tones=self.tones)

    def __len__(self) -> int:
        return len(self._entries)

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W]. Raises UserError for one that can't be read."""
        entries = [self._entries[item] for item in indices.tolist()]
        raws = [*map(_raw, entries)]

        def decode(place: int) -> np.ndarray:
            try:
                return read(self._transform, raws[place])[0]
            except BadImage as bad:
                raise UserError(f"{entries[place].name} in {self.name}: {bad}; mend it, or take it away") from None

        return decoded(decode, torch.arange(len(raws)), (*self.image_size, self.channels))

    def content_hash(self) -> str:
        """Return a hash of what the files hold and of what becomes of it; a folder's is that of `FolderDataset`."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        paths = [entry.path for entry in self._entries if entry.path is not None]
        if self._is_folder:
            shape = self.image_size, self.channels
            return hash_set(Path(self.name).expanduser(), paths, shape, self.tones, torch.get_num_threads())
        digest = sha256(repr(self._transform).encode())
        for raw in map(_raw, self._entries):
            digest.update(raw if isinstance(raw, bytes) else str(raw).encode())
        return digest.hexdigest()[:16]


def _raw(entry: Entry) -> RawImage:
    """The image's file, or its bytes in an archive, or why there are none."""
    try:
        return entry.path or entry.read()
    except BadImage as bad:
        return bad


def _shape_of(entry: Entry) -> tuple[int, int, int] | BadImage:
    try:
        return shape_of(_raw(entry))
    except BadImage as bad:
        return bad


def _one_size(name: str, sizes: list[Size]) -> Size:
    """The images' size. Raises UserError where they have several."""
    counts = Counter(sizes).most_common()
    if len(counts) > 1:
        said = [f"{count:,} of {show_size(size)}" for size, count in counts[:NAMED_SIZES]]
        said += [f"{len(counts) - NAMED_SIZES:,} other sizes"] * (len(counts) > NAMED_SIZES)
        side = min(counts[0][0])
        raise UserError(
            f"the images of {name} differ in size ({', '.join(said)}): give --size {side}, say, to crop and resize them"
        )
    return counts[0][0]


def show_size(size: Size) -> str:
    """Return the size as a command line has it, height first."""
    return f"{size[0]}x{size[1]}"
