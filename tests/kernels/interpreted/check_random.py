"""The kernels' random numbers are those of fastgan/utils/rng.py."""

import pytest
import torch

from fastgan.utils import rng
from fastgan.utils.rng import RngStream

INDEX = torch.tensor([0, 1, 2, 599, 2**40, -3])


def by_formula(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(rng, "_by_kernel", lambda index: False)
        return work()


@pytest.mark.parametrize("streams", [RngStream.LATENTS_D, (RngStream.AUGMENT_D, RngStream.ORDER), (RngStream.MIX,)])
def test_keys_are_equal(monkeypatch, streams):
    """Of one stream and of several, to the bit."""
    for seed in (0, 7, 2**63 - 1):
        found = rng.keys(seed, streams, INDEX)
        assert torch.equal(found, by_formula(monkeypatch, lambda seed=seed: rng.keys(seed, streams, INDEX)))


@pytest.mark.parametrize("count", [1, 2, 7, 600])
def test_numbers_are_equal(monkeypatch, count):
    """Uniform ones to the bit, normal ones to the rounding of logarithms and cosines."""
    keys = rng.keys(3, RngStream.LATENTS_G, INDEX)
    assert torch.equal(rng.uniform(keys, count), by_formula(monkeypatch, lambda: rng.uniform(keys, count)))
    found, wanted = rng.normal(keys, count), by_formula(monkeypatch, lambda: rng.normal(keys, count))
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_no_keys():
    """Of no images there are no numbers."""
    none = rng.keys(0, RngStream.LATENTS_D, INDEX[:0])
    assert rng.normal(none, 5).shape == (0, 5) and rng.uniform(none, 5).shape == (0, 5)
