"""What is done where memory runs out: the same, of fewer images at a time."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from fastgan.evaluation.extractors import Extractor
from fastgan.utils.memory import InParts, in_smaller_parts


class Limited(nn.Module):
    """A network with room for so many images at a time, which adds to each image its label."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.sizes = room, list[int]()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"{len(x)} images")
        return x if labels is None else x + labels[:, None]


def test_halved_until_it_fits() -> None:
    """Each smaller size is told before it is tried; one image that doesn't fit is an error."""
    tried: list[int] = []
    told: list[int] = []

    def work(size: int, room: int = 4) -> str:
        tried.append(size)
        assert tried[1:] == told
        if size > room:
            raise torch.OutOfMemoryError
        return "done"

    assert in_smaller_parts(11, work, told.append) == "done"
    assert tried == [11, 6, 3]
    tried.clear(), told.clear()
    with pytest.raises(torch.OutOfMemoryError):
        in_smaller_parts(3, lambda size: work(size, room=0), told.append)
    assert tried == [3, 2, 1]


def test_memory_of_the_failed_attempt_is_free() -> None:
    """What an attempt had made is gone when the next one begins."""
    made: list[weakref.ref[Tensor]] = []

    def work(size: int) -> None:
        assert all(ref() is None for ref in made)
        tensor = torch.zeros(size)
        made.append(weakref.ref(tensor))
        if size > 1:
            raise torch.OutOfMemoryError

    in_smaller_parts(4, work)
    assert len(made) == 3


@pytest.mark.parametrize("labels", [None, torch.arange(10)])
def test_parts_make_the_whole(labels: Tensor | None) -> None:
    """The outputs are those of the whole batch, in its order; the size that fitted is kept."""
    net, x = Limited(3), torch.randn(10, 2)
    parts = InParts(net, 8)
    assert torch.equal(parts(x, labels), Limited(10)(x, labels))
    assert net.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert torch.equal(parts(x[:3], None), x[:3]) and net.sizes[7:] == [2, 1]


def test_extractor_takes_fewer_images() -> None:
    """Features are those of a large memory."""

    class Features(nn.Module):
        def __init__(self, room: int) -> None:
            super().__init__()
            self.limited = Limited(room)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.limited(x).double(), x[:, :1]

    images = torch.randint(0, 256, (20, 5), dtype=torch.uint8)
    small, large = (Extractor("test", "1", 5, Features(room), 1)(images) for room in (1, 20))
    assert all(map(torch.equal, small, large))
