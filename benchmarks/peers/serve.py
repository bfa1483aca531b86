"""What every peer does when told: a wish is a line of JSON on standard input, the answer a line on standard output.

Only the standard library and numpy are used, as each peer has an environment of its own. A peer that waits for its next
wish takes no processor time.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Peer(Protocol):
    """A program that trains the two networks."""

    def step(self) -> None:
        """One round of training is done."""

    def load(self, weights: Arrays) -> None:
        """All weights and statistics are those given, by the peer's own names."""

    def images(self, z: np.ndarray, training: bool) -> np.ndarray:
        """What G makes of z, [B, 28, 28]; in training with the statistics of these images, else with the kept ones."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What D says of images [B, 28, 28], without dropout: [B]."""


def read(path: str) -> Arrays:
    """The arrays of an .npz file, by name."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _answer(peer: Peer, wish: dict[str, Any]) -> dict[str, Any]:
    if wish["do"] == "steps":
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(wish["count"]):
            peer.step()
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    if wish["do"] == "weights":
        peer.load(read(wish["file"]))
        return {}
    assert wish["do"] == "images"
    given = read(wish["file"])
    found = {
        "logits": peer.logits(given["images"]),
        "images": peer.images(given["z"], training=False),
        "images in training": peer.images(given["z"], training=True),  # last: it moves the statistics
    }
    np.savez(Path(wish["out"]), **{name: np.asarray(value) for name, value in found.items()})
    return {}


def serve(peer: Peer, versions: str) -> None:
    """All wishes up to `quit`, or to the end of the input, have been answered."""
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        if wish["do"] == "quit":
            return
        print(json.dumps(_answer(peer, wish)), flush=True)
