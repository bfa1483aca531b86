"""What goes wrong for a user's reason, and the exit codes that tell a scheduler what happened."""

EXIT_DONE = 0
EXIT_USER_ERROR = 2  # the command, the data or the disk must be fixed first
EXIT_DIVERGED = 3  # the losses are no longer finite: the same command would fail again
EXIT_LOST = 69  # another process is gone or stuck: the same command resumes from the last checkpoint
EXIT_STOPPED = 75  # stopped on request after a checkpoint: the same command resumes


class UserError(ValueError):
    """A mistake that the user can fix. Its text is one line: what is wrong, the value, the remedy."""


class Diverged(RuntimeError):
    """The losses or weights are no longer finite."""


class Lost(RuntimeError):
    """Another process of the run is gone or stuck; the text says which, and what to do."""


class Stopped(Exception):
    """Training ended early because somebody asked for it; a checkpoint was written."""


def first_line(error: BaseException) -> str:
    """Return what a library's error says, for a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def machine_error(error: Exception) -> str | None:
    """Say in one line what of the machine was lacking, a disk, a file or memory; None where it was something else."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    text = first_line(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return f"memory runs out ({text}): give fewer or smaller images, or smaller networks"
    return None
