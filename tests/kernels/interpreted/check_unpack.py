"""unpack's kernel against the reference and the loaders' own function."""

import pytest
import torch
from comparing import TOLERANCE, assert_equal

from fastgan.data.images import to_unit_range
from fastgan.kernels.unpack import unpack


def bytes_of(shape, layout="channels last"):
    batch, channels, height, width = shape
    pixels = torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    return {"channels last": pixels, "contiguous": pixels.contiguous(), "strided": pixels[:, :, ::2, ::2]}[layout]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["channels last", "contiguous", "strided"])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 1, 3, 4), (1, 4, 17, 34), (0, 3, 2, 2)], ids=str)
def test_the_kernel_is_the_reference(shape, layout, dtype):
    """Values and layout, mirrored and not; every value of float32 and float64 to the bit."""
    torch.manual_seed(0)
    images = bytes_of(shape, layout)
    for mirror in (None, torch.rand(len(images)) < 0.5):
        for channels_last in (False, True):
            found, wanted = (unpack(images, mirror, dtype, channels_last, way) for way in ("triton", "reference"))
            assert_equal(found, wanted, dtype)
            last = torch.channels_last if channels_last else torch.contiguous_format
            assert found.is_contiguous(memory_format=last)
            assert dtype not in (torch.float32, torch.float64) or torch.equal(found, wanted)


def test_it_is_what_the_loaders_do():
    """All 256 bytes as to_unit_range has them, to the bit."""
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(unpack(images, implementation="triton"), to_unit_range(images))
    mirrored = unpack(images, torch.tensor([True]), implementation="triton")
    assert torch.equal(mirrored, to_unit_range(images).flip(3))
