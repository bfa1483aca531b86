"""A folder of images as it is: fitted to the size while it is read, so that training can start at once."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.data.content import hash_set
from fastgan.data.findings import BROKEN, Findings
from fastgan.data.images import decoded
from fastgan.data.labels import NO_LABEL, LabelOptions, label_entries
from fastgan.data.local_folder import list_folder
from fastgan.data.pixels import BadImage, Transform, read
from fastgan.data.skipped import few
from fastgan.data.summary import describe_source
from fastgan.data.survey import missed_lines, survey
from fastgan.errors import UserError


class FolderDataset:
    """Every image below `folder`, its middle fitted to `image_size`, with the labels that are wanted.

    `summary` says, in lines, what it is made of, and what is left out or not used. A file that turns out broken is
    reported, once in the run of `run_dir`, and another one stands in for it: of its class where there is one, and
    always where the networks are told it. Raises UserError where there is no image.
    """

    def __init__(
        self,
        folder: Path,
        image_size: tuple[int, int],
        channels: int,
        options: LabelOptions | None = None,
        *,
        background: str = "auto",
        value_range: str = "auto",
        run_dir: Path | None = None,
    ) -> None:
        self.folder, self.name, self.image_size, self.channels = folder, folder.name, image_size, channels
        self.num_classes = options.num_classes if options is not None else 0
        source = list_folder(folder.resolve(), without=None)
        labelled = label_entries(source, options)
        self._entries, self.classes = labelled.entries, labelled.classes
        self.labels_origin = labelled.origin
        skipped = [*source.skipped, *(one for one in labelled.skipped if one.reason != NO_LABEL)]  # which has its note
        self.summary = describe_source(str(folder), source, labelled, self.num_classes)
        if skipped:
            self.summary.append(f"skipped files: {len(skipped):,}: {few(skipped)}")
        if not self._entries:
            raise UserError(
                f"{folder} holds no images ({'; '.join(self.summary) or 'nor anything else'}): name another folder"
            )
        self.tones, lines, watch = survey(self._entries, background, value_range, keeps_alpha=channels == 4)
        self._recipe = Transform(image_size, "crop", channels, tones=self.tones, watch=watch)
        self.labels = None if labelled.labels is None else torch.tensor(labelled.labels)
        self._findings, self._missed = Findings(run_dir), list[str]()
        self.summary += lines + self.missed()
        self._broken = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # with the processes of a loader

    def __len__(self) -> int:
        return len(self._entries)

    def _decode(self, item: int) -> np.ndarray:
        try:
            return self._read(item)
        except BadImage as bad:
            self._report(item, bad)
        for number in self._stand_ins(item):
            try:
                return self._read(number)
            except BadImage:  # reported when it is asked for
                continue
        is_told = self.num_classes and self.labels is not None
        what = f"class {self._class_of(item)} in {self.folder}" if is_told else str(self.folder)
        raise UserError(f"no image of {what} can be read: mend its files, or name another folder")

    def _read(self, item: int) -> np.ndarray:
        pixels, seen = read(self._recipe, self._entries[item].read())
        for kind in seen:
            self._findings.add(self._entries[item].name, kind)
        return pixels

    def missed(self) -> list[str]:
        """Return what is to be said of images that aren't as those by which background and range were chosen.

        Nothing where it has been returned before: it is complete once all images have been read.
        """
        lines = missed_lines(self._findings.counts(), len(self), self.tones)
        told, self._missed = self._missed, lines
        return [line for line in lines if line not in told]

    def _report(self, item: int, bad: BadImage) -> None:
        if not self.folder.is_dir():
            raise UserError(f"the folder {self.folder} is gone: put it back and run the same command again")
        if not self._broken[item]:
            self._broken[item] = True
            name = self._entries[item].name
            if not self._findings.add(name, BROKEN, str(bad)):
                return
            of = " of a near vector" if self.labels is not None else ""
            if self.classes is not None:
                of = f" of class {self._class_of(item)}"
            print(f"{self.folder / name}: {bad}; another image{of} stands in for it", flush=True)

    def _class_of(self, item: int) -> str:
        assert self.labels is not None and self.classes is not None
        return self.classes[int(self.labels[item])]

    def _stand_ins(self, item: int) -> Iterator[int]:
        """The next images that aren't known to be broken: of its class, then, where nobody is told it, of others.

        Where images have vectors, those of the nearest come first.
        """
        following = torch.arange(item + 1, item + len(self)) % len(self)
        following = following[~self._broken[following]]
        if self.labels is None:
            yield from following.tolist()
            return
        if self.labels.ndim == 2:
            distances = (self.labels[following] - self.labels[item]).norm(dim=1)
            yield from following[distances.argsort(stable=True)].tolist()
            return
        alike = self.labels[following] == self.labels[item]
        yield from following[alike].tolist()
        if not self.num_classes:
            yield from following[~alike].tolist()

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W], channels last in memory."""
        return decoded(self._decode, indices, (*self.image_size, self.channels))

    def content_hash(self) -> str:
        """Return a hash of what the files hold and of what becomes of it: of names and times only the order."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        paths = [entry.path or self.folder / entry.name for entry in self._entries]
        return hash_set(self.folder, paths, (self.image_size, self.channels), self.tones, torch.get_num_threads())
