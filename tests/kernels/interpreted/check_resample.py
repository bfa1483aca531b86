"""The resampling kernels, alone and with an activation, against their references and the networks' layers."""

from functools import partial

import pytest
import torch
from comparing import LAYOUTS, assert_derivatives, assert_same, assert_same_by_functions, cases, drawn

from fastgan.kernels.resample import downsample2, downsample2_act, upsample2, upsample2_act

SHAPES = ((2, 3, 4, 6), (1, 1, 2, 2), (0, 4, 2, 2), (1, 33, 2, 4))
LINEAR = (downsample2, upsample2)
ACTIVE = tuple(partial(op, slope=0.2, gain=1.5, clamp=1.1) for op in (downsample2_act, upsample2_act))


@pytest.mark.parametrize(("dtype", "layout", "shape"), cases(SHAPES), ids=str)
def test_the_kernel_is_the_reference(dtype, layout, shape):
    """Values and all derivatives, without an activation, with one, and with its bias."""
    x, bias = drawn(shape, dtype, layout), drawn(shape[1:2], dtype, "strided", seed=9)
    for op in LINEAR:
        assert_same(op, (x,), dtype)
    for op in ACTIVE:
        assert_same(op, (x, bias), dtype)
    assert_same(ACTIVE[0], (x,), dtype)


def test_several_tiles():
    """Pictures larger than a tile."""
    for layout in LAYOUTS[:2]:
        x, bias = drawn((1, 1, 18, 46), torch.float64, layout), drawn((1,), torch.float64, seed=9)
        assert_same(ACTIVE[0], (x, bias), torch.float64)
        assert_same(ACTIVE[1], (x, bias), torch.float64)


def test_up_is_four_times_the_adjoint_of_down():
    """<up a, b> = 4 <a, down b>."""
    a, b = drawn((2, 3, 3, 5), torch.float64), drawn((2, 3, 6, 10), torch.float64, seed=4)
    up, down = upsample2(a, implementation="triton"), downsample2(b, implementation="triton")
    torch.testing.assert_close((up * b).sum(), 4 * (a * down).sum())


def test_derivatives():
    """gradcheck and gradgradcheck."""
    x, bias = drawn((1, 2, 4, 2), torch.float64), drawn((2,), torch.float64, seed=5)
    assert_derivatives(downsample2, (x,))  # and by the way upsample2, its derivative
    for op in ACTIVE:
        assert_derivatives(op, (x, bias))
        assert_same_by_functions(op, (x, bias))
