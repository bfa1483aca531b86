import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.utils import rng
from fastgan.utils.rng import RngStream

MASK = 2**64 - 1
INT64 = st.integers(-(2**63), 2**63 - 1)
# The first numbers of SplitMix64 from the states 0 and 1234567, as other implementations print them.
FROM_0 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
PINNED_KEYS = [8407459800431601144, -9009806918528303950, -6970470993825205455]
DRAWS = (
    rng.bits,
    rng.uniform,
    rng.normal,
    rng.rademacher,
    lambda key, count: rng.dropout_mask(key, count, 0.3),
)
FROM_1234567 = [6457827717110365317, 3203168211198807973, 9817491932198370423]


def mix_of(x: int) -> int:
    """SplitMix64's output function on Python's integers, 0 to 2**64 - 1."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as it is usually written: a state that grows by the golden ratio, mixed."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        numbers.append(mix_of(state))
    return numbers


def unsigned(values: Tensor) -> list[int]:
    return [value & MASK for value in values.tolist()]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def test_known_numbers() -> None:
    """The numbers of two keys are the published ones of SplitMix64: they must never change."""
    numbers = rng.bits(torch.tensor([0, 1234567]), 3)
    assert unsigned(numbers[0]) == FROM_0
    assert unsigned(numbers[1]) == FROM_1234567
    assert splitmix64(0, 3) == FROM_0 and splitmix64(1234567, 3) == FROM_1234567


@settings(max_examples=50)
@given(st.lists(INT64, min_size=1, max_size=8))
def test_mix_is_splitmix64s(values: list[int]) -> None:
    """`mix` of any int64 is the same 64 bits as Python's unbounded integers give."""
    assert unsigned(rng.splitmix64(torch.tensor(values))) == [mix_of(value) for value in values]


@settings(max_examples=50)
@given(INT64, st.integers(1, 9))
def test_bits_are_splitmix64s(key: int, count: int) -> None:
    """`bits` of a key are the numbers that SplitMix64 gives one after the other from that state."""
    assert unsigned(rng.bits(torch.tensor([key]), count)[0]) == splitmix64(key & MASK, count)


@settings(max_examples=50)
@given(st.integers(-(2**70), 2**70), st.sampled_from(list(RngStream)), INT64)
def test_keys_of_any_seed(seed: int, stream: RngStream, index: int) -> None:
    """Keys follow their formula for negative and huge seeds and indices too: all wraps around at 64 bits."""
    wanted = mix_of(index * 0x9E3779B97F4A7C15 + mix_of(mix_of(seed) + stream))
    assert unsigned(rng.keys(seed, stream, torch.tensor([index]))) == [wanted]


def test_pinned_keys() -> None:
    """Keys of a few seeds, streams and images are what they were in the first version."""
    keys = [int(rng.keys(seed, stream, torch.tensor(7))) for seed, stream in ((0, 1), (0, 3), (5, 3))]
    assert keys == PINNED_KEYS


def test_keys_differ() -> None:
    """No two of many keys are equal: other seeds, other streams and other images never share numbers."""
    index = torch.cat([torch.arange(1000), torch.arange(1000) + 2**40])
    keys = torch.cat([rng.keys(seed, stream, index) for seed in (-1, 0, 1, 2**63 - 1) for stream in RngStream])
    assert len(keys.unique()) == len(keys) == 4 * len(RngStream) * 2000


def test_keys_take_the_shape_of_the_index() -> None:
    """Keys have the index's shape and are int64."""
    keys = rng.keys(0, RngStream.TOY, torch.arange(6).view(2, 3))
    assert keys.shape == (2, 3) and keys.dtype == torch.int64


def test_inputs_are_left_alone() -> None:
    """Keys and indices that were drawn from are what they were: they are used for several draws."""
    index = torch.arange(5)
    keys = rng.keys(3, RngStream.TOY, index)
    before = keys.clone()
    for draw in DRAWS:
        draw(keys, 4)
    rng.splitmix64(keys)
    assert torch.equal(keys, before) and index.tolist() == [0, 1, 2, 3, 4]


