"""The named data sets. Imports nothing, so that a command that only looks for a name starts at once."""

NUM_IMAGES = {"mnist": 60_000, "fashion-mnist": 60_000, "toy": 1000, "stacked-mnist": 1_000_000}  # train splits
NAMES = tuple(NUM_IMAGES)
