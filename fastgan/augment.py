"""Differentiable augmentation: random changes of the images that D sees, each a pure function of one key and of p.

Reals and fakes given the same keys get the same changes. Gradients flow to the images, twice, so D's penalties can be
taken with respect to the images before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastgan import counter
from fastgan.errors import UserError
from fastgan.kernels.diffaugment import Changes, diffaugment
from fastgan.warp import warp

# In the order in which ADA applies them. Append only: what old runs drew depends on the places.
OPERATIONS = (
    "flip",  # left and right change places, for half of the images chosen
    "turn",  # by 0, 90, 180 or 270 degrees
    "shift",  # by whole pixels, up to 1/8 of the size
    "scale",  # both axes alike
    "rotate_before",  # about the centre, before the stretch
    "stretch",  # one axis by s, the other by 1 / s
    "rotate_after",
    "slide",  # a shift by fractions of pixels
    "brightness",
    "contrast",
    "luma_flip",  # light and dark change places, colours stay, for half of the images chosen
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


class Draws:
    """What happens to each image of a batch, from its key: gates and values, [B], float64, without gradients."""

    def __init__(self, keys: Tensor, p: float | Tensor, kind: Kind) -> None:
        self.kind = kind
        self.p = p.detach().double() if isinstance(p, Tensor) else torch.full_like(keys, p, dtype=torch.float64)
        self.table = counter.uniform(keys, COLUMNS * len(OPERATIONS))

    def uniform(self, name: str, number: int = 1) -> Tensor:
        """Number 1 or 2 of the operation's own, in [0, 1)."""
        return self.table[:, COLUMNS * OPERATIONS.index(name) + number]

    def normal(self, name: str, number: int = 1) -> Tensor:
        """The same as a standard normal number."""
        centered = 2 * self.uniform(name, number) - 1
        return math.sqrt(2) * torch.erfinv(centered.clamp(min=2.0**-53 - 1))  # -1 would be infinite

    def sign(self, name: str) -> Tensor:
        """The same as 1 or -1."""
        return 1 - 2 * (2 * self.uniform(name)).floor()

    def happens(self, name: str) -> Tensor:
        """Whether the operation is done to an image, bool. The two rotations share their chance: one of two is done."""
        chance = self.p * self.kind.chances.get(name, 0.0)
        if name in ("rotate_before", "rotate_after"):
            chance = 1 - (1 - chance).sqrt()
        return self.uniform(name, 0) < chance

    def choose(self, name: str, value: Tensor, neutral: float) -> Tensor:
        """`value` for the images to which the operation is done, `neutral` for the others."""
        return value.where(self.happens(name), neutral)


Step = Callable[[Tensor, Draws], Tensor]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the images' dtype, or as it is if it is bool."""
    return (values if values.dtype == torch.bool else values.to(images.dtype))[:, None, None, None]


@dataclass(frozen=True)
class Frame:
    """Where a step to the right, a step down and the middle of each result lie in its image: [B, 2] each, in pixels.

    A method gives the frame after one more change of the result, so changes are named in the order they are done.
    """

    right: Tensor
    down: Tensor
    middle: Tensor

    @staticmethod
    def still(like: Tensor) -> "Frame":
        """The frame of no change, for a batch of the length of `like` [B]."""
        zero, one = torch.zeros_like(like), torch.ones_like(like)
        return Frame(torch.stack([one, zero], 1), torch.stack([zero, one], 1), torch.stack([zero, zero], 1))

    def scale(self, x: Tensor, y: Tensor) -> "Frame":
        """Larger by x and y; a factor of -1 mirrors."""
        return Frame(self.right / x[:, None], self.down / y[:, None], self.middle)

    def rotate(self, angle: Tensor) -> "Frame":
        """By an angle in radians, from right to down."""
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return Frame(cos * self.right - sin * self.down, sin * self.right + cos * self.down, self.middle)

    def move(self, x: Tensor, y: Tensor) -> "Frame":
        """By x pixels to the right and y down."""
        return Frame(self.right, self.down, self.middle - self.right * x[:, None] - self.down * y[:, None])

    def sample(self, images: Tensor, mode: str, padding: str) -> Tensor:
        """The images seen in their frames; those whose frame has not moved are as they were, to the bit."""
        height, width = images.shape[2:]
        one = torch.ones_like(self.right[:, 0])
        still = Frame.still(one)
        moved = (self.right != still.right) | (self.down != still.down) | (self.middle != 0)
        units = [one * 2 / max(size - 1, 1) for size in (width, height)]  # a pixel, where grid_sample counts -1 to 1
        unit = torch.stack(units, 1)[:, None]
        x, y = (_places(n, images.device)[:, None] - (n - 1) / 2 for n in (width, height))
        rows = (self.middle[:, None] + self.down[:, None] * y) * unit  # [B, H, 2]
        columns = self.right[:, None] * x * unit  # [B, W, 2]
        grid = rows.to(images.dtype)[:, :, None] + columns.to(images.dtype)[:, None]  # [B, H, W, 2], -1 to 1
        seen = warp(images, grid, mode, padding)
        return seen.where(_per_image(moved.any(1), images), images)


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device, dtype=torch.float64)