def test_mix_is_one_to_one() -> None:
    """Neighbouring values, around zero and where int64 wraps, never meet."""
    near_zero = torch.arange(-(2**15), 2**15)
    values = torch.cat([near_zero, near_zero + 2**63 - 1, near_zero << 40]).unique()
    assert len(rng.splitmix64(values).unique()) == len(values)


def test_uniform_range_and_evenness() -> None:
    """Uniform numbers lie in [0, 1) and fill its hundredths evenly."""
    numbers = rng.uniform(rng.keys(0, RngStream.TOY, torch.arange(2000)), 100)
    assert numbers.dtype == torch.float64 and numbers.min() >= 0 and numbers.max() < 1
    counts = numbers.flatten().mul(100).long().bincount(minlength=100)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom: 99 +- 4.3 times 14


def test_uniform_is_the_upper_53_bits() -> None:
    """A uniform number is the upper 53 bits of its 64 as a fraction, exactly."""
    keys = rng.keys(3, RngStream.TOY, torch.arange(20))
    wanted = [[(number & MASK) >> 11 for number in row] for row in rng.bits(keys, 5).tolist()]
    assert (rng.uniform(keys, 5) * 2**53).tolist() == wanted


def test_normal_distribution() -> None:
    """Normal numbers have mean 0 and deviation 1, and their distribution function is the normal one."""
    numbers = rng.normal(rng.keys(0, RngStream.LATENTS_D, torch.arange(2000)), 100)
    assert numbers.shape == (2000, 100) and numbers.dtype == torch.float32
    values = numbers.flatten().double()
    error = 1 / math.sqrt(len(values))
    assert abs(float(values.mean())) < 4 * error
    assert abs(float(values.std()) - 1) < 4 * error
    wanted = torch.special.ndtr(values.sort().values)
    steps = (torch.arange(len(values)) + 0.5) / len(values)
    assert float((wanted - steps).abs().max()) < 1.6 * error  # Kolmogorov and Smirnov: 1.6 at one in a hundred


def test_normal_numbers_do_not_correlate() -> None:
    """Normal numbers of other columns, images, streams and seeds aren't related, nor are their squares."""
    index = torch.arange(2000)
    first = rng.normal(rng.keys(0, RngStream.LATENTS_D, index), 100)
    others = {
        "next column": first.roll(1, dims=1),
        "other half of its pair": first.roll(50, dims=1),
        "next image": rng.normal(rng.keys(0, RngStream.LATENTS_D, index + 1), 100),
        "other stream": rng.normal(rng.keys(0, RngStream.LATENTS_G, index), 100),
        "other seed": rng.normal(rng.keys(1, RngStream.LATENTS_D, index), 100),
    }
    bound = 4.5 / math.sqrt(first.numel())
    for name, other in others.items():
        assert abs(correlation(first, other)) < bound, name
        assert abs(correlation(first.square(), other.square())) < bound, name
    assert correlation(first, first) > 0.999


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**40))
def test_no_dependence_on_the_batch(start: int, size: int, count: int, offset: int) -> None:
    """An image draws the same numbers in any batch: a slice of the indices gives the same rows."""
    index = torch.arange(offset, offset + 70)
    part = slice(start, start + size)
    for draw in DRAWS:
        whole = draw(rng.keys(1, RngStream.LATENTS_G, index), count)
        assert torch.equal(whole[part], draw(rng.keys(1, RngStream.LATENTS_G, index[part]), count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100])
def test_counts(count: int) -> None:
    """Every draw gives exactly the asked number of columns, odd numbers too."""
    key = rng.keys(0, RngStream.TOY, torch.arange(3))
    for draw in DRAWS:
        assert draw(key, count).shape == (3, count)


