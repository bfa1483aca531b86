"""diffaugment's kernel against the reference, and both against fastgan.training.augment."""

from functools import partial

import pytest
import torch
from comparing import assert_derivatives, assert_equal, assert_same, assert_same_by_functions, cases, drawn

from fastgan.kernels.diffaugment import diffaugment
from fastgan.training.augment import KINDS, AugmentParameters, augment, diff_changes
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

SHAPES = ((4, 3, 7, 10), (3, 4, 8, 8), (3, 1, 9, 5), (2, 5, 6, 6), (0, 3, 4, 4), (1, 3, 20, 19), (1, 3, 1, 2))


def keys_of(count):
    return rng.keys(3, RngStream.AUGMENT_D, torch.arange(count))


def changes_for(shape, p):
    """What fastgan.training.augment draws for such images."""
    return diff_changes(
        torch.empty(shape, device="meta"), AugmentParameters(keys_of(shape[0]), p, KINDS["diffaugment"])
    )


@pytest.mark.parametrize(("dtype", "layout", "shape"), cases(SHAPES), ids=str)
def test_the_kernel_is_the_reference(dtype, layout, shape):
    """Values and all derivatives; values are augment's as well."""
    op, x = partial(diffaugment, changes=changes_for(shape, 0.8)), drawn(shape, dtype, layout)
    assert_same(op, (x,), dtype)
    for implementation in ("reference", "triton"):
        assert_equal(op(x, implementation=implementation), augment(x, keys_of(shape[0]), 0.8, "diffaugment"), dtype)


def test_some_images_are_left_alone_and_some_are_not():
    """An image to which nothing happens keeps its bits; the others don't."""
    shape = (12, 3, 8, 8)
    changes, x = changes_for(shape, 0.2), drawn(shape, torch.float32)
    still = (changes.added == 0) & (changes.vivid == 1) & (changes.gain == 1) & ~changes.cut
    still = still & (changes.shift_x == 0) & (changes.shift_y == 0)
    assert 0 < still.sum() < len(x)
    for implementation in ("reference", "triton"):
        same = (diffaugment(x, changes, implementation) == x).all((1, 2, 3))
        assert torch.equal(same, still)


@pytest.mark.parametrize("shape", [(3, 3, 3, 4), (2, 4, 4, 2), (2, 1, 3, 3)], ids=str)
def test_derivatives(shape):
    """gradcheck and gradgradcheck."""
    op, x = partial(diffaugment, changes=changes_for(shape, 0.9)), drawn(shape, torch.float64)
    assert_derivatives(op, (x,))
    assert_same_by_functions(op, (x,))
