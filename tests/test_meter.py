"""Means of what the steps report: on the device, by few operations, the same after a resume."""

import json
import math
from typing import Any

import pytest
import torch
from conftest import DEVICE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan.training.meter import NEVER, Meter

META = torch.device("meta")


class Operations(TorchDispatchMode):
    """Count operations, and note the devices of the tensors that they take."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.devices = 0, set[str]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        return op(*args, **kwargs or {})


def terms_of(*values: float, device: torch.device = DEVICE) -> dict[str, torch.Tensor]:
    return {f"term{number}": torch.tensor(value, device=device) for number, value in enumerate(values)}


def reloaded(meter: Meter) -> Meter:
    state, meter = json.loads(json.dumps(meter.state())), Meter(DEVICE)
    meter.load_state(state)
    return meter


def test_means_are_of_what_was_reported() -> None:
    """A term's mean is over the steps that reported it, also where those are read after a resume."""
    meter = Meter(DEVICE)
    for step in range(4):
        lazy = {"lazy": torch.tensor(float(step), device=DEVICE)} if step % 2 else {}
        meter.add(lazy | terms_of(step), step)
        meter = reloaded(meter)
    assert meter.read() == {"term0": 1.5, "lazy": 2.0}
    assert meter.read() == {}


def test_resumed_at_any_step_reads_the_same_bits() -> None:
    """Sums are taken in the steps' order whatever terms are lazy, and rows name their terms in the same order."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 3, generator=generator, dtype=torch.float64) * 10 ** torch.arange(-12.0, 12.0, 8.0)

    def rows(resume: bool) -> list[str]:
        meter, found = Meter(DEVICE), []
        for step, row in enumerate(values.to(DEVICE)):
            names = "abc" if step % 3 == 1 else "ac"
            meter.add(dict(zip(names, row, strict=False)), step)
            if step % 10 == 9:
                found.append(json.dumps(meter.read()))
            meter = reloaded(meter) if resume else meter
        return found

    assert rows(resume=True) == rows(resume=False)


@pytest.mark.parametrize("count", [3, 30])
def test_operations_of_a_step(count: int) -> None:
    """A step costs as many operations with many terms as with few."""
    meter, terms = Meter(DEVICE), terms_of(*range(count))
    meter.add(terms, 0)
    with Operations() as operations:
        meter.add(terms, 1)
    assert operations.count <= 10


def test_sums_lie_where_training_computes() -> None:
    """Also after a resume, no operation takes a tensor of another device than the terms'."""
    meter = Meter(META)
    meter.load_state({"sums": [{"term0": 1.0, "lazy": 2.0}], "times": [{"term0": 3, "lazy": 1}], "count": 3})
    with Operations() as operations:
        meter.add(terms_of(1.0, device=META), 0)
        meter.add(terms_of(1.0, device=META), 1)
    assert operations.devices == {"meta"}


@pytest.mark.parametrize("sums", [{"loss": 6.0, "lazy": 4.0}, [{"loss": 6.0, "lazy": 4.0}]])
def test_state_of_old_checkpoints(sums: Any) -> None:
    """One process's sums by themselves, and numbers of values that all processes share, load as they once were."""
    meter = Meter(DEVICE)
    meter.load_state({"sums": sums, "times": {"loss": 3, "lazy": 1}, "count": 3})
    assert meter.count == 3 and meter.read() == {"loss": 2.0, "lazy": 4.0}


def test_other_processes_than_before_share_the_means() -> None:
    meter = Meter(DEVICE)
    meter.load_state({"sums": [{"loss": 2.0}, {"loss": 4.0}], "times": [{"loss": 1}, {"loss": 2}], "count": 2})
    assert meter.read() == {"loss": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    """The first step with one is known, means are of the others, and a term without any other has none."""
    meter = Meter(DEVICE)
    assert int(meter.nonfinite_at) == NEVER
    for step, values in enumerate([(1.0, bad), (bad, bad), (3.0, bad)]):
        meter.add(terms_of(5.0, *values), 32 * step)
        assert int(meter.nonfinite_at) == 0
    found = meter.read()
    assert found["term0"] == 5.0 and found["term1"] == 2.0 and math.isnan(found["term2"])
