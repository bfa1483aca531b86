"""Differentiable augmentation: random changes of the images that D sees, each a pure function of one key and of p.

Reals and fakes given the same keys get the same changes. Gradients flow to the images, twice, so D's penalties can be
taken with respect to the images before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.kernels.diffaugment import Changes, diffaugment
from fastgan.training.warp import warp
from fastgan.utils import rng

# In the order in which ADA applies them. Append only: what old runs drew depends on the places.
OPERATIONS = (
    "xflip",  # left and right change places, for half of the images chosen
    "rotate90",  # by 0, 90, 180 or 270 degrees
    "xint",  # by whole pixels, up to 1/8 of the size
    "scale",  # both axes alike
    "rotate_before",  # about the centre, before aniso
    "aniso",  # one axis by s, the other by 1 / s
    "rotate_after",
    "xfrac",  # a shift by fractions of pixels
    "brightness",
    "contrast",
    "lumaflip",  # light and dark change places, colours stay, for half of the images chosen
    "hue",
    "saturation",
    "cutout",  # a window of half the height and width becomes 0, a middle gray
)
COLUMNS = 3  # random numbers an operation: whether it happens, and two values


@dataclass(frozen=True)
class Kind:
    """What is done to images: `steps` one after the other, and the chance of each operation at p = 1 (absent: never).

    `max_angle` in degrees bounds each of the two rotations; `padding` is what a warp finds outside the image, by
    `grid_sample`'s names.
    """

    steps: tuple["Step", ...] = ()
    chances: dict[str, float] = field(default_factory=dict)
    max_angle: float = 180.0
    padding: str = "reflection"


class AugmentParameters:
    """What happens to each image of a batch, from its key: gates and values, [B] each, float64, without gradients.

    All operations' numbers are made at once, as each tensor operation takes the host as long as a GPU takes for many.
    """

    def __init__(self, keys: Tensor, p: float | Tensor, kind: Kind) -> None:
        self.kind = kind
        table = rng.uniform(keys, COLUMNS * len(OPERATIONS)).unflatten(1, (len(OPERATIONS), COLUMNS))
        gates = table[:, :, 0] < _chances(p, kind, table)  # [B, operations]
        values = table[:, :, 1:]
        self._gates, self._uniform = gates.unbind(1), values.flatten(1).unbind(1)
        # In [-1, 1), 0 where the operation isn't done; two of the number are as exact as one.
        centred = (2 * values - 1).mul_(gates[:, :, None]).flatten(1)
        self._centred = centred.unbind(1)
        self._normal = torch.erfinv(centred.clamp(min=2.0**-53 - 1)).mul_(math.sqrt(2)).unbind(1)  # -1 is infinite

    def uniform(self, name: str, number: int = 1) -> Tensor:
        """Return number 1 or 2 of the operation's own, in [0, 1), whether it is done or not."""
        return self._uniform[_column(name, number)]

    def centred(self, name: str, number: int = 1) -> Tensor:
        """Return the same in [-1, 1), or 0 where the operation isn't done."""
        return self._centred[_column(name, number)]

    def normal(self, name: str, number: int = 1) -> Tensor:
        """Return the same as a standard normal number, or 0 where the operation isn't done."""
        return self._normal[_column(name, number)]

    def sign(self, name: str) -> Tensor:
        """Return 1 or -1 at even odds; 1 where the operation isn't done."""
        return self.where(name, 1 - 2 * (2 * self.uniform(name)).floor(), 1)

    def gate(self, name: str) -> Tensor:
        """Return whether the operation is done to an image, bool."""
        return self._gates[OPERATIONS.index(name)]

    def where(self, name: str, value: Tensor, neutral: float) -> Tensor:
        """Return `value` for the images to which the operation is done, `neutral` for the others."""
        return value.where(self.gate(name), neutral)


def _column(name: str, number: int) -> int:
    return (COLUMNS - 1) * OPERATIONS.index(name) + number - 1


