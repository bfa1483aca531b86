"""One network, three programs: images/s of fastgan, of Keras and of the usual PyTorch loop, in turn on equal threads.

The networks are those of `mnist28`, batch 256, float32. Keras has an environment of its own, which is made at the first
call and kept. Each program is a process that waits, idle, until it is its turn. Before anything is timed, all get the
same weights and have to make the same images and logits of the same latents and images.

A program that had clearly fewer cores than threads shared the machine with something else: measure again.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import harness
import numpy as np
import psutil
import torch
import tyro
from peers import weights

from fastgan import networks, presets
from fastgan.data import named
from fastgan.errors import UserError
from fastgan.utils.arguments import parse

PEERS = Path(__file__).parent / "peers"
BATCH_SIZE, TOLERANCE = 256, 1e-4
KERAS = ("tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6")


@dataclass(frozen=True)
class Side:
    """A program, how it takes weights, and whether what it computes is the mirror image."""

    says: str
    script: str
    weights: Callable[[weights.Weights, weights.Weights], weights.Weights]
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    mirrors: bool = False


SIDES = {
    "fastgan": Side("fastgan, preset mnist28", "fastgan_mnist.py", weights.own),
    "fastgan-twice": Side("fastgan, G generates twice", "fastgan_mnist.py", weights.own, ("--twice",)),
    "keras": Side("Keras, tf.function", "keras_mnist.py", weights.keras, (), KERAS, True),
    "keras-xla": Side("Keras, XLA", "keras_mnist.py", weights.keras, ("--xla",), KERAS, True),
    "torch": Side("PyTorch loop, eager", "torch_mnist.py", weights.torch_usual),
    "torch-twice": Side("PyTorch loop, G generates twice", "torch_mnist.py", weights.torch_usual, ("--twice",)),
}


@dataclass(frozen=True)
class Options:
    """Compare fastgan with other programs of the same networks."""

    sides: Annotated[tuple[str, ...], tyro.conf.Positional] = ("fastgan", "keras", "torch")
    """Who takes part, the one that is compared with the others first."""
    threads: int = torch.get_num_threads()
    """CPU threads of each."""
    rounds: int = 5
    """Rounds; another one before them warms up."""
    seconds: float = 8.0
    """How long a program trains in a round."""
    save: bool = False
    """Write the table into results/."""


def environment(packages: tuple[str, ...]) -> Path:
    """The Python that has these packages and no others, made if need be; ours where there are none.

    Raises UserError where they can't be installed.
    """
    if not packages:
        return Path(sys.executable)
    version = f"python-{sys.version_info.major}.{sys.version_info.minor}"
    folder = named.cache_dir() / "peers" / "-".join((version, *packages)).replace("==", "-")
    done = folder / "complete"
    python = folder / "bin" / "python"
    if not done.exists():
        print(f"making an environment for {', '.join(packages)} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        installing = [str(python), "-m", "pip", "install", *packages]
        for command in ([sys.executable, "-m", "venv", str(folder)], installing):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                reason = ((made.stderr or made.stdout).strip().splitlines() or ["no reason given"])[-1]
                raise UserError(
                    f"no environment for {', '.join(packages)} in {folder} ({reason}): install them there, "
                    f"and make the file {done}; or leave the programs out that need them"
                )
        done.touch()
    return python


class Worker:
    """A program at work or waiting."""

    def __init__(self, name: str, side: Side, images: Path, threads: int, folder: Path) -> None:
        self.side, self._folder = side, folder
        self._errors = folder / f"{name}.err"
        python = str(environment(side.packages))
        command = [python, str(PEERS / side.script), str(images), "--threads", str(threads), *side.flags]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.versions: str = self._read()["versions"]
        self.cores: list[float] = []  # that each turn had
        self.idle_seconds = 0.0  # of processor time, between its turns
        self._cpu_at_rest: float | None = None
        self.count = 1

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        said = self._errors.read_text().strip().splitlines() or ["it said nothing"]
        raise UserError(f"{self.side.script} ended with code {self._process.wait()} ({said[-1]}): run it by itself")

    def ask(self, **wish: Any) -> dict[str, Any]:
        """The answer to a wish. Raises UserError where the program is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last is read below
            self._process.stdin.write(json.dumps(wish) + "\n")
            self._process.stdin.flush()
        return self._read()

    def take(self, G: weights.Weights, D: weights.Weights) -> None:
        """Its networks have these weights."""
        np.savez(self._folder / "weights.npz", **weights.arrays(self.side.weights(G, D)))
        self.ask(do="weights", file=str(self._folder / "weights.npz"))

    def show(self, z: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
        """What its networks make of latents and images."""
        given, out = self._folder / "given.npz", self._folder / "out.npz"
        np.savez(given, z=z, images=self._turned(images))
        self.ask(do="images", file=str(given), out=str(out))
        with np.load(out, allow_pickle=False) as file:
            return {name: file[name] if file[name].ndim == 1 else self._turned(file[name]) for name in file}

    def _turned(self, images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images[:, ::-1, ::-1]) if self.side.mirrors else images

    def speed(self, seconds: float) -> float:
        """Images a second over about so long, after a step that wakes it up."""
        if self._cpu_at_rest is not None:
            self.idle_seconds += self._cpu() - self._cpu_at_rest
        self.ask(do="steps", count=1)
        spent = self.ask(do="steps", count=self.count)
        self.cores.append(spent["cpu_seconds"] / spent["seconds"])
        rate = self.count / spent["seconds"]
        self.count = max(1, round(rate * seconds))
        self._cpu_at_rest = self._cpu()
        return rate * BATCH_SIZE

    def _cpu(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def end(self) -> None:
        self._process.kill()  # it keeps nothing
        self._process.wait()


def check_same(workers: dict[str, Worker], reals: np.ndarray) -> float:
    """The largest difference between the first program's outputs and another's. Raises UserError if it isn't small.

    Compared are logits, and images from kept statistics and from the batch's own; then all have the preset's first
    weights. A difference counts in units of the values' own size where that is above 1.
    """
    first = [dict(net.state_dict()) for net in networks.build(presets.mnist28())]
    for worker in workers.values():
        worker.take(*(weights.unsettled(net) for net in first))
    z = np.random.default_rng(0).standard_normal((64, 100), dtype=np.float32)
    images = (reals[:64].astype(np.float32) - 127.5) / 127.5
    shown = {name: worker.show(z, images) for name, worker in workers.items()}
    reference, largest = next(iter(shown)), 0.0
    for name, outputs in shown.items():
        for kind, values in outputs.items():
            wanted = shown[reference][kind]
            difference = float(np.abs(values - wanted).max() / max(1.0, np.abs(wanted).max()))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{name} and {reference} aren't the same function: their {kind} differ by {difference:.1e}, "
                    f"more than {TOLERANCE:g}; the timings would compare different things"
                )
            largest = max(largest, difference)
    for worker in workers.values():
        worker.take(*first)
    return largest


@contextlib.contextmanager
def started(options: Options, reals: np.ndarray) -> Iterator[dict[str, Worker]]:
    """All programs, waiting; they end with the block."""
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        np.save(images, reals)
        try:
            for name in options.sides:
                workers[name] = Worker(name, SIDES[name], images, options.threads, Path(folder))
            yield workers
        finally:
            for worker in workers.values():
                worker.end()


def table(workers: dict[str, Worker], values: dict[str, list[float]]) -> str:
    """A row a program, and a row a round."""
    first = next(iter(workers))
    columns = ("program", "images/s", f"{first} is faster by", "cores it had", "images/s a core", "versions")
    lines = [harness.head(*columns)]
    for name, worker in workers.items():
        ratios = [mine / other for mine, other in zip(values[first], values[name], strict=True)]
        faster = "" if name == first else harness.spread(ratios, 2)
        cores = worker.cores[1:]
        a_core = harness.spread([rate / had for rate, had in zip(values[name], cores, strict=True)], 0)
        cells = (worker.side.says, harness.spread(values[name], 0), faster, harness.spread(cores, 2), a_core)
        lines.append(f"| {' | '.join(cells)} | {worker.versions} |")
    lines += ["", f"| round | float32 matmul peak, GFLOP/s | {' | '.join(workers)} |"]
    lines.append("|" + " --- |" * (len(workers) + 2))
    for number, peak in enumerate(values["peak"]):
        rates = " | ".join(f"{values[name][number]:.0f}" for name in workers)
        lines.append(f"| {number + 1} | {peak / 1e9:.0f} | {rates} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    unknown = [name for name in options.sides if name not in SIDES]
    if unknown or len(set(options.sides)) < len(options.sides):
        raise UserError(f"sides is {' '.join(options.sides)}: choose from {', '.join(SIDES)}, each once")
    if options.rounds < 3 or options.threads < 1:
        raise UserError(f"rounds is {options.rounds}, threads {options.threads}: give 3 or more, and 1 or more")
    torch.set_num_threads(options.threads)
    reals = named.load("mnist").images[:, 0].numpy()
    with started(options, reals) as workers:
        largest = check_same(workers, reals)
        print(f"the same function: outputs differ by {largest:.1e} at most", flush=True)
        measures: dict[str, Callable[[], float]] = {"peak": harness.matmul_peak}
        measures |= {name: partial(worker.speed, options.seconds) for name, worker in workers.items()}
        found = harness.in_turn(measures, options.rounds + 1)
        values = {name: rates[1:] for name, rates in found.items()}
        idle = max(worker.idle_seconds for worker in workers.values())
    text = f"{table(workers, values)}\n\nThe same function: outputs differ by {largest:.1e} at most. "
    text += f"A waiting program took {idle:.1f} s of processor time at most, in all rounds together."
    print(text)
    if options.save:
        title = f"The networks of `mnist28` in {len(workers)} programs, batch {BATCH_SIZE}, float32"
        print(harness.save("peers", title, text))


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="bench_peers.py"))
    except UserError as error:
        sys.exit(f"bench_peers.py: error: {error}")
