"""How far training is, on the console: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_S = 15.0


class Progress:
    """A console that shows nothing of itself; what is said stands above the bar where there is one."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._bar: tqdm | None = None

    def begin_epoch(self, images_seen: int) -> None:
        """Begin an epoch at `images_seen`, or go on there after a resume."""

    def step(self, images_seen: int, epoch: int) -> None:
        """Count a step that has ended."""

    def losses(self, images_seen: int, epoch: int, g_loss: float, d_loss: float) -> None:
        """Show new losses."""

    def end_epoch(self, g_loss: float, d_loss: float) -> None:
        """End the epoch that the last step belonged to, with these mean losses."""

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class RunProgress(Progress):
    """Epoch, images seen, images/s, time left and both losses. `epochs` and `total` are the run's whole length."""

    def __init__(self, images_seen: int, total: int, epochs: int, out: TextIO | None = None) -> None:
        super().__init__(out)
        self._start, self._total, self._epochs = images_seen, total, epochs
        self._began = self._last_line = time.monotonic()
        if self._out.isatty():
            self._bar = tqdm(
                total=total, initial=images_seen, unit="img", unit_scale=True, file=self._out, dynamic_ncols=True
            )

    def step(self, images_seen: int, epoch: int) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.update(images_seen - self._bar.n)

    def losses(self, images_seen: int, epoch: int, g_loss: float, d_loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"G {g_loss:.3f} D {d_loss:.3f}")
            return
        now = time.monotonic()
        if now - self._last_line < LINE_EVERY_S and images_seen < self._total:
            return
        self._last_line = now
        rate = (images_seen - self._start) / max(now - self._began, 1e-9)
        left = tqdm.format_interval((self._total - images_seen) / rate) if rate > 0 else "?"
        self._print(
            f"epoch {epoch}/{self._epochs}  {images_seen:,}/{self._total:,} images "
            f"({images_seen / self._total:.1%})  {rate:.1f} img/s  left {left}  G {g_loss:.3f}  D {d_loss:.3f}"
        )


class EpochProgress(Progress):
    """Each epoch's number, bar of steps, time and mean losses, in the form of Keras's notebooks.

    `steps_to` gives the steps from the start of training to where so many images have been seen. Of an epoch that a
    resume goes on with, bar and time show this session's part.
    """

    def __init__(self, total: int, num_images: int, steps_to: Callable[[int], int], out: TextIO | None = None) -> None:
        super().__init__(out)
        self._total, self._num_images, self._steps_to = total, num_images, steps_to
        self._ascii = not _has_blocks(self._out)

    def begin_epoch(self, images_seen: int) -> None:
        epoch = images_seen // self._num_images
        self._first = self._steps_to(epoch * self._num_images)
        self._length = self._steps_to(min((epoch + 1) * self._num_images, self._total)) - self._first
        self._initial = self._done = self._steps_to(images_seen) - self._first
        self._began = self._last_line = time.monotonic()
        self._print(f"Epoch : {epoch + 1}")
        if self._out.isatty():
            self._bar = tqdm(
                desc="Training", total=self._length, initial=self._initial, file=self._out, dynamic_ncols=True
            )

    def step(self, images_seen: int, epoch: int) -> None:
        self._done = self._steps_to(images_seen) - self._first
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def losses(self, images_seen: int, epoch: int, g_loss: float, d_loss: float) -> None:
        shown = f"G {g_loss:.3f} D {d_loss:.3f}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif self._done < self._length and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._print(self._meter(shown))

    def end_epoch(self, g_loss: float, d_loss: float) -> None:
        seconds = time.monotonic() - self._began
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
            self.close()
        else:
            self._print(self._meter())
        self._print(f"Time:{seconds:.1f}")
        self._print(f"Generator Loss: {g_loss} Discriminator Loss: {d_loss}")

    def _meter(self, shown: str | None = None) -> str:
        """The bar as a line."""
        return tqdm.format_meter(
            self._done,
            self._length,
            time.monotonic() - self._began,
            prefix="Training",
            ascii=self._ascii,
            postfix=shown,
            initial=self._initial,
        )


def _has_blocks(out: TextIO) -> bool:
    """Whether the bar's characters can be written there."""
    try:
        "█▏".encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