@pytest.mark.parametrize("drop_probability", [0.001, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_keep_mask_rate(drop_probability: float) -> None:
    """The mask keeps the share 1 - p, in the whole and at each of the four places in a 64-bit word."""
    mask = rng.dropout_mask(rng.keys(0, RngStream.NOISE_REALS, torch.arange(500)), 800, drop_probability)
    assert mask.dtype == torch.bool
    deviation = math.sqrt(drop_probability * (1 - drop_probability))
    for part in (mask, *(mask[:, place::4] for place in range(4))):
        error = abs(float(part.double().mean()) - (1 - drop_probability))
        assert error < 4 * deviation / math.sqrt(part.numel()) + 2**-16


def test_keep_mask_without_dropping() -> None:
    """With probability 0 nothing is dropped."""
    assert rng.dropout_mask(rng.keys(0, RngStream.TOY, torch.arange(100)), 1000, 0.0).all()


def test_keep_mask_dropping_all() -> None:
    """With probability 1 nothing is kept."""
    assert not rng.dropout_mask(rng.keys(0, RngStream.TOY, torch.arange(100)), 1000, 1.0).any()


def test_keep_mask_places_do_not_correlate() -> None:
    """What the mask does at one place tells nothing of the next place, the next word or the next image."""
    mask = rng.dropout_mask(rng.keys(0, RngStream.NOISE_FAKES, torch.arange(500)), 800, 0.3)
    for other in (mask.roll(1, dims=1), mask.roll(4, dims=1), mask.roll(1, dims=0)):
        assert abs(correlation(mask, other)) < 4 / math.sqrt(mask.numel())


def test_stream_numbers_are_pinned() -> None:
    """Streams keep their numbers: the random numbers of old runs depend on them."""
    assert {stream.name: int(stream) for stream in RngStream} == {
        "ORDER": 1,
        "SAMPLES": 2,
        "LATENTS_D": 3,
        "LATENTS_G": 4,
        "NOISE_REALS": 5,
        "NOISE_FAKES": 6,
        "NOISE_G": 7,
        "TOY": 8,
        "MIRROR": 9,
        "STACKED": 10,
        "AUGMENT_D": 11,
        "AUGMENT_G": 12,
        "DIRECTIONS_REALS": 13,
        "DIRECTIONS_FAKES": 14,
        "MIX": 15,
        "ORDER_G": 16,
        "MIRROR_G": 17,
        "AUGMENT_D_FAKES": 18,
        "AUGMENT_G_FAKES": 19,
    }


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_signs_are_the_bits_from_the_lowest_up(count: int) -> None:
    """Signs are a key's 64-bit numbers read bit by bit from the lowest up: a 1 gives 1, a 0 gives -1; int8."""
    keys = rng.keys(4, RngStream.DIRECTIONS_REALS, torch.arange(5))
    wanted = [
        [2 * (splitmix64(key, 3)[place // 64] >> place % 64 & 1) - 1 for place in range(count)]
        for key in unsigned(keys)
    ]
    signs = rng.rademacher(keys, count)
    assert signs.dtype == torch.int8 and signs.tolist() == wanted


def test_signs_are_even_and_independent() -> None:
    """Each of a word's 64 places is -1 and 1 equally often, and tells nothing of its neighbours or the next image."""
    signs = rng.rademacher(rng.keys(0, RngStream.DIRECTIONS_FAKES, torch.arange(2000)), 192)
    assert set(signs.unique().tolist()) == {-1, 1}
    places = signs.double().view(2000, 3, 64)
    assert float(places.mean((0, 1)).abs().max()) < 4.5 / math.sqrt(6000)
    for other in (signs.roll(1, dims=1), signs.roll(64, dims=1), signs.roll(1, dims=0)):
        assert abs(correlation(signs, other)) < 4 / math.sqrt(signs.numel())


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7, 196, 1000])
def test_compiled_bits_are_the_same(count):
    """torch.compile's code for the CPU gives the same bits, and stays within its tensors."""
    key = torch.arange(-3, 5)
    compiled = torch.compile(rng.bits, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(key, count), rng.bits(key, count))
