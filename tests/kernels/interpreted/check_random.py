"""The kernels' random numbers are those of fastgan/counter.py."""

import pytest
import torch

from fastgan import counter
from fastgan.counter import Stream

INDEX = torch.tensor([0, 1, 2, 599, 2**40, -3])


def by_formula(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(counter, "_by_kernel", lambda index: False)
        return work()


@pytest.mark.parametrize("streams", [Stream.LATENTS_D, (Stream.AUGMENT_D, Stream.ORDER), (Stream.MIX,)])
def test_keys_are_equal(monkeypatch, streams):
    """Of one stream and of several, to the bit."""
    for seed in (0, 7, 2**63 - 1):
        found = counter.keys(seed, streams, INDEX)
        assert torch.equal(found, by_formula(monkeypatch, lambda seed=seed: counter.keys(seed, streams, INDEX)))


@pytest.mark.parametrize("count", [1, 2, 7, 600])
def test_numbers_are_equal(monkeypatch, count):
    """Uniform ones to the bit, normal ones to the rounding of logarithms and cosines."""
    keys = counter.keys(3, Stream.LATENTS_G, INDEX)
    assert torch.equal(counter.uniform(keys, count), by_formula(monkeypatch, lambda: counter.uniform(keys, count)))
    found, wanted = counter.normal(keys, count), by_formula(monkeypatch, lambda: counter.normal(keys, count))
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_no_keys():
    """Of no images there are no numbers."""
    none = counter.keys(0, Stream.LATENTS_D, INDEX[:0])
    assert counter.normal(none, 5).shape == (0, 5) and counter.uniform(none, 5).shape == (0, 5)
