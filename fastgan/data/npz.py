"""Arrays in .npz files, of which no pickle is ever loaded: what is wrong with one is said in a line."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch

from fastgan.data import archives
from fastgan.data.images import ArrayDataset
from fastgan.errors import UserError
from fastgan.utils.memory import require_free

LOCAL_HEADER = 30  # bytes of a member's header in the archive, in front of its name; the lengths of what follows are 26
BROKEN = (*archives.BROKEN, KeyError, OverflowError)


def array_names(path: Path) -> set[str]:
    """Return the names of the file's arrays. Raises UserError where it is none of such."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except BROKEN as error:
        raise UserError(f"{path} is no whole .npz file ({error}): make it again") from None


def read_array(path: Path, name: str) -> np.ndarray:
    """Return the array of the file, mapped where it isn't compressed: what isn't used of it takes no memory.

    Raises UserError where there is no such array, or pickled objects in its place.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            info = archive.getinfo(f"{name}.npy")
            is_old = np.lib.format.read_magic(file) == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if is_old else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(file)
            offset = file.tell()
        if dtype.hasobject:
            raise UserError(f"{path}: {name} holds pickled objects, which are never loaded: save it as numbers")
        if info.compress_type == zipfile.ZIP_STORED and np.prod(shape):
            with path.open("rb") as raw:
                raw.seek(info.header_offset)
                offset += info.header_offset + LOCAL_HEADER + sum(struct.unpack_from("<HH", raw.read(LOCAL_HEADER), 26))
            # Nobody writes, but torch wants arrays that could be written.
            return np.memmap(path, dtype, "c", offset, shape, "F" if is_fortran else "C")
        require_free(info.file_size, "cpu", f"{path}: the array {name}", "save it by np.savez, not compressed")
        with np.load(path, allow_pickle=False) as arrays:
            found: np.ndarray = arrays[name]
            return found
    except BROKEN as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the array {name} can't be read ({error}): make the file again") from None


def read_images(path: Path) -> ArrayDataset:
    """Return the images of a file in ADM's layout: arr_0, uint8 [N, H, W, C]. Raises UserError."""
    pixels = read_array(path, "arr_0")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or 0 in pixels.shape:
        found = f"{path}: arr_0 is {pixels.dtype} {[*pixels.shape]}"
        raise UserError(f"{found}: give images as uint8 [N, H, W, C] with 1, 3 or 4 channels")
    return ArrayDataset(path.name, torch.from_numpy(pixels).permute(0, 3, 1, 2))
