"""What a set's images have in common, by a sample: the background under what is transparent, the range of values.

`train` on a folder and `data prepare` look at the same images, so they choose the same and say the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastgan.data.archives import Entry
from fastgan.data.deep_colours import has_more_bits, read_deep
from fastgan.data.pixels import CLIPPED, TRANSPARENT, BadImage, bytes_of, is_transparent, opened
from fastgan.data.tones import (
    BLACK,
    SIXTEEN_BITS,
    WIDE_MODES,
    Tones,
    colours_to_8_bits,
    full_range,
    to_8_bits,
    values_of,
)
from fastgan.errors import UserError
from fastgan.utils.tone_options import AUTO, NAMED_COLOURS, parse_background, parse_range

SAMPLE = 128  # images, evenly spread over the set
POINTS = 256  # a side of what is looked at of a large image
WHITE, GREY = NAMED_COLOURS["white"], "#808080"
FAINT = 16  # levels between a picture and what it lies on, of 255: below it is hardly seen
GREY_BELOW = 32  # a set whose pictures neither black nor white keeps so far off lies on grey
WORST = 0.1  # the share of pictures that a background may serve worse than it is judged by
ODD = 0.1  # the share of deep images that are odd ones among others: they don't decide for the set
USED = 8  # below this part of their range values give images that are nearly black
BITS = (1, 2, 4, 8, 10, 12, 14, 16)  # depths in which cameras and scanners count


class Look(NamedTuple):
    """What is seen of an image."""

    is_paged: bool  # it has more than one page or frame
    is_float: bool
    is_wide: bool  # it has more than 8 bits a channel
    low: float  # in the file's own numbers
    high: float
    picture: np.ndarray | None  # [N, 2] of brightness and opacity, where it is transparent
    cut: str  # its format, where it has colours of more than 8 bits, of which the upper 8 are read; else ""


class Survey(NamedTuple):
    """What was decided, and what is to be said of it, a line each."""

    tones: Tones
    lines: list[str]
    watch: tuple[str, ...]  # what would make others of the tones, and none of the sample has


def survey(entries: Sequence[Entry], background: str, value_range: str, keeps_alpha: bool = False) -> Survey:
    """Decide for the images of the entries, in their order, what the options leave open.

    Raises UserError for options that aren't right, and for a set that no one range fits.
    """
    chosen, asked = parse_background(background), parse_range(value_range)
    looks = _looks(entries)
    seen = f"{len(looks):,} images" if len(looks) == len(entries) else f"{len(looks):,} of {len(entries):,} images"
    paged = sum(look.is_paged for look in looks)
    lines = [f"pages: {paged:,} of {seen} have more than one; the first is taken"] if paged else []
    if cut := [look.cut for look in looks if look.cut]:
        kinds = ", ".join(sorted({*cut}))
        lines.append(f"deep colours: {len(cut):,} of {seen} ({kinds}) are read by their upper 8 bits")
    resolved = asked or (_choose_range(looks) if value_range == AUTO else None)
    lines += _range_lines(looks, resolved, is_auto=value_range == AUTO)
    watch = (CLIPPED,) if resolved is not None and asked is None else ()
    pictures = [look.picture for look in looks if look.picture is not None]
    if not pictures:
        unseen = (TRANSPARENT,) if chosen is None and not keeps_alpha else ()
        return Survey(Tones(chosen or BLACK, resolved), lines, watch + unseen)
    colour = chosen or _choose_background(pictures)
    lines.append(_background_line(pictures, seen, colour, keeps_alpha=keeps_alpha))
    return Survey(Tones(colour, resolved), lines, watch)


def missed_lines(counts: Mapping[str, int], num_images: int, tones: Tones) -> list[str]:
    """Return what is to be said of images that have what none of the sample has, a line a kind."""
    lines = []
    if found := counts.get(TRANSPARENT):
        done = f"laid on {_colour_name(tones.background)} (--background to change it)"
        lines.append(f"transparency: {found:,} of {num_images:,} images have it, none of those looked at first; {done}")
    if (found := counts.get(CLIPPED)) and tones.value_range is not None:
        first, last = map(_number, tones.value_range)
        beyond = f"{found:,} of {num_images:,} images go beyond {first} to {last}, none of those looked at first"
        lines.append(f"values: {beyond}; they are clipped (--range LOW:HIGH to change it)")
    return lines


def sample(names: Sequence[str]) -> list[int]:
    """Return the numbers of the images to look at: as many of each kind of file, by its ending, evenly spread."""
    kinds: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        ending = PurePosixPath(name).suffix.lower()
        kinds.setdefault(ending if ending in Image.registered_extensions() else "", []).append(number)
    chosen = set()
    for numbers in kinds.values():
        places = np.linspace(0, len(numbers) - 1, min(len(numbers), max(1, SAMPLE // len(kinds))))
        chosen |= {numbers[place] for place in places.round().astype(int)}
    return sorted(chosen)


def _looks(entries: Sequence[Entry]) -> list[Look]:
    """What is seen of the sample's images; 8-bit ones are decoded only until one isn't dark."""
    looks: list[Look] = []
    is_dark = True
    for number in sample([entry.name for entry in entries]):
        try:
            raw = entries[number].read()
            if isinstance(raw, BadImage | np.ndarray):  # drawn sets are as they should be
                continue
            look = look_at(bytes_of(raw), measure=is_dark)
        except BadImage:  # its reason is told when its turn comes
            continue
        looks.append(look)
        is_dark = is_dark and (look.is_wide or look.high < 256 / USED)
    return looks


def look_at(data: bytes, measure: bool = True) -> Look:
    """Return what is seen of an image, its values where it is wide or is to be measured. Raises BadImage."""
    with opened(data) as image:
        # A camera's second pictures (MPO) are previews.
        is_paged = image.format != "MPO" and getattr(image, "is_animated", False)
        image.draft(None, (POINTS, POINTS))
        low, high, is_float, is_wide = 0.0, 255.0, False, image.mode in WIDE_MODES
        shown: Image.Image = image
        deep = read_deep(image, data)
        cut = (image.format or "") * (deep is None and has_more_bits(image, data))
        if deep is not None:
            is_wide, shown, values = True, colours_to_8_bits(deep, None), deep[..., : 3 if deep.shape[2] > 2 else 1]
            low, high = float(values.min()), float(values.max())
        elif is_wide:
            values = values_of(image)
            is_float = values.dtype.kind == "f"
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                raise BadImage("values out of range")
        elif measure:
            extrema = np.array(image.convert("RGB").getextrema())
            low, high = float(extrema.min()), float(extrema.max())
        picture = _picture(shown) if is_transparent(shown) else None
        if picture is not None and not is_wide:
            low, high = 0.0, 255.0  # dark ink on nothing is no dark image
        return Look(is_paged, is_float, is_wide, low, high, picture, cut)


def _picture(image: Image.Image) -> np.ndarray:
    shown = np.asarray(to_8_bits(image, None).convert("RGBA"))
    shown = shown[:: 1 + len(shown) // POINTS, :: 1 + shown.shape[1] // POINTS].reshape(-1, 4).astype(np.float64)
    return np.stack([shown[:, :3] @ (0.299, 0.587, 0.114), shown[:, 3] / 255], axis=1)


def _distances(pictures: list[np.ndarray], colour: str) -> np.ndarray:
    """How far what is visible of each picture [N, 2] is from the colour's brightness, 0 to 255."""
    ground = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) @ (0.299, 0.587, 0.114)
    return np.array(
        [
            (abs(picture[:, 0] - ground) * picture[:, 1]).sum() / picture[:, 1].sum()
            for picture in pictures
            if picture[:, 1].any()
        ]
        or [255.0]
    )


