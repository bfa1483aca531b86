"""The losses over a run: their means over an epoch, and a picture of them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Rows = list[dict[str, Any]]
G_LOSS, D_LOSS = "loss/G", "loss/D"
CHANCE_LEVEL = {"nonsaturating": (2 * math.log(2), "D can't tell: 2 ln 2")}  # D's loss where all its logits are 0


class Span(NamedTuple):
    """The mean losses from one number of images seen to another."""

    start: int
    end: int
    g_loss: float
    d_loss: float


def spans(rows: Rows) -> list[Span]:
    """Return what the rows of log.jsonl say of the losses; each row stands for the images since the one before."""
    found: list[Span] = []
    for row in rows:
        if G_LOSS in row and D_LOSS in row:
            start = found[-1].end if found else 0
            found.append(Span(start, row["images_seen"], row[G_LOSS], row[D_LOSS]))
    return found


def last_epoch(rows: Rows, num_images: int) -> tuple[float, float]:
    """Return the mean losses of G and D over the epoch in which the last row began, each row weighted by its images.

    A batch that runs on across an epoch's end belongs to the epoch in which it began.
    """
    curve = spans(rows)
    epoch = [span for span in curve if span.start // num_images == curve[-1].start // num_images]
    images = sum(span.end - span.start for span in epoch)
    g_sum = sum(span.g_loss * (span.end - span.start) for span in epoch)
    d_sum = sum(span.d_loss * (span.end - span.start) for span in epoch)
    return g_sum / images, d_sum / images


def save(path: Path, rows: Rows, num_images: int, title: str, loss: str) -> None:
    """Plot both losses over epochs and images seen as a PNG; without rows the file is left as it is.

    Raises OSError.
    """
    from matplotlib.figure import Figure  # here, since it takes a second; without pyplot there is no window to manage

    if not (curve := spans(rows)):
        return
    epochs = [span.end / num_images for span in curve]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if len(curve) <= 20 else None
    axes.plot(epochs, [span.g_loss for span in curve], color="tab:orange", marker=marker, ms=3, label="generator")
    axes.plot(epochs, [span.d_loss for span in curve], color="tab:blue", marker=marker, ms=3, label="discriminator")
    if loss in CHANCE_LEVEL:
        value, name = CHANCE_LEVEL[loss]
        axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=name)
    axes.set(title=title, xlabel="epochs", ylabel="loss", xlim=(0, epochs[-1]))
    axes.grid(alpha=0.3)
    axes.legend()
    above = axes.secondary_xaxis(
        "top", functions=(lambda x: np.asarray(x) * num_images, lambda x: np.asarray(x) / num_images)
    )
    above.set_xlabel("images seen")
    above.xaxis.set_major_formatter("{x:,.0f}")
    side = path.with_name(f".{path.name}.partial")
    figure.savefig(side, format="png")
    side.replace(path)
