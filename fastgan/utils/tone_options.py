"""What `--background` and `--range` may be."""

import math
import re

from fastgan.errors import UserError

AUTO, FULL = "auto", "full"
NAMED_COLOURS = {"white": "#ffffff", "black": "#000000"}


def parse_background(text: str) -> str | None:
    """Return the colour as #rrggbb; None of auto. Raises UserError for anything else."""
    colour = NAMED_COLOURS.get(text.lower(), text.lower())
    if colour == AUTO:
        return None
    if not re.fullmatch(r"#[0-9a-f]{6}", colour):
        raise UserError(f"background is {text!r}: give auto, white, black or a colour like '#80c0ff'")
    return colour


def parse_range(text: str) -> tuple[float, float] | None:
    """Return the numbers that become black and white; None of auto and full. Raises UserError for anything else."""
    if text in (AUTO, FULL):
        return None
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = math.nan, math.nan
    if not -math.inf < found[0] < found[1] < math.inf:
        raise UserError(f"range is {text!r}: give auto, full, or LOW:HIGH like 0:4095 or -1024:3071")
    return found
