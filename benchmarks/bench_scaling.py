"""One process against several on one machine: images/s at the same batch and the same threads in all, in turn.

Each side is started once, by torchrun where it is several processes, and then takes its turn in every round. Beside the
speed: what sharing the gradients takes, and for how long training waits when it saves a checkpoint.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import harness
import torch
import torch.distributed as dist
import tyro

from fastgan import networks, presets
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.distributed.processes import Processes
from fastgan.errors import UserError
from fastgan.runs.async_writer import AsyncWriter
from fastgan.runs.checkpoint import Checkpoints
from fastgan.training.trainer import Trainer
from fastgan.utils.arguments import parse

WORKER = "--worker"
TRIES = 7  # of an exchange or a checkpoint


@dataclass(frozen=True)
class Options:
    """Compare one process with several."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = ("mnist28", "mnist28-fast")
    """What trains."""
    processes: int = 2
    """How many processes one is compared with, by DDP."""
    threads: int | None = None
    """CPU threads of all processes together; without it, torch's."""
    seconds: float = 8.0
    """How long a side trains in a round."""
    rounds: int = 5
    """Rounds; another one before them warms up."""
    data: str | None = None
    """The data set, where it isn't the presets' own."""
    save: bool = False
    """Write the table into results/."""


class Side:
    """So many processes that train one preset, each round for a while."""

    def __init__(self, preset: str, count: int, threads: int, data: str | None) -> None:
        several = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--rdzv-backend", "c10d"]
        several += ["--rdzv-endpoint", "localhost:0"]
        command = [sys.executable, *(several if count > 1 else []), __file__, WORKER, preset, str(threads // count)]
        self._worker = subprocess.Popen(
            [*command, data or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, what: str, amount: float = 0.0) -> Any:
        """The main process's answer. Raises UserError where the processes are gone."""
        assert self._worker.stdin is not None and self._worker.stdout is not None and self._worker.stderr is not None
        self._worker.stdin.write(json.dumps([what, amount]) + "\n")
        self._worker.stdin.flush()
        for line in self._worker.stdout:
            if line.startswith("{"):
                return json.loads(line)["answer"]
        raise UserError(f"a process ended: {self._worker.stderr.read()[-2000:]}")

    def end(self) -> None:
        self._worker.communicate(json.dumps(["end", 0.0]) + "\n")


class Bench:
    """What one process does when the main one, told on its standard input, passes a wish on."""

    def __init__(self, preset: str, threads: int, data: str) -> None:
        config = presets.get(preset)
        self.config = replace(config, data=replace(config.data, data=data or config.data.data))
        self.processes = Processes(threads)
        source = open_dataset(self.config)
        place = (self.processes.device, self.processes.rank, self.processes.world_size)
        nets = networks.build(self.config, self.processes.device)
        loader = build_loader(self.config, source, *place)
        self.trainer = Trainer(self.config, nets, loader, self.processes.make_engine, self.processes.world_size)

    def serve(self) -> None:
        while True:
            wish: list[Any] = [json.loads(sys.stdin.readline()) if self.processes.is_main else None]
            if self.processes.world_size > 1:
                dist.broadcast_object_list(wish)
            what, amount = wish[0]
            if what == "end":
                return
            answer = getattr(self, what)(amount)
            if self.processes.is_main:
                print(json.dumps({"answer": answer}), flush=True)

    def speed(self, seconds: float) -> float:
        """Images a second over about so long; all processes do as many steps as the main one has time for."""
        step = harness.seconds(self._step)
        steps = [max(1, round(seconds / step))]
        if self.processes.world_size > 1:
            dist.broadcast_object_list(steps)
        before = self.trainer.images_seen
        spent = harness.seconds(lambda: self._steps(steps[0]))
        return (self.trainer.images_seen - before) / spent

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self._step()

    def _step(self) -> None:
        self.trainer.train_step(self.trainer.loader.batch(self.trainer.images_seen))

    def exchange(self, _: float) -> float:
        """Seconds that the gradients of both players take to be shared, by themselves."""
        if self.processes.world_size == 1:
            return 0.0
        numbers = sum(networks.sizes(self.config))
        gradients = torch.zeros(numbers, device=self.processes.device)
        return statistics.median(harness.seconds(lambda: dist.all_reduce(gradients)) for _ in range(TRIES))

    def pause(self, _: float) -> float:
        """Share of training's time that waits for checkpoints, one every `checkpoint_every` images or epoch."""
        every = self.config.run.checkpoint_every or self.trainer.loader.num_images
        step = statistics.median(harness.seconds(self._step) for _ in range(TRIES))
        interval = step * self.trainer.steps_to(every)
        waits = []
        with tempfile.TemporaryDirectory() as folder:
            checkpoints, writer = Checkpoints(Path(folder), keep=1), AsyncWriter()
            for _ in range(TRIES):
                waits.append(harness.seconds(lambda: self._save(checkpoints, writer)))
                time.sleep(1)  # the write, far shorter than the interval, is over
            writer.close()
        return statistics.median(waits) / interval

    def _save(self, checkpoints: Checkpoints, writer: AsyncWriter) -> None:
        self.trainer.check_finite()
        tensors, state = self.trainer.state()
        if self.processes.is_main:
            writer.save("checkpoint", tensors, lambda copies: checkpoints.save(copies, state))


def compare(options: Options, preset: str, threads: int) -> list[str]:
    """The preset's rows, one a side."""
    counts = (1, options.processes)
    sides = {count: Side(preset, count, threads, options.data) for count in counts}
    measures = {str(count): lambda side=side: side.ask("speed", options.seconds) for count, side in sides.items()}
    speeds = {int(name): values[1:] for name, values in harness.in_turn(measures, options.rounds + 1).items()}
    rows = []
    for count, side in sides.items():
        ratio = statistics.median(mine / one for mine, one in zip(speeds[count], speeds[1], strict=True))
        config = presets.get(preset)
        steps = statistics.median(speeds[count]) / config.data.batch_size
        exchange, pause = side.ask("exchange"), side.ask("pause")
        side.end()
        size = 4 * sum(networks.sizes(config)) / 1e6
        shared = f"{size:.1f} MB, {1000 * exchange:.1f} ms, {exchange * steps:.1%}" if count > 1 else ""
        made = f"{preset} | {config.data.batch_size} | {count} | {threads // count}"
        rows.append(f"| {made} | {harness.spread(speeds[count], 0)} | {ratio:.2f} | {shared} | {pause:.3%} |")
    return rows


def main(options: Options) -> None:
    threads = options.threads or torch.get_num_threads()
    if options.processes < 2 or threads % options.processes:
        raise UserError(
            f"processes is {options.processes}: give 2 or more, which divide the {threads} threads, or other --threads"
        )
    columns = ["preset", "batch", "processes", "threads each", "images/s", "of one process's"]
    columns += ["gradients: size, time alone, share of a step", "checkpoints' share of the time"]
    lines = [harness.head(*columns)]
    for preset in options.presets:
        lines += compare(options, preset, threads)
    table = "\n".join(lines)
    print(table)
    if options.save:
        print(harness.save("scaling", f"One process against {options.processes}", table))


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        Bench(sys.argv[2], int(sys.argv[3]), sys.argv[4]).serve()
        sys.exit()
    try:
        main(parse(Options, sys.argv[1:], prog="bench_scaling.py"))
    except UserError as error:
        sys.exit(f"bench_scaling.py: error: {error}")
