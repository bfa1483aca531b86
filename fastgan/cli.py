"""`fastgan VERB`: one verb, one module. Nothing heavy is imported before the verb is known."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastgan import __version__
from fastgan.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

USAGE = """\
usage: fastgan VERB [options]     (fastgan VERB --help lists a verb's options)

  data get NAME    get a named data set: mnist, fashion-mnist
  train            train a GAN on one process; on several: accelerate launch fastgan/train.py
  evaluate RUN     measure a run's images against the real ones
  sample RUN       make images of chosen seeds

  --version        print the version"""


def _train(args: Sequence[str]) -> int:
    from fastgan import train

    return train.main(args)


def _evaluate(args: Sequence[str]) -> int:
    from fastgan.evaluate import EvaluateOptions, evaluate
    from fastgan.flags import parse

    evaluate(parse(EvaluateOptions, args, prog="fastgan evaluate"))
    return EXIT_DONE


def _sample(args: Sequence[str]) -> int:
    from fastgan.flags import parse
    from fastgan.sample import SampleOptions, sample

    sample(parse(SampleOptions, args, prog="fastgan sample"))
    return EXIT_DONE


def _data(args: Sequence[str]) -> int:
    import tyro

    from fastgan.data import sources
    from fastgan.flags import parse

    @dataclass(frozen=True)
    class DataOptions:
        """Get a named data set."""

        action: Annotated[Literal["get"], tyro.conf.Positional]
        """get: fetch it into the cache."""
        name: Annotated[str, tyro.conf.Positional]
        """mnist or fashion-mnist."""

    name = parse(DataOptions, args, prog="fastgan data").name
    folder = sources.get(name)
    print(f"{name}: {folder or 'is drawn when it is used'}")
    return EXIT_DONE


VERBS = {"train": _train, "evaluate": _evaluate, "sample": _sample, "data": _data}


def main(args: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code. A user's mistake is one line on standard error."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return EXIT_DONE
    if args[0] == "--version":
        print(f"fastgan {__version__}")
        return EXIT_DONE
    try:
        if args[0] not in VERBS:
            raise UserError(f"unknown verb {args[0]!r}: choose from {', '.join(VERBS)}")
        return VERBS[args[0]](args[1:])
    except UserError as error:
        print(f"fastgan: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