def _chances(p: float | Tensor, kind: Kind, like: Tensor) -> Tensor:
    """Return the probability of each operation: [operations], or [B, operations] where p is [B].

    The two rotations share theirs: with it one of them, or both, is done.
    """
    p = p.detach().to(like.dtype) if isinstance(p, Tensor) else torch.full((), p, dtype=like.dtype, device=like.device)
    chances, halves = [kind.chances.get(name, 0.0) for name in OPERATIONS], ("rotate_before", "rotate_after")
    whole = {chance: p * chance for chance in {*chances}}
    half = {chance: 1 - (1 - whole[chance]).sqrt() for chance in {kind.chances.get(name, 0.0) for name in halves}}
    found = [(half if name in halves else whole)[chance] for name, chance in zip(OPERATIONS, chances, strict=True)]
    return torch.stack(found, -1)


Step = Callable[[Tensor, AugmentParameters], Tensor]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the images' dtype, or as it is if it is bool."""
    return (values if values.dtype == torch.bool else values.to(images.dtype))[:, None, None, None]


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device, dtype=torch.float64)


def sample(images: Tensor, theta: Tensor, mode: str, padding: str) -> Tensor:
    """Return the images, where `theta` [B, 2, 3] times (x, y, 1) is what the result shows at (x, y).

    x and y are pixels from the middle, to the right and down. Images whose theta is that of no change are as they were,
    to the bit.
    """
    height, width = images.shape[2:]
    moved = (theta != torch.eye(2, 3, dtype=theta.dtype, device=theta.device)).any(2).any(1)
    x, y = (_places(n, images.device) - (n - 1) / 2 for n in (width, height))
    across, down, middle = theta[:, :, None, None].unbind(4)  # [B, 2, 1, 1] each
    # A pixel is 2 / (size - 1) where grid_sample counts from -1 to 1.
    units = [2 / max(size - 1, 1) for size in (width, height)]
    grid = across * x + (down * y[:, None] + middle)  # [B, 2, H, W]
    at = torch.stack([places * unit for places, unit in zip(grid.unbind(1), units, strict=True)], 3).to(images.dtype)
    seen = warp(images, at, mode, padding)  # of [B, H, W, 2]
    return seen.where(_per_image(moved, images), images)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] of [B] each: [B, 2, 2]."""
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2)


def geometry(images: Tensor, params: AugmentParameters) -> Tensor:
    """Apply ADA's pixel blitting and geometric changes (Karras et al. 2020, 2006.06676, app. B), as one bilinear warp.

    In order: xflip, rotate90, xint, scale, rotation, aniso, rotation, xfrac. The matrices say where a
    result's pixel lies in its image, so each change is the inverse of its name, multiplied from the right.

    The paper samples at twice the size through a wavelet filter. Here nothing is filtered, for only one image in 2,500
    shrinks more than twofold along an axis: a warped image is a little softer, reals and fakes alike.
    """
    height, width = images.shape[2:]
    most = math.radians(params.kind.max_angle)
    quarters = params.where("rotate90", (4 * params.uniform("rotate90")).floor(), 0) * (math.pi / 2)
    angles = torch.stack([quarters, most * params.centred("rotate_before"), most * params.centred("rotate_after")], 1)
    (cos0, cos1, cos2), (sin0, sin1, sin2) = angles.cos().unbind(1), angles.sin().unbind(1)
    flip, factor = params.sign("xflip"), torch.exp2(-0.2 * params.normal("scale"))
    aniso = torch.exp2(0.2 * params.normal("aniso"))
    narrow, wide = factor / aniso, factor * aniso
    first = _matrix(flip * cos0, flip * sin0, -sin0, cos0)
    both = first @ _matrix(cos1 * narrow, sin1 * wide, -sin1 * narrow, cos1 * wide) @ _matrix(cos2, sin2, -sin2, cos2)
    xints = [(params.centred("xint", k) * (size / 8)).round() for k, size in ((1, width), (2, height))]
    xfracs = [params.normal("xfrac", k) * (size / 8) for k, size in ((1, width), (2, height))]
    xint, xfrac = torch.stack(xints, 1)[:, :, None], torch.stack(xfracs, 1)[:, :, None]  # [B, 2, 1]
    middle = -(first @ xint + both @ xfrac)
    return sample(images, torch.cat([both, middle], 2), "bilinear", params.kind.padding)


def color(images: Tensor, params: AugmentParameters) -> Tensor:
    """Apply ADA's changes of colour (appendix B): brightness, contrast, luma flip, hue and saturation.

    One channel has no hue; the fourth of four is alpha and stays; of any other number only brightness and contrast
    change. No matrix product: autocast and TF32 would round it.
    """
    channels = images.shape[1]
    if channels == 4:
        return torch.cat([color(images[:, :3], params), images[:, 3:]], 1)
    added, gain = 0.2 * params.normal("brightness"), torch.exp2(0.5 * params.normal("contrast"))
    gray = gain if channels not in (1, 3) else gain * params.sign("lumaflip")
    if channels != 3:
        factors = torch.stack([gray, gray * added], 1)
        own, offset = factors.to(images.dtype)[:, :, None, None, None].unbind(1)
        result = images * own + offset
    else:
        angle, across = math.pi * params.centred("hue"), gain * torch.exp2(params.normal("saturation"))
        # Along the gray axis: gain * flip. Across it: gain * vivid and a rotation. Together a circulant matrix, for
        # the rotation about (1, 1, 1) is one too.
        cos, sin = across * angle.cos(), across * angle.sin() / math.sqrt(3)
        rest = (gray - cos) / 3
        factors = torch.stack([rest + cos, gray * added, rest - sin, rest + sin], 1)
        own, offset, following, last = factors.to(images.dtype)[:, :, None, None, None].unbind(1)
        result = torch.addcmul(offset, own, images)
        result = torch.addcmul(result, following, images.roll(-1, 1))
        result = torch.addcmul(result, last, images.roll(-2, 1))
    unchanged = factors == torch.eye(1, factors.shape[1], dtype=factors.dtype, device=factors.device)
    return images.where(_per_image(unchanged.all(1), images), result)


def diff_color(images: Tensor, params: AugmentParameters) -> Tensor:
    """Apply DiffAugment's changes of colour (Zhao et al. 2020, 2006.10738): brightness, saturation, contrast.

    The contrast is about the image's mean. Channels are treated as in `color`.
    """
    if images.shape[1] == 4:
        return torch.cat([diff_color(images[:, :3], params), images[:, 3:]], 1)
    added, vivid, gain, *_ = diff_changes(images, params)
    changed = (added != 0) | (gain != 1)
    result = images + _per_image(added, images)
    if images.shape[1] == 3:
        changed = changed | (vivid != 1)
        result = torch.lerp(result.mean(1, keepdim=True), result, _per_image(vivid, images))
    result = torch.lerp(result.mean((1, 2, 3), keepdim=True), result, _per_image(gain, images))
    return result.where(_per_image(changed, images), images)


def diff_shift(images: Tensor, params: AugmentParameters) -> Tensor:
    """Apply DiffAugment's translation: by whole pixels up to 1/8 of the size, each as likely.

    0 comes in from outside.
    """
    changes = diff_changes(images, params)
    one, zero = torch.ones_like(changes.shift_x), torch.zeros_like(changes.shift_x)
    theta = torch.stack([one, zero, -changes.shift_x, zero, one, -changes.shift_y], 1).view(-1, 2, 3)
    return sample(images, theta, "nearest", "zeros")


def cutout(images: Tensor, params: AugmentParameters) -> Tensor:
    """Set a window of half the height and width, centred anywhere, to 0 (DeVries & Taylor 2017, 1708.04552).

    So in ADA and, but for the rounding of the centre to a pixel, in DiffAugment.
    """
    near = []
    for k, size in ((1, images.shape[3]), (2, images.shape[2])):
        places = (_places(size, images.device) + 0.5) / size
        near.append((places - params.uniform("cutout", k)[:, None]).abs() < 0.25)
    inside = near[0][:, None, :] & near[1][:, :, None] & params.gate("cutout")[:, None, None]  # [B, H, W]
    return images.masked_fill(inside[:, None], 0.0)


def diff_changes(images: Tensor, params: AugmentParameters) -> Changes:
    """Return the numbers of DiffAugment's changes, [B] each."""
    uniform, choose = params.uniform, params.where
    most = [int(size / 8 + 0.5) for size in (images.shape[3], images.shape[2])]
    xints = [((2 * n + 1) * uniform("xint", k)).floor() - n for k, n in zip((1, 2), most, strict=True)]
    return Changes(
        choose("brightness", uniform("brightness") - 0.5, 0),
        choose("saturation", 2 * uniform("saturation"), 1),
        choose("contrast", uniform("contrast") + 0.5, 1),
        *(choose("xint", xint, 0) for xint in xints),
        uniform("cutout", 1),
        uniform("cutout", 2),
        params.gate("cutout"),
    )


