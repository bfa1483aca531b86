"""The resampling kernels against their references and the networks' layers."""

import pytest
import torch
from comparing import LAYOUTS, assert_derivatives, assert_same, assert_same_by_functions, cases, drawn

from fastgan.kernels.resample import downsample2, upsample2

SHAPES = ((2, 3, 4, 6), (1, 1, 2, 2), (0, 4, 2, 2), (1, 33, 2, 4))
OPS = (downsample2, upsample2)


@pytest.mark.parametrize(("dtype", "layout", "shape"), cases(SHAPES), ids=str)
def test_the_kernel_is_the_reference(dtype, layout, shape):
    """Values and all derivatives."""
    for op in OPS:
        assert_same(op, (drawn(shape, dtype, layout),), dtype)


def test_several_tiles():
    """Pictures larger than a tile."""
    for layout in LAYOUTS[:2]:
        for op in OPS:
            assert_same(op, (drawn((1, 1, 18, 46), torch.float64, layout),), torch.float64)


def test_up_is_four_times_the_adjoint_of_down():
    """<up a, b> = 4 <a, down b>."""
    a, b = drawn((2, 3, 3, 5), torch.float64), drawn((2, 3, 6, 10), torch.float64, seed=4)
    up, down = upsample2(a, implementation="triton"), downsample2(b, implementation="triton")
    torch.testing.assert_close((up * b).sum(), 4 * (a * down).sum())


def test_derivatives():
    """gradcheck and gradgradcheck."""
    x = drawn((1, 2, 4, 2), torch.float64)
    assert_derivatives(downsample2, (x,))  # and by the way upsample2, its derivative
    for op in OPS:
        assert_same_by_functions(op, (x,))
