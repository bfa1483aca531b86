import math
from dataclasses import replace

import pytest
import torch
from conftest import refusal
from torch import Tensor

from fastgan.training.augment import (
    KINDS,
    OPERATIONS,
    Kind,
    adapt,
    augment,
    color,
    cutout,
    diff_color,
    diff_shift,
    geometry,
)
from fastgan.utils.rng import RngStream, keys

CHANGING = sorted(KINDS.keys() - {"none"})
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
MANY = 4000
# What three keys gave in the first version.
PINNED = [[0.57767, -0.11359, -0.18214], [-0.32716, -0.28757, -0.52521], [0.33567, 0.66438, 0.4709]]


def keys_of(count: int, start: int = 0) -> Tensor:
    return keys(0, RngStream.TOY, torch.arange(start, start + count))


def images_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def only(step: object, *names: str) -> Kind:
    return Kind((step,), dict.fromkeys(names, 1.0))  # type: ignore[arg-type]


def many(image: Tensor, kind: Kind | str, p: float = 1.0) -> Tensor:
    """One image [C, H, W] changed in many ways: [MANY, C, H, W]."""
    return augment(image.expand(MANY, *image.shape), keys_of(MANY), p, kind)


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).flatten(1).any(1)


def assert_share(mask: Tensor, wanted: float) -> None:
    """The share of True is `wanted` within 4.5 standard errors."""
    error = math.sqrt(wanted * (1 - wanted) / mask.numel())
    assert abs(float(mask.double().mean()) - wanted) <= 4.5 * error


def assert_normal(values: Tensor, deviation: float) -> None:
    """The values look like normal numbers with mean 0 and this deviation."""
    values = values.double() / deviation
    assert abs(float(values.mean())) < 4.5 / math.sqrt(len(values))
    assert abs(float(values.std()) - 1) < 4.5 / math.sqrt(2 * len(values))
    assert_share(values.abs() < 1, math.erf(math.sqrt(0.5)))


def ramps(height: int, width: int) -> Tensor:
    """An image whose pixels say where they are, from the middle: [2, H, W], x and then y."""
    y, x = (torch.arange(n).double() - (n - 1) / 2 for n in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def jacobians(kind: Kind) -> Tensor:
    """What many keys do about the middle: [MANY, 2, 2], of (x, y) in the image with respect to (x, y) in the result."""
    seen = many(ramps(9, 9), kind)
    return torch.stack([seen[:, :, 4, 5] - seen[:, :, 4, 4], seen[:, :, 5, 4] - seen[:, :, 4, 4]], 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_p_zero_is_identity(kind: str, channels: int) -> None:
    """At p = 0, be it a number or a tensor, not a bit of any image changes."""
    images = images_of(5, channels, 6, 10)
    images[0] = -0.0
    for p in (0.0, torch.tensor(0.0), torch.zeros(5)):
        after = augment(images, keys_of(5), p, kind)
        assert torch.equal(after.view(torch.int32), images.view(torch.int32))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", CHANGING)
def test_keys_alone_decide(kind: str, channels: int) -> None:
    """An image with its key changes alike, to the bit, in any order and in a batch of its own."""
    images, key = images_of(12, channels, 8, 8), keys_of(12)
    after = augment(images, key, 0.7, kind)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images[order], key[order], 0.7, kind), after[order])
    for row in range(12):
        assert torch.equal(augment(images[row : row + 1], key[row : row + 1], 0.7, kind)[0], after[row])
    assert changed(after, augment(images, keys_of(12, 50), 0.7, kind)).sum() >= 8


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", CHANGING)
def test_same_key_same_change(kind: str, channels: int) -> None:
    """Different images with one key undergo one affine map T: T(a) + T(b) = T(a + b) + T(0), for each of many keys."""
    a, b = images_of(2, channels, 8, 8)
    batch = torch.stack([a, b, a + b, torch.zeros_like(a)])
    key = keys_of(50)
    after = augment(batch.repeat(50, 1, 1, 1), key.repeat_interleave(4), 0.8, kind).unflatten(0, (50, 4))
    torch.testing.assert_close(after[:, 0] + after[:, 1], after[:, 2] + after[:, 3], rtol=0, atol=1e-4)
    mixed = augment(batch.repeat(50, 1, 1, 1), keys_of(200), 0.8, kind).unflatten(0, (50, 4))
    assert (mixed[:, 0] + mixed[:, 1] - mixed[:, 2] - mixed[:, 3]).abs().max() > 0.1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", CHANGING)
