"""Training, from the command line to the run folder: what `accelerate launch` runs."""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from fastgan import presets
from fastgan.config import Config
from fastgan.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, EXIT_USER_ERROR, Diverged, Stopped, UserError
from fastgan.flags import parse


def parse_config(args: Sequence[str]) -> Config:
    """The preset that `--preset` names, changed by the other flags. Raises UserError."""
    name = presets.DEFAULT
    for number, arg in enumerate(args):
        if arg == "--preset" and number + 1 < len(args):
            name = args[number + 1]
        elif arg.startswith("--preset="):
            name = arg.removeprefix("--preset=")
    return parse(Config, args, prog="fastgan train", default=presets.get(name))


class StopRequest:
    """SIGTERM, Ctrl-C or the clock ask for a stop after the current step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signalled = False
        self._deadline = math.inf
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def after(self, minutes: float | None) -> None:
        """Ask for a stop in so many minutes from now; None: never."""
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def __bool__(self) -> bool:
        return self.signalled or time.monotonic() >= self._deadline


def _end_with_launcher() -> None:
    """Where `accelerate launch` started this process, its end is a SIGTERM to us: it hands no signals on itself."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def plan(config: Config) -> str:
    """What the run would be: the settings, the networks' sizes, epochs and steps."""
    from fastgan import networks
    from fastgan.data import num_images as images_of
    from fastgan.data import order

    G, D = networks.build(config)
    num_images = images_of(config)
    total = config.total_images(num_images)
    steps = order.num_steps(total, num_images, config.data.batch_size, config.data.keep_partial_batch)
    return "\n".join(
        (
            config.to_json(),
            f"G: {networks.num_parameters(G):,} parameters",
            f"D: {networks.num_parameters(D):,} parameters",
            f"data: {num_images:,} images an epoch",
            f"run: {total / num_images:g} epochs, {total:,} images, {steps:,} steps, into {config.run_dir}",
        )
    )


def train(config: Config, stop: StopRequest) -> None:
    """The run folder holds the trained run. An earlier session's run goes on from its last checkpoint.

    Raises UserError, Diverged, and Stopped (after a checkpoint) where `stop` was asked for.
    """
    from fastgan import networks
    from fastgan.checkpoint import Checkpoints
    from fastgan.data import build_loader, open_source
    from fastgan.distributed import Processes
    from fastgan.run_folder import RunFolder
    from fastgan.trainer import Trainer
    from fastgan.watch import Watch

    processes = Processes(config.run.threads)
    folder = RunFolder(config.run_dir)
    checkpoints = Checkpoints(folder.checkpoints)
    if processes.is_main:
        folder.open(config)
        checkpoints.remove_partial()
    source = processes.main_first(lambda: open_source(config))  # one process gets a known set
    loader = build_loader(config, source, processes.device, processes.rank, processes.count, processes.say)
    trainer = Trainer(config, networks.build(config, processes.device), loader, processes.wrap, processes.count)
    if (snapshot := checkpoints.latest(processes.say)) is not None:
        trainer.load_state(snapshot.tensors, snapshot.state)
        processes.say(f"resuming {folder.path} at {trainer.images_seen:,} of {trainer.total_images:,} images")
    if trainer.images_seen >= trainer.total_images:
        processes.say(f"{folder.path} is complete: give more --epochs to train on")
        return
    watch = Watch(trainer, folder, source, processes)
    stop.after(config.run.minutes)
    try:
        if snapshot is None:
            watch.grid(trainer)
        trainer.run(watch.events(trainer), lambda: processes.any(bool(stop)))
        watch.finish(trainer)
    except Stopped:
        watch.checkpoint(trainer)
        raise
    finally:
        watch.close(trainer)
    processes.say(f"done: {trainer.images_seen:,} images seen; everything is in {folder.path}")
    processes.end()


def main(args: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    _end_with_launcher()
    stop = StopRequest()
    try:
        config = parse_config(sys.argv[1:] if args is None else args)
        if config.run.dry_run:
            print(plan(config))
        else:
            train(config, stop)
    except UserError as error:
        return _complain(f"error: {error}", EXIT_USER_ERROR)
    except Diverged as error:
        return _complain(f"diverged: {error}", EXIT_DIVERGED)
    except Stopped as end:
        text = f"{end}; a checkpoint is saved, and the same command goes on from it"
        return _complain(text, EXIT_STOPPED if stop.signalled else EXIT_DONE)
    except OSError as error:  # a full disk or a vanished folder, outside the places that say more
        where = f" ({error.filename})" if error.filename else ""
        return _complain(
            f"error: {error.strerror or error}{where}: mend it and run the same command again", EXIT_USER_ERROR
        )
    return EXIT_DONE


def _complain(text: str, exit_code: int) -> int:
    print(f"fastgan: {text}", file=sys.stderr, flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
