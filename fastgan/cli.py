"""`fastgan VERB`: one verb, one module. Nothing heavy is imported before the verb is known."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastgan import __version__
from fastgan.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

USAGE = """\
usage: fastgan VERB [options]     (fastgan VERB --help lists a verb's options)

  data ACTION      get a named data set, prepare any images, show what a data set has
  train            train a GAN on one process; on several: accelerate launch fastgan/train.py
  evaluate RUN     measure a run's images against the real ones
  sample RUN       make images of chosen seeds
  walk RUN         walk from seed to seed, as a GIF or a video
  report RUN ...   one page of a run, or of several side by side: curves, metrics, pictures
  doctor [RUN]     what a run's log says of its health, and the remedy; without a run: check the installation
  plan             what a run would need on other GPUs, and how long it would take: --gpus 8 --gpu h100
  sweep gamma      three short runs at a quarter, once and four times gamma, and a table: takes train's options
  ema RUN          make averages of lengths chosen after a run with --ema-stds: --length 0.08
  import FILE RUN  make a run of published weights: R3GAN's snapshots, state dicts

  --version        print the version"""

DATA_USAGE = """\
usage: fastgan data ACTION [options]     (fastgan data ACTION --help lists an action's options)

  get NAME           get a named data set: mnist, fashion-mnist, kaggle:OWNER/NAME
  prepare SRC DEST   make any images a data set to train on: --size 128
  info DEST          show what is in a prepared data set"""


def _train(args: Sequence[str]) -> int:
    from fastgan import train

    return train.main(args)


def _plan(args: Sequence[str]) -> int:
    from fastgan.planning import plan

    return plan.main(args)


def _sweep(args: Sequence[str]) -> int:
    from fastgan.commands import sweep

    return sweep.main(args)


def _doctor(args: Sequence[str]) -> int:
    from fastgan.commands import doctor

    return doctor.main(args)


def _evaluate(args: Sequence[str]) -> int:
    from fastgan.commands.evaluate import EvaluateOptions, evaluate
    from fastgan.utils.arguments import parse

    evaluate(parse(EvaluateOptions, args, prog="fastgan evaluate"))
    return EXIT_DONE


def _sample(args: Sequence[str]) -> int:
    from fastgan.commands.sample import SampleOptions, sample
    from fastgan.utils.arguments import parse

    sample(parse(SampleOptions, args, prog="fastgan sample"))
    return EXIT_DONE


def _walk(args: Sequence[str]) -> int:
    from fastgan.commands.walk import WalkOptions, walk
    from fastgan.utils.arguments import parse

    walk(parse(WalkOptions, args, prog="fastgan walk"))
    return EXIT_DONE


def _report(args: Sequence[str]) -> int:
    from fastgan.commands.report.page import ReportOptions, report
    from fastgan.utils.arguments import parse

    report(parse(ReportOptions, args, prog="fastgan report"))
    return EXIT_DONE


def _ema(args: Sequence[str]) -> int:
    from fastgan.commands.ema import EmaOptions, ema
    from fastgan.utils.arguments import parse

    ema(parse(EmaOptions, args, prog="fastgan ema"))
    return EXIT_DONE


def _import(args: Sequence[str]) -> int:
    from fastgan.commands import import_run

    return import_run.main(args)


def _data(args: Sequence[str]) -> int:
    if not args:
        raise UserError(f"fastgan data needs an action: {', '.join(DATA_VERBS)}")
    if args[0] in ("-h", "--help"):
        print(DATA_USAGE)
        raise SystemExit(EXIT_DONE)
    if args[0] not in DATA_VERBS:
        raise UserError(f"unknown action {args[0]!r}: choose from {', '.join(map(repr, DATA_VERBS))}")
    return DATA_VERBS[args[0]](args[1:])


def _data_get(args: Sequence[str]) -> int:
    import tyro

    from fastgan.data import named
    from fastgan.data.preparation import kaggle
    from fastgan.utils.arguments import parse

    @dataclass(frozen=True)
    class GetOptions:
        """Get a named data set into the cache."""

        name: Annotated[str, tyro.conf.Positional]
        """mnist, fashion-mnist, or kaggle:OWNER/NAME."""

    name = parse(GetOptions, args, prog="fastgan data get").name
    folder = kaggle.get(name) if name.startswith(kaggle.PREFIX) else named.get(name)
    print(f"{name}: {folder or 'is drawn when it is used'}")
    return EXIT_DONE


def _data_prepare(args: Sequence[str]) -> int:
    from fastgan.data.preparation.prepare import PrepareOptions, prepare
    from fastgan.utils.arguments import parse

    prepare(parse(PrepareOptions, args, prog="fastgan data prepare"))
    return EXIT_DONE


def _data_info(args: Sequence[str]) -> int:
    from fastgan.data.preparation.info import InfoOptions, info
    from fastgan.utils.arguments import parse

    info(parse(InfoOptions, args, prog="fastgan data info"))
    return EXIT_DONE


DATA_VERBS = {"get": _data_get, "prepare": _data_prepare, "info": _data_info}
VERBS = {
    "train": _train,
    "plan": _plan,
    "sweep": _sweep,
    "doctor": _doctor,
    "evaluate": _evaluate,
    "sample": _sample,
    "walk": _walk,
    "report": _report,
    "ema": _ema,
    "import": _import,
    "data": _data,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code. A user's mistake is one line on standard error."""
    try:
        return _run(sys.argv[1:] if args is None else args)
    except UserError as error:
        print(f"fastgan: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # who read our output, like `head`, has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    return VERBS[args[0]](args[1:])


if __name__ == "__main__":
    sys.exit(main())
