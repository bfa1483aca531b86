"""`accelerate launch fastgan/train.py`, or `-m fastgan.train`: trains as commands/train.py says."""

import sys

from fastgan.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
