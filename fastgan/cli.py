"""`fastgan VERB`: one verb, one module. Nothing heavy is imported before the verb is known."""

import io
import os
import pkgutil
import sys
import typing
from collections.abc import Sequence

from fastgan import __version__
from fastgan.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER_ERROR, Stopped, UserError, machine_error
from fastgan.utils.stop import die_with_parent, stoppable

USAGE = """\
usage: fastgan VERB [options]     (fastgan VERB --help lists a verb's options)

Train on my images: what suits them and how fast it will be here; then the training, which the same command resumes
    fastgan new photos/
    fastgan train --data photos/
Use more GPUs
    accelerate launch --multi_gpu --num_processes 8 -m fastgan.train --data photos/
See and measure
    fastgan report runs/photos
Use the generator
    fastgan sample runs/photos --seeds 0-63 --grid
Reproduce a paper or a course: R3GAN's cifar10, ffhq64, imagenet32, ...; mnist28 and faces128 of Keras courses
    fastgan train --preset mnist28

  new SRC          look at images and this machine: the command to train with, how fast, how long
  data ACTION      get a named data set, prepare any images, show what a data set has
  train            train a GAN on one process; on several: accelerate launch -m fastgan.train
  evaluate RUN     measure a run's images against the real ones
  metrics A B      measure any images against any others: folders, archives, sets, runs, statistics
  sample RUN       make images of chosen seeds
  walk RUN         walk from seed to seed, as a GIF or a video
  demo RUN         a page in the browser to play with a run's generator
  invert RUN ...   find the latents whose images are nearest to photos
  report RUN ...   one page of a run, or of several side by side: curves, metrics, pictures
  doctor [RUN]     what a run's log says of its health, and the remedy; without a run: check the installation
  plan             what a run would need on other GPUs, and how long it would take: --gpus 8 --gpu h100
  sweep gamma      three short runs at a quarter, once and four times gamma, and a table: takes train's options
  ema RUN          make averages of lengths chosen after a run with --ema-stds: --length 0.08
  import FILE RUN  make a run of published weights: R3GAN's snapshots, state dicts
  export RUN       write the generator for others: a folder with a model card, --to onnx, --to torch
  push RUN NAME    upload it, with its card, to the Hugging Face hub as OWNER/NAME

  --version        print the version"""

DATA_USAGE = """\
usage: fastgan data ACTION [options]     (fastgan data ACTION --help lists an action's options)

  get NAME           get a named data set: mnist, fashion-mnist, kaggle:OWNER/NAME
  prepare SRC DEST   make any images a data set to train on: --size 128
  info DEST          show what is in a prepared data set"""

VERBS = {  # where each one's work is: a function of its options, or of the words on the command line
    "new": "fastgan.commands.new:new",
    "train": "fastgan.commands.train:main",
    "plan": "fastgan.planning.plan:main",
    "sweep": "fastgan.commands.sweep:main",
    "doctor": "fastgan.commands.doctor:doctor",
    "evaluate": "fastgan.commands.evaluate:evaluate",
    "metrics": "fastgan.commands.metrics:metrics",
    "sample": "fastgan.commands.sample:sample",
    "walk": "fastgan.commands.walk:walk",
    "demo": "fastgan.commands.demo.serve:demo",
    "invert": "fastgan.commands.invert:invert",
    "report": "fastgan.commands.report.page:report",
    "ema": "fastgan.commands.ema:ema",
    "import": "fastgan.commands.import_run:main",
    "export": "fastgan.commands.export:export",
    "push": "fastgan.commands.push:push",
    "data": "fastgan.cli:data",
}
DATA_VERBS = {
    "get": "fastgan.commands.get:get",
    "prepare": "fastgan.data.preparation.prepare:prepare",
    "info": "fastgan.data.preparation.info:info",
}


def _do(place: str, args: Sequence[str], prog: str) -> int:
    """Do the work that is there; return the exit code."""
    work = pkgutil.resolve_name(place)
    kind = typing.get_type_hints(work).get("options")
    if kind is not None:
        from fastgan.utils.arguments import parse

        args = parse(kind, args, prog)
    code = work(args)
    return code if isinstance(code, int) else EXIT_DONE


def data(args: Sequence[str]) -> int:
    """Run the action of `fastgan data`; returns the exit code. Raises UserError."""
    if not args:
        raise UserError(f"fastgan data needs an action: {', '.join(DATA_VERBS)}")
    if args[0] in ("-h", "--help"):
        print(DATA_USAGE)
        raise SystemExit(EXIT_DONE)
    if args[0] not in DATA_VERBS:
        raise UserError(f"unknown action {args[0]!r}: choose from {', '.join(map(repr, DATA_VERBS))}")
    return _do(DATA_VERBS[args[0]], args[1:], f"fastgan data {args[0]}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code. A user's mistake is one line on standard error, and so is a stop."""
    die_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be one that the terminal can't show
    try:
        with stoppable():
            return _run(sys.argv[1:] if args is None else args)
    except UserError as error:
        print(f"fastgan: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Stopped as end:
        if os.environ.get("RANK", "0") == "0":
            print(f"fastgan: {end}: the same command goes on or starts again", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # who read our output, like `head`, has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER_ERROR
    except (OSError, MemoryError, RuntimeError) as error:  # outside the places that say more
        if (text := machine_error(error)) is None:
            raise
        print(f"fastgan: error: {text}", file=sys.stderr)
        return EXIT_USER_ERROR


def _run(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return EXIT_DONE
    if args[0] == "--version":
        print(f"fastgan {__version__}")
        return EXIT_DONE
    if args[0] not in VERBS:
        raise UserError(f"unknown verb {args[0]!r}: choose from {', '.join(VERBS)}")
    return _do(VERBS[args[0]], args[1:], f"fastgan {args[0]}")


if __name__ == "__main__":
    sys.exit(main())
