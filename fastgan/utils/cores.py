"""How many things a machine does at once."""

import os
import sys

from fastgan.errors import UserError


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def require_startable(name: str, value: int | None) -> None:
    """Raise UserError where so many threads or processes would only bring the machine to a stand."""
    cores = num_cores()
    most = max(64, 4 * cores)
    if value is not None and not 1 <= value <= most:
        raise UserError(f"{name} is {value}: give 1 to {most}, as there are {cores} cores")
