"""A prepared data set: encoded images in tar shards, any of them reachable at once."""

import io
import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from fastgan.data.content import sha256_each
from fastgan.data.images import decoded
from fastgan.data.tones import Tones
from fastgan.errors import UserError

INDEX, MEMBERS = "index.json", "members.safetensors"
FORMAT = 1


def is_prepared(folder: Path) -> bool:
    return (folder / INDEX).is_file()


class PreparedDataset:
    """The set that `fastgan data prepare` left in `folder`. Raises UserError where a part of it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        index, members = _read(folder)
        self.channels: int = index["channels"]
        self.image_size: tuple[int, int] = (index["image_size"][0], index["image_size"][1])
        self.encoding: str = index["encoding"]
        self.fit: str = index.get("fit", "crop")
        self.tones = Tones.from_plain(index)
        self._prepared_hash: str = index["content_hash"]
        self._sha256s: list[str | None] = [shard.get("sha256") for shard in index["shards"]]
        self._shards = [folder / shard["name"] for shard in index["shards"]]
        self._places = torch.stack([members[name] for name in ("shard", "offset", "length")], dim=1).numpy()
        self.labels: Tensor | None = members.get("label", members.get("vector"))
        self.classes: list[str] | None = index.get("labels")
        for shard in self._shards:
            if not shard.exists():
                raise UserError(f"{shard} is missing: prepare the data set again")

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: it maps the shards itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        maps = [np.memmap(shard, np.uint8, mode="r") for shard in self._shards]
        return [np.asarray(shard) for shard in maps]  # the same memory, without the cost of slicing a memmap

    def encoded(self, item: int) -> np.ndarray:
        """Return the bytes of the image file, uint8 [length]; nothing is copied."""
        shard, offset, length = self._places[item]
        return self._maps[shard][offset : offset + length]

    def decode(self, item: int) -> np.ndarray:
        """Return the image, uint8 [H, W, C]. Raises UserError for a file that has changed since it was prepared."""
        try:
            with Image.open(io.BytesIO(self.encoded(item).tobytes())) as image:
                pixels = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"image {item} of {self.folder} is damaged ({error}): prepare the data set again") from None
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W], channels last in memory."""
        return decoded(self.decode, indices, (*self.image_size, self.channels))

    def content_hash(self) -> str:
        """Return the hash of the pixels as they were prepared; another one where the shards aren't as they were."""
        _, digests = self._changed
        if not digests:
            return self._prepared_hash
        return sha256(" ".join([self._prepared_hash, *digests]).encode()).hexdigest()[:16]

    def changes(self) -> list[str]:
        """Return what is to be said of shards that have changed since, in lines."""
        names, _ = self._changed
        if not names:
            return []
        several = f" and {len(names) - 1:,} more" * (len(names) > 1)
        return [f"{names[0]}{several} of {self.folder} changed after it was prepared: better prepare it again"]

    @cached_property
    def _changed(self) -> tuple[list[str], list[str]]:
        """The names of the shards whose bytes are others than when they were prepared, and their hashes.

        Sets of more than `content` reads whole are taken as they are.
        """
        found = sha256_each(self.folder, self._shards, torch.get_num_threads()) or self._sha256s
        every = zip(self._shards, found, self._sha256s, strict=True)
        changed = [(shard.name, str(now)) for shard, now, then in every if then is not None and now != then]
        return [name for name, _ in changed], [digest for _, digest in changed]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != FORMAT:
            raise UserError(f"{folder} has format {index['format']}, this fastgan reads {FORMAT}: prepare it again")
        members = safetensors.torch.load((folder / MEMBERS).read_bytes())
        if len(members["offset"]) != index["num_images"]:
            raise UserError(f"{folder / MEMBERS} doesn't fit {INDEX}: prepare the data set again")
    except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is no whole prepared data set ({error}): prepare it again") from None
    return index, members
