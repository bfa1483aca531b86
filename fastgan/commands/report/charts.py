"""Curves as SVG paths, with their ticks: what a page needs to show a run's figures.

matplotlib's SVG of a chart of 2 x 400 points has 23 kB, these paths 9. It would bring its own colours, where the page's
follow the reader's theme, and wouldn't stretch; and the values under the pointer need points and axes all the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_POINTS = 400  # of a line
MARKED = 24  # a line of at most so many points shows each
LOG_RATIO = 100.0  # values that span more than this are drawn on a logarithmic axis
SIZE = 1000  # of the SVG's own square, which the page stretches
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named curve; lines of one colour number belong together on all charts of a page."""

    name: str
    points: list[Point]
    color: int

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in percent of its length from the left or the top, and its label."""

    place: float
    label: str


class Plot:
    """Lines on common axes. `lines` must not be empty, nor any of them; the x axis goes from 0 to `x_end`."""

    def __init__(self, title: str, lines: Sequence[Line], x_end: float) -> None:
        self.title, self.lines, self.x_end = title, list(lines), max(x_end, 1.0)
        values = [y for line in lines for _, y in line.points]
        low, high = min(values), max(values)
        self.is_log = low > 0 and high / low > LOG_RATIO
        if self.is_log:
            self.low, self.high = low / 1.2, high * 1.2
        else:
            margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
            self.low = 0.0 if 0 <= low <= 0.3 * high else low - margin
            self.high = high + margin

    def x(self, value: float) -> float:
        return value / self.x_end

    def y(self, value: float) -> float:
        """Return the place of a value, from 0 at the top to 1."""
        if self.is_log:
            return 1 - math.log(value / self.low) / math.log(self.high / self.low)
        return 1 - (value - self.low) / (self.high - self.low)

    def path(self, line: Line) -> str:
        """Return the line as the path of an SVG of `SIZE` by `SIZE`; a single point as a dot."""
        places = [f"{SIZE * self.x(x):.1f} {SIZE * self.y(y):.1f}" for x, y in line.points]
        return f"M{places[0]}h0" if len(places) == 1 else "M" + "L".join(places)

    def marks(self, line: Line) -> str:
        """Return a dot at each point, of a line that has few; otherwise nothing."""
        if len(line.points) > MARKED:
            return ""
        return "".join(f"M{SIZE * self.x(x):.1f} {SIZE * self.y(y):.1f}h0" for x, y in line.points)

    @property
    def y_ticks(self) -> list[Tick]:
        values = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)
        return [Tick(100 * self.y(value), short(value)) for value in values]

    @property
    def x_ticks(self) -> list[Tick]:
        return [Tick(100 * self.x(value), short(value)) for value in ticks(0, self.x_end, 4)]

    def to_json(self) -> dict[str, object]:
        """Return what the page's script needs to tell values under the pointer."""
        lines = [
            {"name": line.name, "color": line.color, "points": [[x, float(f"{y:.5g}")] for x, y in line.points]}
            for line in self.lines
        ]
        return {"end": self.x_end, "low": self.low, "high": self.high, "log": self.is_log, "lines": lines}


def thinned(points: Iterable[Point]) -> list[Point]:
    """Return the finite points, at most `MAX_POINTS` or so.

    Of each stretch the first, lowest, highest and last stay.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= MAX_POINTS:
        return finite
    step = math.ceil(4 * len(finite) / MAX_POINTS)
    kept: list[Point] = []
    for start in range(0, len(finite), step):
        part = range(start, min(start + step, len(finite)))
        wanted = {part[0], min(part, key=lambda k: finite[k][1]), max(part, key=lambda k: finite[k][1]), part[-1]}
        kept += [finite[k] for k in sorted(wanted)]
    return kept


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at most `count` + 1 round values from `low` to `high`, evenly spaced."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, at most six or so."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**power for power in range(first, last + 1, step)]


def short(value: float) -> str:
    """Return a number as an axis shows it: 250k, 1.5M, 0.05."""
    if abs(value) < 1e-12:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"
