"""`accelerate launch fastgan/train.py`, or `-m fastgan.train`: trains as commands/train.py says."""

import sys

try:
    from fastgan.commands.train import main
except ModuleNotFoundError as error:  # a fresh clone, say
    print(f"train.py: error: {error.name} isn't installed: run `pip install -e .` in fastgan's folder", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
