"""How batches get to a GPU beside the step: the order of what is asked of its streams, which are played by fakes."""

import contextlib
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastgan.data.prefetch import Prefetcher

CPU = torch.device("cpu")


class Event:
    """One that a stream comes past when the test says so."""

    def __init__(self, number: int) -> None:
        self.number, self.passed = number, False

    def query(self) -> bool:
        return self.passed


class Stream:
    """Notes what it is asked to do."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls, self.events = name, calls, list[Event]()

    def record_event(self) -> Event:
        self.events.append(Event(len(self.events)))
        self.calls.append(f"{self.name} records {self.events[-1].number}")
        return self.events[-1]

    def wait_event(self, event: Event) -> None:
        self.calls.append(f"{self.name} waits for {event.number}")


class Gpu:
    """What a Prefetcher knows of a GPU: the step's stream, its own, and the calls in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.step, self.side = Stream("step", self.calls), Stream("side", self.calls)
        self.current = self.step
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.side)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self.note("pin", tensor))
        monkeypatch.setattr(
            Tensor, "record_stream", lambda tensor, stream: self.note(f"keep for {stream.name}", tensor)
        )
        copy = Tensor.to
        monkeypatch.setattr(Tensor, "to", lambda tensor, *args, **how: copy(self.note("copy", tensor), *args, **how))

    def note(self, action: str, tensor: Tensor) -> Tensor:
        self.calls.append(f"{self.current.name}: {action} {int(tensor)}")
        return tensor

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def read(self, sources: list["weakref.ref[Tensor]"]) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches of one tensor each, whose number it is."""
        for number in range(10):
            self.calls.append(f"{self.current.name}: read {number}")
            tensor = torch.tensor(number)
            sources.append(weakref.ref(tensor))
            yield (tensor,)
            del tensor


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_the_next_batch_is_under_way_before_the_step_begins(gpu: Gpu) -> None:
    """Batches come in order; each is read and copied on the side, one ahead, and the step waits for its own alone."""
    prefetcher = Prefetcher(gpu.read([]), CPU)
    assert [int(tensor) for tensor in next(prefetcher)] == [0]
    ahead = ["side: read {0}", "side: pin {0}", "side: copy {0}", "side records {0}"]
    handed_out = ["step waits for {0}", "step: keep for step {0}"]
    wanted = [line.format(0) for line in ahead] + [line.format(1) for line in ahead]
    assert gpu.calls == wanted + [line.format(0) for line in handed_out]
    for number in range(1, 4):
        gpu.calls.clear()
        assert [int(tensor) for tensor in next(prefetcher)] == [number]
        assert gpu.calls == [line.format(number + 1) for line in ahead] + [line.format(number) for line in handed_out]


def test_what_is_copied_stays_until_it_is(gpu: Gpu) -> None:
    """A batch's source is kept while its copy runs, however many are handed out, and let go once it has ended."""
    sources: list[weakref.ref[Tensor]] = []
    prefetcher = Prefetcher(gpu.read(sources), CPU)
    for _ in range(3):
        next(prefetcher)
    assert [source() is not None for source in sources] == [True, True, True, True]
    gpu.side.events[0].passed = gpu.side.events[1].passed = True
    next(prefetcher)
    assert [source() is not None for source in sources] == [False, False, True, True, True]
