import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.data.sampler import Sampler, batch_positions, local_shard, num_steps
from fastgan.utils.rng import RngStream

PINNED_ORDER = [5, 3, 4, 8, 1, 6, 9, 0, 2, 7, 5, 6, 1, 7, 4, 9, 0, 2, 8, 3]


def walk(total_images: int, num_images: int, batch_size: int, keep_partial: bool) -> list[range]:
    """The batches of a run, one after the other, until `total_images` have been seen."""
    batches: list[range] = []
    seen = 0
    while seen < total_images:
        batches.append(batch_positions(seen, num_images, batch_size, keep_partial))
        seen = batches[-1].stop
    return batches


@pytest.mark.parametrize("num_images", [1, 2, 7, 100, 1000])
def test_each_epoch_is_a_permutation(num_images: int) -> None:
    """Every epoch shows every image exactly once."""
    order = Sampler(num_images, seed=3)
    for epoch in range(4):
        items = order.dataset_indices(range(epoch * num_images, (epoch + 1) * num_images))
        assert items.sort().values.tolist() == list(range(num_images))


def test_epochs_and_seeds_differ() -> None:
    """No two epochs, and no two seeds, have the same order; none is the order of the files."""
    positions = range(300)
    orders = [[*positions[:100]]]
    for seed in (0, 1, 2):
        orders += [part.tolist() for part in Sampler(100, seed).dataset_indices(positions).split(100)]
    assert len({tuple(order) for order in orders}) == 10


def test_order_is_spread_evenly() -> None:
    """Over many epochs each image comes in the first half of an epoch about half of the time."""
    order, epochs = Sampler(20, seed=0), 400
    items = order.dataset_indices(range(20 * epochs)).view(epochs, 20)
    early = items[:, :10].flatten().bincount(minlength=20)
    assert (early - epochs / 2).abs().max() < 4 * (epochs / 4) ** 0.5


def test_pinned_order() -> None:
    """The first orders of seed 0 are what they were in the first version, so that old runs can be resumed."""
    assert Sampler(10, seed=0).dataset_indices(range(20)).tolist() == PINNED_ORDER


def test_streams_have_orders_of_their_own() -> None:
    """One seed gives D's and G's reals two orders, each a permutation in every epoch."""
    orders = [Sampler(100, 0, stream).dataset_indices(range(300)) for stream in (RngStream.ORDER, RngStream.ORDER_G)]
    assert not torch.equal(*orders)
    for items in orders:
        assert all(part.sort().values.tolist() == list(range(100)) for part in items.split(100))


@settings(max_examples=60)
@given(
    num_images=st.integers(1, 30),
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 200),
    size=st.integers(0, 70),
)
def test_batches_are_slices_of_one_sequence(num_images: int, seed: int, start: int, size: int) -> None:
    """Whatever was asked before, the items at some positions are that slice of the whole endless sequence."""
    whole = Sampler(num_images, seed).dataset_indices(range(270))
    assert torch.equal(
        Sampler(num_images, seed).dataset_indices(range(start, start + size)), whole[start : start + size]
    )


@settings(max_examples=30)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_positions_may_come_in_any_order(positions: list[int]) -> None:
    """Whatever was asked before, a position's item stays the same: to and fro between epochs, and again."""
    order, whole = Sampler(13, seed=5), Sampler(13, seed=5).dataset_indices(range(501)).tolist()
    assert [int(order.dataset_indices(range(place, place + 1))) for place in positions] == [
        whole[place] for place in positions
    ]


@settings(max_examples=60)
@given(
    total_images=st.integers(1, 300),
    num_images=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    keep_partial=st.booleans(),
)
def test_num_steps_is_what_a_run_takes(total_images: int, num_images: int, batch_size: int, keep_partial: bool) -> None:
    """The number of steps is that of a run which takes batch after batch until it has seen its images."""
    batches = walk(total_images, num_images, batch_size, keep_partial)
    assert num_steps(total_images, num_images, batch_size, keep_partial) == len(batches)


@settings(max_examples=60)
@given(
    num_images=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    keep_partial=st.booleans(),
)
def test_batches_follow_each_other(num_images: int, batch_size: int, keep_partial: bool) -> None:
    """Batches leave out and repeat nothing, and are full except where an epoch ends and partial ones are kept."""
    batches = walk(3 * num_images, num_images, batch_size, keep_partial)
    assert [position for batch in batches for position in batch] == list(range(batches[-1].stop))
    for batch in batches:
        if keep_partial and len(batch) != batch_size:
            assert 0 < len(batch) < batch_size and batch.stop % num_images == 0
        else:
            assert len(batch) == batch_size
        if keep_partial:
            assert batch.start // num_images == (batch.stop - 1) // num_images


def test_partial_batch() -> None:
    """Ten images in batches of four: 4, 4, 2 an epoch with partial batches; without, 4 each, across the end."""
    assert walk(20, 10, 4, True) == [
        range(0, 4),
        range(4, 8),
        range(8, 10),
        range(10, 14),
        range(14, 18),
        range(18, 20),
    ]
    assert walk(20, 10, 4, False) == [range(0, 4), range(4, 8), range(8, 12), range(12, 16), range(16, 20)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 31, 32, 256])
def test_shares_make_up_the_batch(num_processes: int, size: int) -> None:
    """The processes' shares, one after the other, are the whole batch; their sizes differ by one at most."""
    batch = range(1000, 1000 + size)
    shares = [local_shard(batch, rank, num_processes) for rank in range(num_processes)]
    assert [position for part in shares for position in part] == list(batch)
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1