def test_gradients(kind: str, channels: int) -> None:
    """First and second derivatives with respect to the images are right, the second along a random direction."""
    images = images_of(2, channels, 4, 5, dtype=torch.float64).requires_grad_()

    def cube(images: Tensor) -> Tensor:
        return augment(images, keys_of(2), 1.0, kind) ** 3

    assert torch.autograd.gradcheck(cube, (images,))
    assert torch.autograd.gradgradcheck(cube, (images,), fast_mode=True)


@pytest.mark.parametrize("kind", CHANGING)
def test_penalty_through_augmentation(kind: str) -> None:
    """R1's gradient with respect to D's weights is the same by torch.func.grad and by autograd, and isn't zero."""
    images, key = images_of(4, 3, 8, 8, dtype=torch.float64), keys_of(4)
    weight = images_of(3, 8, 8, dtype=torch.float64).requires_grad_()

    def logits(images: Tensor) -> Tensor:
        return (augment(images, key, 0.8, kind) * weight).square().sum()

    penalty = torch.func.grad(logits)(images).square().sum()
    (by_func,) = torch.autograd.grad(penalty, weight)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logits(leaf), leaf, create_graph=True)
    (by_autograd,) = torch.autograd.grad(gradient.square().sum(), weight)
    torch.testing.assert_close(by_func, by_autograd)
    assert by_func.abs().max() > 0.1


def test_compiles_without_a_break() -> None:
    """A gradient through the augmentation traces into one graph, which serves every p given as a tensor."""
    images, key = images_of(2, 3, 4, 4), keys_of(2)

    def gradient(images: Tensor, p: Tensor) -> Tensor:
        return torch.func.grad(lambda images: augment(images, key, p, "r3gan").square().sum())(images)

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(gradient, fullgraph=True, backend=backend)
    for p in (torch.tensor(0.3), torch.tensor(0.9)):
        torch.testing.assert_close(compiled(images, p), gradient(images, p))
    assert len(graphs) == 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "kind",
    [
        only(color, "brightness"),
        only(color, "contrast"),
        only(color, "hue"),
        only(color, "saturation"),
        only(geometry, "scale"),
        only(geometry, "aniso"),
        only(geometry, "xfrac"),
        only(geometry, "rotate_before", "rotate_after"),
        only(diff_color, "brightness"),
        only(cutout, "cutout"),
    ],
    ids=lambda kind: f"{kind.steps[0].__name__}-{'-'.join(kind.chances)}" if isinstance(kind, Kind) else None,
)
def test_share_of_changed_images(kind: Kind, p: float) -> None:
    """One operation changes the share p of the images; the two rotations together change the share p too."""
    image = images_of(3, 4, 4)
    assert_share(changed(image[None], many(image, kind, p)), p)


def test_chance_scales_p() -> None:
    """R3GAN's colour operations are done with half the probability, as its chances say."""
    kind = Kind((color,), {"brightness": KINDS["r3gan"].chances["brightness"]})
    image = images_of(3, 4, 4)
    assert_share(changed(image[None], many(image, kind)), 0.5)


def test_more_p_changes_more() -> None:
    """What is changed at a small p is changed in the same way at a greater one; p may differ from image to image."""
    image, kind = images_of(3, 4, 4), only(color, "hue")
    few, more = many(image, kind, 0.3), many(image, kind, 0.6)
    touched = changed(image[None], few)
    assert torch.equal(few[touched], more[touched]) and changed(few, more).any()
    batch, p = image.expand(10, 3, 4, 4), torch.arange(10) / 10
    each = torch.cat([augment(batch[:1], keys_of(1, row), float(p[row]), kind) for row in range(10)])
    assert torch.equal(augment(batch, keys_of(10), p, kind), each)


