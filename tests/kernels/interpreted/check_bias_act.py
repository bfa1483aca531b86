"""bias_act's kernels against the reference."""

from functools import partial

import pytest
import torch
from comparing import LAYOUTS, assert_derivatives, assert_same, assert_same_by_functions, cases, drawn

from fastgan.kernels import bias_act as module
from fastgan.kernels.bias_act import bias_act

SHAPES = ((3, 5), (2, 3, 5, 3), (2, 1, 3, 3), (1, 130, 1, 2), (0, 4, 2, 2), (0, 3))
clamped = partial(bias_act, slope=0.2, gain=1.5, clamp=1.1)


@pytest.mark.parametrize(("dtype", "layout", "shape"), cases(SHAPES), ids=str)
def test_the_kernel_is_the_reference(dtype, layout, shape):
    """Values and all derivatives, with and without bias and clamp."""
    x, bias = drawn(shape, dtype, layout), drawn(shape[1:2], dtype, "strided", seed=9)
    assert_same(clamped, (x, bias), dtype)
    assert_same(partial(bias_act, gain=1.5), (x, bias), dtype)
    assert_same(clamped, (x,), dtype)


def test_sums_over_several_tiles(monkeypatch):
    """The gradient of the bias is whole also where one program adds up several tiles."""
    monkeypatch.setattr(module, "PROGRAMS", 2)
    for layout in LAYOUTS:
        assert_same(clamped, (drawn((2, 3, 40, 70), torch.float64, layout), drawn((3,), torch.float64)), torch.float64)


def test_a_long_bias_of_a_short_x():
    """A float32 bias of bfloat16 numbers gets a float32 gradient."""
    x, bias = drawn((2, 3, 4, 4), torch.bfloat16), drawn((3,), torch.float32)
    y = bias_act(x, bias, implementation="triton")
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 2, 3)], ids=str)
def test_derivatives(shape):
    """gradcheck and gradgradcheck."""
    inputs = drawn(shape, torch.float64), drawn(shape[1:2], torch.float64, seed=5)
    assert_derivatives(clamped, inputs)
    assert_same_by_functions(clamped, inputs)


def test_not_a_number_stays():
    """NaN and infinities come through, and only infinities are clamped."""
    x = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    assert torch.equal(clamped(x, implementation="triton")[0, 1:], torch.tensor([1.1, -1.1]))
    assert clamped(x, implementation="triton")[0, 0].isnan()
