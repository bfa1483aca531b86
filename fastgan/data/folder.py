"""A folder of images as it is: fitted to the size while it is read, so that training can start at once."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.data.archives import IMAGE_SUFFIXES, list_folder
from fastgan.data.images import decoded
from fastgan.data.labels import LabelOptions, label_entries
from fastgan.data.pixels import BadImage, Transform, pixels_of
from fastgan.errors import UserError


class FolderDataset:
    """Every image below `folder`, its middle fitted to `image_size`, with the labels that are wanted.

    `notes` say, in lines, what is left out or not used. A file that turns out broken is reported, once, and the next
    good one stands in for it.
    Raises UserError where there is no image.
    """

    def __init__(
        self, folder: Path, image_size: tuple[int, int], channels: int, options: LabelOptions | None = None
    ) -> None:
        self.folder, self.name, self.image_size, self.channels = folder, folder.name, image_size, channels
        self._recipe = Transform(image_size, "crop", channels)
        labelled = label_entries(list_folder(folder.resolve(), without=None), options)
        self._entries, self.notes, self.labels_origin = labelled.entries, labelled.notes, labelled.origin
        if not self._entries:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{folder} holds no images (files that end in {endings}): name another folder")
        self.labels = None if labelled.labels is None else torch.tensor(labelled.labels)
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def _decode(self, item: int) -> np.ndarray:
        for step in range(len(self)):
            number = (item + step) % len(self)
            entry = self._entries[number]
            try:
                return pixels_of(self._recipe, entry.read())
            except BadImage as bad:
                if number not in self._broken:
                    self._broken.add(number)
                    print(f"{self.folder / entry.name}: {bad}; the next image stands in for it", flush=True)
        raise UserError(f"no image in {self.folder} can be read: name another folder")

    def pixels(self, indices: Tensor) -> Tensor:
        """The images of the given numbers, uint8 [B, C, H, W], channels last in memory."""
        return decoded(self._decode, indices, (*self.image_size, self.channels))

    def content_hash(self) -> str:
        """A hash of names, sizes and times of change: the files themselves may be too many to read for it."""
        digest = sha256(repr((self.image_size, self.channels)).encode())
        for entry in self._entries:
            stat = (self.folder / entry.name).stat()
            digest.update(f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