def test_operations_do_not_depend_on_each_other() -> None:
    """Whether one operation is done to an image tells nothing of whether another one is."""
    steps = {"scale": geometry, "xfrac": geometry, "brightness": color, "hue": color, "cutout": cutout}
    image = images_of(3, 4, 4)
    done = [changed(image[None], many(image, only(step, name), 0.5)) for name, step in steps.items()]
    for i, first in enumerate(done):
        for second in done[:i]:
            assert_share(first & second, 0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", CHANGING)
def test_dtype_and_memory_format_are_kept(kind: str, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    """The result has the dtype and the strides of the images, and the values of float64 up to rounding."""
    images = images_of(6, 3, 6, 10).to(dtype).contiguous(memory_format=memory_format)
    after = augment(images, keys_of(6), 1.0, kind)
    assert after.dtype == dtype and after.stride() == images.stride()
    exact = augment(images.double(), keys_of(6), 1.0, kind)
    torch.testing.assert_close(after.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("kind", CHANGING)
def test_autocast_rounds_nothing(kind: str) -> None:
    """Under autocast the values are the same, to the bit."""
    images = images_of(6, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        after = augment(images, keys_of(6), 1.0, kind)
    assert torch.equal(after, augment(images, keys_of(6), 1.0, kind))


@pytest.mark.parametrize("size", [(6, 10), (10, 6), (1, 7), (1, 1)])
@pytest.mark.parametrize("kind", CHANGING)
def test_any_rectangle(kind: str, size: tuple[int, int]) -> None:
    """Rectangles, down to a single pixel, keep their shape and stay finite."""
    images = images_of(64, 3, *size)
    after = augment(images, keys_of(64), 1.0, kind)
    assert after.shape == images.shape and after.isfinite().all()


def test_turn() -> None:
    """A turned square is one of its four exact turns, each for a quarter of the keys."""
    image = images_of(3, 5, 5)
    seen = many(image, only(geometry, "rotate90"))
    hits = torch.stack([(seen - image.rot90(k, (1, 2))).abs().amax((1, 2, 3)) < 1e-5 for k in range(4)])
    assert (hits.sum(0) == 1).all()
    for hit in hits:
        assert_share(hit, 0.25)


def test_flip() -> None:
    """A flip exchanges left and right of a rectangle for half of the keys."""
    image = images_of(3, 4, 6)
    seen = many(image, only(geometry, "xflip"))
    hits = torch.stack([(seen - wanted).abs().amax((1, 2, 3)) < 1e-5 for wanted in (image, image.flip(2))])
    assert (hits.sum(0) == 1).all()
    assert_share(hits[0], 0.5)


def test_shift() -> None:
    """A shift is by whole pixels up to 1/8 of each side, all of them occurring, with the outside a reflection."""
    image = images_of(3, 8, 16)
    padded = torch.nn.functional.pad(image, (2, 2, 1, 1), mode="reflect")
    windows = [padded[:, y : y + 8, x : x + 16] for y in range(3) for x in range(5)]
    seen = many(image, only(geometry, "xint"))
    hits = torch.stack([(seen - window).abs().amax((1, 2, 3)) < 1e-5 for window in windows])
    assert (hits.sum(0) == 1).all() and (hits.sum(1) > 0).all()


def test_diffaugment_shift() -> None:
    """DiffAugment's shift is exact, brings in zeros, and each of its shifts is as likely."""
    image = images_of(3, 8, 16)
    padded = torch.nn.functional.pad(image, (2, 2, 1, 1))
    seen = many(image, only(diff_shift, "xint"))
    for y in range(3):
        for x in range(5):
            assert_share((seen == padded[:, y : y + 8, x : x + 16]).all(3).all(2).all(1), 1 / 15)


def test_scale_and_stretch() -> None:
    """Sizes change by 2**(0.2 n), n normal: both alike for the scale, reciprocally for the stretch."""
    scaled, stretched = jacobians(only(geometry, "scale")), jacobians(only(geometry, "aniso"))
    assert_normal(scaled[:, 0, 0].log2(), 0.2)
    assert_normal(stretched[:, 0, 0].log2(), 0.2)
    torch.testing.assert_close(scaled[:, 0, 0], scaled[:, 1, 1])
    torch.testing.assert_close(stretched.det(), torch.ones(MANY).double())
    for jacobian in (scaled, stretched):
        assert jacobian[:, 0, 1].abs().max() < 1e-9 and jacobian[:, 1, 0].abs().max() < 1e-9


@pytest.mark.parametrize(("most", "name"), [(180.0, "rotate_before"), (180.0, "rotate_after"), (5.0, "rotate_after")])
def test_rotation(most: float, name: str) -> None:
    """A rotation by any angle up to `max_angle` is as likely, and keeps shapes."""
    jacobian = jacobians(replace(only(geometry, name), max_angle=most))
    torch.testing.assert_close(jacobian @ jacobian.mT, torch.eye(2).double().expand(MANY, 2, 2))
    angle = torch.atan2(jacobian[:, 0, 1], jacobian[:, 0, 0]).rad2deg()
    assert angle.abs().max() <= most + 1e-6
    for bound in (-0.5, 0.0, 0.5):
        assert_share(angle < bound * most, (1 + bound) / 2)


def test_slide() -> None:
    """A slide is by a normal number of eighths of each side."""
    seen = many(ramps(17, 33), only(geometry, "xfrac"))
    for axis, size in enumerate((33, 17)):
        middle = seen[:, axis, 8, 16]  # reflected from four deviations on
        assert_normal(middle, size / 8)


def test_the_paper_s_order() -> None:
    """Operations are composed as they are listed: the stretch acts on what the first rotation has turned."""
    rotate, stretch = jacobians(only(geometry, "rotate_before")), jacobians(only(geometry, "aniso"))
    torch.testing.assert_close(jacobians(only(geometry, "rotate_before", "aniso")), rotate @ stretch)
    after = jacobians(only(geometry, "rotate_after"))
    torch.testing.assert_close(jacobians(only(geometry, "rotate_after", "aniso")), stretch @ after)


def test_brightness_and_contrast() -> None:
    """Brightness adds 0.2 n, contrast multiplies by 2**(0.5 n), and the sum is multiplied; for any channels."""
    for channels in (1, 2, 3, 6):
        image = images_of(channels, 3, 3, dtype=torch.float64)
        added = many(image, only(color, "brightness")) - image
        gain = many(image, only(color, "contrast")) / image
        for values in (added, gain):
            assert (values - values[:, :1, :1, :1]).abs().max() < 1e-6
        assert_normal(added[:, 0, 0, 0], 0.2)
        assert_normal(gain[:, 0, 0, 0].log2(), 0.5)
        both = many(image, only(color, "brightness", "contrast"))
        torch.testing.assert_close(both, gain * (image + added))


def test_luma_flip() -> None:
    """Half of the keys negate the mean of red, green and blue and keep the differences; a gray image is negated."""
    image = images_of(3, 3, 3, dtype=torch.float64)
    negated = image - 2 * image.mean(0, keepdim=True)
    seen = many(image, only(color, "lumaflip"))
    hit = (seen - negated).abs().amax((1, 2, 3)) < 1e-9
    assert_share(hit, 0.5)
    assert torch.equal(seen[~hit], image.expand_as(seen)[~hit])
    gray = many(image[:1], only(color, "lumaflip"))
    assert torch.equal(gray, torch.where(hit[:, None, None, None], -image[:1], image[:1]))


def test_hue_and_saturation() -> None:
    """Hue turns what differs from gray by any angle, saturation multiplies it by 2**n; the gray part stays."""
    image = images_of(3, 3, 3, dtype=torch.float64)
    plane = torch.tensor([[1.0, -1, 0], [1, 1, -2]]).double()
    plane = plane / plane.norm(dim=1, keepdim=True)  # an orthonormal basis of what is at right angles to gray

    def across(images: Tensor) -> Tensor:
        return torch.einsum("kc,...chw->...khw", plane, images)

    for name in ("hue", "saturation"):
        seen = many(image, only(color, name))
        torch.testing.assert_close(seen.mean(1), image.mean(0).expand(MANY, 3, 3))
        x, y = across(seen)[:, :, 0, 0].T
        x0, y0 = across(image)[:, 0, 0]
        if name == "saturation":
            torch.testing.assert_close(x * y0, y * x0)
            assert_normal((x / x0).log2(), 1.0)
        else:
            torch.testing.assert_close(across(seen).norm(dim=1), across(image).norm(dim=0).expand(MANY, 3, 3))
            angle = torch.atan2(x0 * y - y0 * x, x0 * x + y0 * y)
            for bound in (-0.5, 0.0, 0.5):
                assert_share(angle < bound * math.pi, (1 + bound) / 2)


def test_hue_by_120_degrees_exchanges_channels() -> None:
    """Among many hues, those by about a third of a turn move red to green or to blue, and the others along with it."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    seen = many(red, only(color, "hue"))[:, :, 0, 0]
    for wanted in torch.eye(3):
        assert (seen - wanted).abs().amax(1).min() < 0.01
    rgb = images_of(3, 1, 1)
    turned = many(rgb, only(color, "hue"))[:, :, 0, 0]
    for step in (1, 2):
        nearest = (seen - torch.eye(3)[step]).abs().amax(1).argmin()
        torch.testing.assert_close(turned[nearest], rgb.flatten().roll(step), rtol=0, atol=0.02)


def test_diffaugment_colors() -> None:
    """DiffAugment adds up to 0.5, scales saturation by up to 2 and contrast by 0.5 to 1.5 about the image's mean."""
    image = images_of(3, 4, 4, dtype=torch.float64)
    luma, mean = image.mean(0, keepdim=True), image.mean()
    bases = {"brightness": torch.zeros_like(image), "saturation": image - luma, "contrast": image - mean}
    for name, (low, high) in {"brightness": (-0.5, 0.5), "saturation": (0, 2), "contrast": (0.5, 1.5)}.items():
        seen = many(image, only(diff_color, name))
        base = bases[name] if name != "brightness" else torch.ones_like(image)
        rest = image if name == "brightness" else image - base
        value = (seen - rest)[:, 1, 2, 3] / base[1, 2, 3]
        torch.testing.assert_close(seen, rest + value[:, None, None, None] * base)
        assert value.min() >= low - 1e-6 and value.max() <= high + 1e-6
        for share in (0.25, 0.5, 0.75):
            assert_share(value < low + share * (high - low), share)


@pytest.mark.parametrize("step", [color, diff_color])
def test_colors_leave_alpha_alone(step: object) -> None:
    """Of four channels the first three change as an RGB image does and the fourth not by a bit."""
    kind = only(step, *COLOR)
    images = images_of(20, 4, 5, 5)
    after = augment(images, keys_of(20), 1.0, kind)
    assert torch.equal(after[:, 3], images[:, 3])
    assert torch.equal(after[:, :3], augment(images[:, :3], keys_of(20), 1.0, kind))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_no_hue_without_rgb(channels: int) -> None:
    """Images that aren't RGB have neither hue nor saturation, and nothing of them changes."""
    image = images_of(channels, 4, 4)
    assert not changed(image[None], many(image, only(color, "hue", "saturation"))).any()
    assert not changed(image[None], many(image, only(diff_color, "saturation"))).any()


def test_cutout() -> None:
    """A window of half the sides, cut off by the edges, is 0, and nothing else; its centre is anywhere."""
    image = images_of(1, 8, 16).abs() + 0.1
    gone = many(image, only(cutout, "cutout"))[:, 0] == 0
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None, :])
    for side, size in ((rows, 8), (columns, 16)):
        assert side.sum(1).max() == size // 2 and side.sum(1).min() == size // 4
        assert ((side[:, 1:] != side[:, :-1]).sum(1) <= 2).all()
        first, middle = side[:, 0], side[:, size // 2]
        assert_share(middle, 0.5)
        assert_share(first, 0.25 + 0.5 / size)
    kept = ~gone
    assert torch.equal(many(image, only(cutout, "cutout"))[:, 0][kept], image.expand(MANY, 8, 16)[kept])


def test_upright_never_flips() -> None:
    """What grows to the right still does, everywhere in every image; and downwards. ADA's full set does flip it."""
    x, y = ramps(12, 12) / 12
    upright = KINDS["ada-upright"]
    for ramp, axis in ((x, 3), (y, 2)):
        for kind, never in ((upright, True), (KINDS["ada"], False)):
            assert (many(ramp[None], kind).diff(dim=axis).min() >= -1e-6) == never


def test_upright_rotates_little() -> None:
    """The rotations of "ada-upright" add up to 10 degrees at most and come near that."""
    names = ("rotate_before", "rotate_after")
    jacobian = jacobians(replace(KINDS["ada-upright"], steps=(geometry,), chances=dict.fromkeys(names, 1.0)))
    angle = torch.atan2(jacobian[:, 0, 1], jacobian[:, 0, 0]).rad2deg().abs()
    assert 9 < angle.max() <= 10 + 1e-6


def test_kinds() -> None:
    """Every kind's operations exist and have chances in (0, 1]; "ada" is the paper's blit, geometry and colour."""
    for kind in KINDS.values():
        assert kind.chances.keys() <= set(OPERATIONS) and all(0 < chance <= 1 for chance in kind.chances.values())
    assert set(KINDS["ada"].chances) == set(OPERATIONS) - {"cutout"}
    assert set(KINDS["ada"].chances) - set(KINDS["ada-upright"].chances) == {"xflip", "rotate90", "lumaflip"}


def test_pinned_values() -> None:
    """A key's changes are what they were in the first version: resumed runs depend on them."""
    image = torch.stack([*ramps(5, 5) / 5, ramps(5, 5).sum(0) / 5])
    seen = many(image, "ada")[:3, :, 1, 3]
    torch.testing.assert_close(seen, torch.tensor(PINNED).double(), rtol=0, atol=1e-4)


def test_unknown_kind() -> None:
    """A kind that doesn't exist is refused with the list of those that do."""
    text = refusal(lambda: augment(images_of(1, 1, 4, 4), keys_of(1), 0.5, "adaa"))
    assert "'adaa'" in text and all(kind in text for kind in KINDS)


def moved(p: float, r: float, images: int, **rule: float) -> float:
    return float(adapt(torch.tensor(p), torch.tensor(r), images, **rule))


def test_adapt() -> None:
    """p goes to the side of r by the share of `speed` that was seen, stays at the target, and never leaves [0, 1]."""
    assert moved(0.2, 0.7, 5_000) == pytest.approx(0.21)
    assert moved(0.2, 0.5, 5_000) == pytest.approx(0.19)
    assert moved(0.2, 0.5, 5_000, target=0.5) == pytest.approx(0.2)
    assert moved(0.999, 1.0, 5_000) == 1.0 and moved(0.001, -1.0, 5_000) == 0.0
    assert moved(0.2, 0.5, 5_000, target=0.4, speed=50_000) == pytest.approx(0.3)


def test_adapt_takes_500_000_images() -> None:
    """From 0 to 1 takes 500,000 images, whatever the number of steps."""
    for steps in (1, 10, 1000):
        p = 0.0
        for _ in range(steps):
            p = moved(p, 0.9, 500_000 // steps)
        assert p == pytest.approx(1.0, abs=1e-4)
