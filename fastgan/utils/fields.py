"""Fields of dataclasses: checks, all of them by their own names, and back from what JSON knows."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

from fastgan.errors import UserError


def flat(section: Any) -> dict[str, Any]:
    """Return a config's fields, those of its sections too, by their own names: no two sections share one."""
    leaves: dict[str, Any] = {}
    for part in dataclasses.fields(section):
        value = getattr(section, part.name)
        leaves.update(flat(value) if dataclasses.is_dataclass(value) else {part.name: value})
    return leaves


def from_plain(kind: Any, value: Any) -> Any:
    """Return `value`, made of what JSON knows, as the type `kind`. Raises UserError for a field that it lacks."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        kinds = typing.get_type_hints(kind)
        if unknown := set(value) - set(kinds):
            raise UserError(f"config: unknown fields {', '.join(sorted(unknown))}: was it made by a newer fastgan?")
        return kind(**{name: from_plain(kinds[name], value[name]) for name in value})
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (kind, *typing.get_args(kind)) else value


def require(section: object, name: str, right: bool, wanted: str) -> None:
    """Raise UserError that names the section's field, its value and what is wanted, unless it is right."""
    if not right:
        raise UserError(f"{name} is {getattr(section, name)!r}: {wanted}")


def require_positive(section: object, *names: str) -> None:
    """Raise UserError for the first of the fields that isn't a finite number above 0."""
    for name in names:
        require(section, name, 0 < getattr(section, name) < math.inf, "give a number above 0")
