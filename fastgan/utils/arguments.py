"""Dataclasses as command lines, by tyro; a mistake is one line that names the right words.

tyro has no public way to a mistake's text but the box that it prints: its hook, `on_parse_error`, is private, may
change in any release, and the oldest tyro that is supported has none.
"""

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from fastgan.errors import UserError
from fastgan.utils.fields import require_storable

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """Return an instance of the dataclass `kind`.

    `default`'s fields (else the class's), and over them the flags in `args`.

    `--help` prints the flags and ends the program. Raises UserError for unknown flags and wrong values.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            result, unknown = tyro.cli(
                kind,
                args=list(args),
                prog=prog,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise _refusal(end) or UserError(_first_paragraph(complaint.getvalue())) from None
    if unknown:
        raise UserError(_unknown(unknown[0], _flag_names(kind, prog, given)))
    require_storable(result)
    return result


def _refusal(end: BaseException | None) -> UserError | None:
    """The dataclass's own complaint, if that is why tyro ended the program."""
    while end is not None and not isinstance(end, UserError):
        end = end.__context__
    return end


def _first_paragraph(box: str) -> str:
    """What tyro's box says between its title and the next rule, as one line; without UTF-8 it is drawn with hyphens."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if line.startswith("╭") or (text and not text.strip("─-")):
            paragraphs.append([])
        elif text:
            paragraphs[-1].append(text)
    said: list[str] = next(filter(None, paragraphs[1:]), [])
    return " ".join(said) or "these options don't fit together: see --help"


def _flag_names(kind: Any, prog: str, given: dict[str, Any]) -> list[str]:
    """The flags of the help's left column: its descriptions name flags of other verbs, too."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog, config=(tyro.conf.OmitArgPrefixes,), **given)
    left = re.findall(r"^[│|]? {0,2}(--?[a-z].*?)(?:  |$)", shown.getvalue(), re.MULTILINE)
    return sorted({flag for text in left for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)})


def _unknown(word: str, flags: list[str]) -> str:
    near = difflib.get_close_matches(word.split("=", maxsplit=1)[0], flags, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown option {word!r}: {hint}The options are {', '.join(flags)}"
