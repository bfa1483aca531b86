"""How far training is, on the console: a bar on a terminal, a line every so often elsewhere."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_S = 15.0


class Progress:
    """Epoch, images seen, images/s, time left and both losses. `epochs` and `total` are the run's whole length."""

    def __init__(self, images_seen: int, total: int, epochs: int, out: TextIO | None = None) -> None:
        out = out or sys.stdout
        self._start, self._total, self._epochs, self._out = images_seen, total, epochs, out
        self._began = self._last_line = time.monotonic()
        self._bar = None
        if out.isatty():
            self._bar = tqdm(
                total=total, initial=images_seen, unit="img", unit_scale=True, file=out, dynamic_ncols=True
            )

    def step(self, images_seen: int, epoch: int) -> None:
        """A step has ended."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.update(images_seen - self._bar.n)

    def losses(self, images_seen: int, epoch: int, g_loss: float, d_loss: float) -> None:
        """New losses are known."""
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

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)