def diff_augment(images: Tensor, params: AugmentParameters) -> Tensor:
    """Apply all that DiffAugment does, on a GPU in one pass."""
    if images.is_cuda:
        return diffaugment(images, diff_changes(images, params))
    return cutout(diff_shift(diff_color(images, params), params), params)


_BLIT = dict.fromkeys(("xflip", "rotate90", "xint"), 1.0)
_GEOMETRY = dict.fromkeys(("scale", "rotate_before", "aniso", "rotate_after", "xfrac"), 1.0)
_COLOR = dict.fromkeys(("brightness", "contrast", "lumaflip", "hue", "saturation"), 1.0)
_DIFF = dict.fromkeys(("brightness", "saturation", "contrast", "xint", "cutout"), 1.0)
_UPRIGHT = {name: 1.0 for name in (*_BLIT, *_GEOMETRY, *_COLOR) if name not in ("xflip", "rotate90", "lumaflip")}
_HALF_COLOR = dict.fromkeys(_COLOR, 0.5)

KINDS: dict[str, Kind] = {
    "none": Kind(),
    "diffaugment": Kind((diff_augment,), _DIFF),  # as published at p = 1
    "blit": Kind((geometry,), _BLIT),
    "ada": Kind((geometry, color), _BLIT | _GEOMETRY | _COLOR),  # the paper's choice, "bgc"
    # For digits and letters: a 6 stays a 6. The rotations add up to 10 degrees at most, and as a reflection shows
    # what is near the edge mirrored, the edge is continued instead.
    "ada-upright": Kind((geometry, color), _UPRIGHT, max_angle=5.0, padding="border"),
    "r3gan": Kind((geometry, color, cutout), _BLIT | _GEOMETRY | _HALF_COLOR | {"cutout": 1.0}),
}


