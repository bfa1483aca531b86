"""Fields of dataclasses: checks, all of them by their own names, and back from what JSON knows."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

from fastgan.errors import UserError

MAX_INT = 2**63 - 1


def flat(section: Any) -> dict[str, Any]:
    """Return a config's fields, those of its sections too, by their own names: no two sections share one."""
    leaves: dict[str, Any] = {}
    for part in dataclasses.fields(section):
        value = getattr(section, part.name)
        leaves.update(flat(value) if dataclasses.is_dataclass(value) else {part.name: value})
    return leaves


def from_plain(kind: Any, value: Any) -> Any:
    """Return `value`, made of what JSON knows, as the type `kind`.

    Raises UserError for a field that it lacks, and TypeError for a value of another type.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        kinds = typing.get_type_hints(kind)
        if not isinstance(value, dict):
            raise TypeError(f"{kind.__name__} is {value!r}")
        if unknown := set(value) - set(kinds):
            raise UserError(f"config: unknown fields {', '.join(sorted(unknown))}: was it made by a newer fastgan?")
        for name, field in value.items():
            if not dataclasses.is_dataclass(kinds[name]) and not _fits(kinds[name], field):
                raise TypeError(f"{name} is {field!r}")
        return kind(**{name: from_plain(kinds[name], value[name]) for name in value})
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (kind, *typing.get_args(kind)) else value


def _fits(kind: Any, value: Any) -> bool:
    """Whether what JSON knows is of the type, or becomes it by `from_plain`."""
    parts = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Literal:
            return value in parts
        case typing.Union | types.UnionType:
            return any(_fits(part, value) for part in parts)
        case origin if origin is tuple:
            of_each = [parts[0]] * len(value) if parts[-1] is ... and isinstance(value, list) else parts
            return isinstance(value, list) and len(value) == len(of_each) and all(map(_fits, of_each, value))
    if isinstance(value, bool):
        return kind is bool
    plain: Any = {float: (int, float), Path: str}.get(kind, kind)
    return isinstance(value, plain)


def require(section: object, name: str, right: bool, wanted: str) -> None:
    """Raise UserError that names the section's field, its value and what is wanted, unless it is right."""
    if not right:
        raise UserError(f"{name} is {getattr(section, name)!r}: {wanted}")


def require_positive(section: object, *names: str, at_most: float = math.inf) -> None:
    """Raise UserError for the first of the fields that isn't a finite number above 0, at most `at_most`."""
    wanted = "give a number above 0" + ("" if at_most == math.inf else f", at most {at_most:,.0f}")
    for name in names:
        value = getattr(section, name)
        require(section, name, 0 < value < math.inf and value <= at_most, wanted)


def require_storable(section: Any) -> None:
    """Raise UserError for the first field that no tensor or file can hold: numbers beyond 64 bits, names with a NUL."""
    for name, value in flat(section).items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, int) and abs(part) > MAX_INT:
                raise UserError(f"{name} is {part}: give a whole number of at most {MAX_INT}")
            if isinstance(part, str | Path) and "\0" in str(part):
                raise UserError(f"{name} is {str(part)!r}: leave the NUL out")