def geometry(images: Tensor, draws: Draws) -> Tensor:
    """ADA's pixel blitting and geometric changes (Karras et al. 2020, 2006.06676, appendix B), as one bilinear warp.

    The paper samples at twice the size through a wavelet filter. Here nothing is filtered, for only one image in 2,500
    shrinks more than twofold along an axis: a warped image is a little softer, reals and fakes alike.
    """
    height, width = images.shape[2:]
    uniform, normal, choose = draws.uniform, draws.normal, draws.choose
    one = torch.ones_like(draws.table[:, 0])
    frame = Frame.still(one)
    frame = frame.scale(choose("flip", draws.sign("flip"), 1), one)
    frame = frame.rotate(choose("turn", (4 * uniform("turn")).floor() * (math.pi / 2), 0))
    x, y = (((2 * uniform("shift", k) - 1) * (size / 8)).round() for k, size in ((1, width), (2, height)))
    frame = frame.move(choose("shift", x, 0), choose("shift", y, 0))
    factor = choose("scale", torch.exp2(0.2 * normal("scale")), 1)
    frame = frame.scale(factor, factor)
    most = math.radians(draws.kind.max_angle)
    frame = frame.rotate(choose("rotate_before", most * (2 * uniform("rotate_before") - 1), 0))
    factor = choose("stretch", torch.exp2(0.2 * normal("stretch")), 1)
    frame = frame.scale(factor, 1 / factor)
    frame = frame.rotate(choose("rotate_after", most * (2 * uniform("rotate_after") - 1), 0))
    x, y = (normal("slide", k) * (size / 8) for k, size in ((1, width), (2, height)))
    frame = frame.move(choose("slide", x, 0), choose("slide", y, 0))
    return frame.sample(images, "bilinear", draws.kind.padding)


def color(images: Tensor, draws: Draws) -> Tensor:
    """ADA's changes of colour (appendix B): brightness, contrast, luma flip, hue and saturation.

    One channel has no hue; the fourth of four is alpha and stays; of any other number only brightness and contrast
    change. No matrix product: autocast and TF32 would round it.
    """
    channels = images.shape[1]
    if channels == 4:
        return torch.cat([color(images[:, :3], draws), images[:, 3:]], 1)
    added = draws.choose("brightness", 0.2 * draws.normal("brightness"), 0)
    gain = draws.choose("contrast", torch.exp2(0.5 * draws.normal("contrast")), 1)
    flip = draws.choose("luma_flip", draws.sign("luma_flip"), 1)
    if channels != 3:
        gain = gain * flip if channels == 1 else gain
        changed = (added != 0) | (gain != 1)
        result = images * _per_image(gain, images) + _per_image(gain * added, images)
    else:
        angle = draws.choose("hue", math.pi * (2 * draws.uniform("hue") - 1), 0)
        vivid = draws.choose("saturation", torch.exp2(draws.normal("saturation")), 1)
        changed = (added != 0) | (gain != 1) | (flip != 1) | (angle != 0) | (vivid != 1)
        # Along the gray axis: gain * flip. Across it: gain * vivid and a rotation. Together a circulant matrix, for
        # the rotation about (1, 1, 1) is one too.
        gray, cos, sin = gain * flip, gain * vivid * angle.cos(), gain * vivid * angle.sin() / math.sqrt(3)
        own, following, last = (gray + 2 * cos) / 3, (gray - cos) / 3 - sin, (gray - cos) / 3 + sin
        result = _per_image(own, images) * images + _per_image(gray * added, images)
        result = torch.addcmul(result, _per_image(following, images), images.roll(-1, 1))
        result = torch.addcmul(result, _per_image(last, images), images.roll(-2, 1))
    return result.where(_per_image(changed, images), images)