def _choose_background(pictures: list[np.ndarray]) -> str:
    """White or black, whichever keeps more of the pictures visible; grey where neither does."""
    scores = {colour: float(np.quantile(_distances(pictures, colour), WORST)) for colour in (WHITE, BLACK, GREY)}
    best = max((WHITE, BLACK), key=scores.__getitem__)  # the first of equals
    return GREY if scores[best] < GREY_BELOW and scores[GREY] > 2 * scores[best] else best


def _background_line(pictures: list[np.ndarray], seen: str, colour: str, keeps_alpha: bool) -> str:
    name = _colour_name(colour)
    done = f"kept, metrics see them laid on {name}" if keeps_alpha else f"laid on {name}"
    faint = int((_distances(pictures, colour) < FAINT).sum())
    return f"transparency: {len(pictures):,} of {seen} have it; {done}" + (
        f"; {faint:,} can hardly be seen on it: give another --background" if faint else " (--background to change it)"
    )


def _colour_name(colour: str) -> str:
    return {WHITE: "white", BLACK: "black", GREY: "grey"}.get(colour, colour)


def _choose_range(looks: list[Look]) -> tuple[float, float] | None:
    """What the wide images' numbers become black and white at; None: the full range is right, or wide ones are few.

    Raises UserError where wide images of several kinds, or wide ones and others, need different ranges.
    """
    if sum(look.is_wide for look in looks) <= ODD * len(looks):
        return None
    found = set()
    for is_float in (False, True):
        wide = [look for look in looks if look.is_wide and look.is_float == is_float]
        if wide:
            found.add(_fitting(min(look.low for look in wide), max(look.high for look in wide), is_float))
    if len(found) > 1 or (any(not look.is_wide for look in looks) and any(fit and fit[1] < 255 for fit in found)):
        numbers = " and ".join(sorted("full" if fit is None else f"{fit[0]:g}:{fit[1]:g}" for fit in found))
        raise UserError(
            f"images hold numbers of different kinds (those of more than 8 bits: {numbers}): "
            "prepare each kind by itself, or give one --range LOW:HIGH for all"
        )
    return found.pop() if found else None


