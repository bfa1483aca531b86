import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data.images import ArrayDataset, read_idx, to_bytes, to_unit_range
from fastgan.errors import UserError


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    """An idx file of bytes, put together by hand."""
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def test_every_level_comes_back() -> None:
    """All 256 levels survive the way to [-1, 1] and back."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit_range(levels)), levels)


def test_unit_range() -> None:
    """Black is -1, white is 1, both exactly; between them the levels rise in equal steps, float32."""
    images = to_unit_range(torch.arange(256, dtype=torch.uint8))
    assert images.dtype == torch.float32
    assert images[0] == -1 and images[255] == 1
    assert torch.allclose(images.diff(), torch.full((255,), 2 / 255), atol=1e-6)


def test_unit_range_leaves_its_input() -> None:
    """The bytes that were converted are what they were."""
    images = torch.tensor([0, 7, 255], dtype=torch.uint8)
    to_unit_range(images)
    assert images.tolist() == [0, 7, 255]


def test_bytes_are_clipped_and_rounded() -> None:
    """What lies outside of [-1, 1] becomes black or white, the rest the nearest level."""
    values = torch.tensor([-math.inf, -7.0, -1.001, -1.0, 1.0, 1.001, 7.0, math.inf])
    assert to_bytes(values).tolist() == [0, 0, 0, 0, 255, 255, 255, 255]
    step = 2 / 255
    assert to_bytes(torch.tensor([-1 + 0.45 * step, -1 + 0.55 * step, 1 - 0.55 * step])).tolist() == [0, 1, 254]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_leave_their_input(dtype: torch.dtype) -> None:
    """Floats of any precision are converted, and the tensor that was given stays as it was."""
    values = torch.tensor([-1.0, 0.5, 3.0], dtype=dtype)
    assert to_bytes(values).tolist() == [0, 191, 255]
    assert values.tolist() == [-1.0, 0.5, 3.0]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)])
def test_idx_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A good file gives the array that is in it."""
    array = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "good"
    path.write_bytes(idx(shape, array.tobytes()))
    tensor = read_idx(path)
    assert tensor.dtype == torch.uint8 and torch.equal(tensor, torch.from_numpy(array))


def test_idx_tensor_is_its_own(tmp_path: Path) -> None:
    """What was read may be written to."""
    path = tmp_path / "good"
    path.write_bytes(idx((3,), b"abc"))
    tensor = read_idx(path)
    tensor += 1
    assert bytes(tensor.tolist()) == b"bcd"


BAD = {
    "empty": b"",
    "three bytes": b"\0\0\x08",
    "wrong magic": b"\1" + idx((2,), b"ab")[1:],
    "not bytes but int32": b"\0\0\x0c" + idx((2,), b"ab")[3:],
    "header cut short": idx((2, 3), b"")[:9],
    "data cut short": idx((2, 3), b"abcde"),
    "no data": idx((2, 3), b""),
    "too long": idx((2, 3), b"abcdefg"),
    "a web page": b"<html>not found</html>",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_idx_file(tmp_path: Path, kind: str) -> None:
    """A file that isn't whole, or no idx file, is refused in one line that names it and the remedy."""
    path = tmp_path / "bad-file"
    path.write_bytes(BAD[kind])
    with pytest.raises(UserError) as caught:
        read_idx(path)
    text = str(caught.value)
    assert str(path) in text and "delete it" in text and "\n" not in text


def test_content_hash() -> None:
    """Equal pixels have equal hashes, whatever the name and the place in memory; one other pixel, another hash."""
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    content = ArrayDataset("a", images).content_hash()
    assert ArrayDataset("b", images.clone(), torch.tensor([0, 1])).content_hash() == content
    assert ArrayDataset("a", images.to(memory_format=torch.channels_last)).content_hash() == content
    changed = images.clone()
    changed[1, 2, 3, 4] += 1
    assert ArrayDataset("a", changed).content_hash() != content


def test_content_hash_knows_the_shape() -> None:
    """The same bytes in another shape have another hash."""
    images = torch.arange(48, dtype=torch.uint8)
    shapes = [(1, 3, 4, 4), (3, 1, 4, 4), (1, 3, 2, 8), (1, 3, 8, 2), (4, 3, 2, 2)]
    assert len({ArrayDataset("a", images.view(shape)).content_hash() for shape in shapes}) == len(shapes)


def test_length_of_a_set() -> None:
    """A set is as long as it has images."""
    assert len(ArrayDataset("a", torch.zeros(5, 1, 2, 2, dtype=torch.uint8))) == 5
