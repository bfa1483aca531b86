"""What tests let worker processes do; each worker imports this, so it imports little."""

import gc
import os
import signal
import time
from pathlib import Path

from fastgan.data import pixels
from fastgan.data.pixels import BadImage, EncodedImage, RawImage, Transform


def whoami(items: list[int]) -> list[int]:
    return [os.getpid()] * len(items)


def dies_on_5_and_6(items: list[int]) -> list[int]:
    """The items, unless one is 5 or 6: then the process dies."""
    if {5, 6} & set(items):
        os.kill(os.getpid(), signal.SIGKILL)
    return items


def encode_or_die(recipe: Transform, raws: list[RawImage]) -> list[EncodedImage | BadImage]:
    """The images as they are to be stored; a file 3.png in a folder a takes the process down."""
    if any(isinstance(raw, Path) and raw.match("a/3.png") for raw in raws):
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels.encode(recipe, raws)


class WaitsForItsThreads:
    """What another process's end of it would wait for, as a DALI pipeline that is collected in a fork does."""

    def __init__(self) -> None:
        self.itself, self.owner = self, os.getpid()

    def __del__(self) -> None:
        while os.getpid() != self.owner:
            time.sleep(0.1)


def collect(items: list[int]) -> list[int]:
    gc.collect()
    return items