def augment(images: Tensor, keys: Tensor, p: float | Tensor, kind: str | Kind) -> Tensor:
    """Change images [B, C, H, W] in [-1, 1], each as its key (int64 [B]) says; p = 0 leaves every bit as it was.

    `p` in [0, 1], a number or a tensor of shape [] or [B], is the probability that an operation is done to an image;
    give a tensor under torch.compile, which would compile again for each new number.
    The result has the dtype and memory format of `images` and may leave [-1, 1]. Raises UserError for a `kind` that
    isn't in KINDS.
    """
    if isinstance(kind, str):
        if kind not in KINDS:
            raise UserError(f"unknown augmentation {kind!r}: choose from {', '.join(sorted(KINDS))}")
        kind = KINDS[kind]
    if not kind.steps or (not isinstance(p, Tensor) and p == 0):
        return images
    params = AugmentParameters(keys, p, kind)
    result = images.to(torch.promote_types(images.dtype, torch.float32))
    for step in kind.steps:
        result = step(result, params)
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return result.to(images.dtype).contiguous(memory_format=memory_format)


def adapt(p: Tensor, r: Tensor, images: int, target: float = 0.6, speed: int = 500_000) -> Tensor:
    """Return ADA's p after `images` more images: it grows by images / speed while r exceeds `target`, else it shrinks.

    r = E sign(D(x)) of reals measures how far D overfits; from 0 to 1 takes `speed` images (2006.06676, section 3.1).
    All are scalars on one device, which nothing waits for.
    """
    return (p + torch.sign(r - target) * (images / speed)).clamp(0, 1)