def diff_color(images: Tensor, draws: Draws) -> Tensor:
    """DiffAugment's changes of colour (Zhao et al. 2020, 2006.10738): brightness, saturation, contrast.

    The contrast is about the image's mean. Channels are treated as in `color`.
    """
    if images.shape[1] == 4:
        return torch.cat([diff_color(images[:, :3], draws), images[:, 3:]], 1)
    added, vivid, gain, *_ = diff_changes(images, draws)
    changed = (added != 0) | (gain != 1)
    result = images + _per_image(added, images)
    if images.shape[1] == 3:
        changed = changed | (vivid != 1)
        result = torch.lerp(result.mean(1, keepdim=True), result, _per_image(vivid, images))
    result = torch.lerp(result.mean((1, 2, 3), keepdim=True), result, _per_image(gain, images))
    return result.where(_per_image(changed, images), images)


def diff_shift(images: Tensor, draws: Draws) -> Tensor:
    """DiffAugment's translation: by whole pixels up to 1/8 of the size, each as likely; 0 comes in from outside."""
    changes = diff_changes(images, draws)
    frame = Frame.still(draws.table[:, 0]).move(changes.shift_x, changes.shift_y)
    return frame.sample(images, "nearest", "zeros")


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """A window of half the height and width, centred anywhere in the image, is 0 (DeVries & Taylor 2017, 1708.04552).

    So in ADA and, but for the rounding of the centre to a pixel, in DiffAugment.
    """
    near = []
    for k, size in ((1, images.shape[3]), (2, images.shape[2])):
        places = (_places(size, images.device) + 0.5) / size
        near.append((places - draws.uniform("cutout", k)[:, None]).abs() < 0.25)
    inside = near[0][:, None, :] & near[1][:, :, None] & draws.happens("cutout")[:, None, None]  # [B, H, W]
    return images.masked_fill(inside[:, None], 0.0)


def diff_changes(images: Tensor, draws: Draws) -> Changes:
    """The numbers of DiffAugment's changes, [B] each."""
    uniform, choose = draws.uniform, draws.choose
    most = [int(size / 8 + 0.5) for size in (images.shape[3], images.shape[2])]
    shifts = [((2 * n + 1) * uniform("shift", k)).floor() - n for k, n in zip((1, 2), most, strict=True)]
    return Changes(
        choose("brightness", uniform("brightness") - 0.5, 0),
        choose("saturation", 2 * uniform("saturation"), 1),
        choose("contrast", uniform("contrast") + 0.5, 1),
        *(choose("shift", shift, 0) for shift in shifts),
        uniform("cutout", 1),
        uniform("cutout", 2),
        draws.happens("cutout"),
    )


def diff_augment(images: Tensor, draws: Draws) -> Tensor:
    """All that DiffAugment does, on a GPU in one pass."""
    if images.is_cuda:
        return diffaugment(images, diff_changes(images, draws))
    return cutout(diff_shift(diff_color(images, draws), draws), draws)


_BLIT = dict.fromkeys(("flip", "turn", "shift"), 1.0)
_GEOMETRY = dict.fromkeys(("scale", "rotate_before", "stretch", "rotate_after", "slide"), 1.0)
_COLOR = dict.fromkeys(("brightness", "contrast", "luma_flip", "hue", "saturation"), 1.0)
_DIFF = dict.fromkeys(("brightness", "saturation", "contrast", "shift", "cutout"), 1.0)
_UPRIGHT = {name: 1.0 for name in (*_BLIT, *_GEOMETRY, *_COLOR) if name not in ("flip", "turn", "luma_flip")}
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
    """Images [B, C, H, W] in [-1, 1], each changed as its key (int64 [B]) says; p = 0 leaves every bit as it was.

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
    draws = Draws(keys, p, kind)
    result = images.to(torch.promote_types(images.dtype, torch.float32))
    for step in kind.steps:
        result = step(result, draws)
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return result.to(images.dtype).contiguous(memory_format=memory_format)


def adapt(p: Tensor, r: Tensor, images: int, target: float = 0.6, speed: int = 500_000) -> Tensor:
    """ADA's p after `images` more images: it grows by images / speed while r exceeds `target`, else it shrinks.

    r = E sign(D(x)) of reals measures how far D overfits; from 0 to 1 takes `speed` images (2006.06676, section 3.1).
    All are scalars on one device, which nothing waits for.
    """
    return (p + torch.sign(r - target) * (images / speed)).clamp(0, 1)