def _fitting(low: float, high: float, is_float: bool) -> tuple[float, float] | None:
    """The range of numbers from `low` to `high`: a usual one where one fits."""
    if low >= 0 and is_float:
        ends = [end for end in (1.0, 255.0, float(SIXTEEN_BITS)) if high <= end <= USED * high]
    else:
        ends = [end for end in (2.0**bits - 1 for bits in BITS) if high <= end] if low >= 0 else []
    fitting = (0.0, ends[0]) if ends else (min(0.0, low), high)
    full = (0.0, 1.0 if is_float else float(SIXTEEN_BITS))
    return None if fitting == full or not fitting[0] < fitting[1] else fitting


def _range_lines(looks: list[Look], resolved: tuple[float, float] | None, is_auto: bool) -> list[str]:
    """What is said of the values: the range that was chosen, or that they use little of theirs."""
    wide = [look for look in looks if look.is_wide]
    used = wide or looks
    if not used:
        return []
    low, high = min(look.low for look in used), max(look.high for look in used)
    if is_auto and resolved is not None:
        first, last = map(_number, resolved)
        return [f"values: {_number(low)} to {_number(high)}; {first} becomes black, {last} white"]
    full = full_range(np.empty(0, np.float32 if wide and wide[0].is_float else np.uint16)) if wide else (0, 255)
    black, white = resolved or full
    if low < black or high - black >= (white - black) / USED:
        return []
    fitting = _fitting(low, high, is_float=full[1] == 1) or full
    remedy = f"--range {_number(fitting[0])}:{_number(fitting[1])}"
    return [f"values end at {_number(high)} of {_number(white)}: images will be nearly black; {remedy}"]


def _number(value: float) -> str:
    return f"{value:.7g}"
