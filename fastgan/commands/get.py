"""`fastgan data get NAME`: a named data set, in the cache."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastgan.data import named
from fastgan.data.preparation import kaggle


@dataclass(frozen=True)
class GetOptions:
    """Get a named data set into the cache."""

    name: Annotated[str, tyro.conf.Positional]
    """mnist, fashion-mnist, or kaggle:OWNER/NAME."""


def get(options: GetOptions) -> None:
    """Get the data set into the cache. Raises UserError where it can't be had."""
    name = options.name
    folder = kaggle.get(name) if name.startswith(kaggle.PREFIX) else named.get(name)
    print(f"{name}: {folder or 'is drawn when it is used'}")
