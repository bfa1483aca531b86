"""fastgan: from a folder of images to a one-step image generator.

The public API; docs/api.md shows it at work. Each name is imported when it is first used: `import fastgan` is fast.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgan import presets as presets
    from fastgan.api import evaluate, load, train
    from fastgan.config import Config
    from fastgan.errors import Diverged, Stopped, UserError
    from fastgan.evaluation.generator import Generator
    from fastgan.evaluation.sampling import CheckpointSelector
    from fastgan.presets import configure

__version__ = "0.1.0"
__all__ = [
    "CheckpointSelector",
    "Config",
    "Diverged",
    "Generator",
    "Stopped",
    "UserError",
    "configure",
    "evaluate",
    "load",
    "presets",
    "train",
]

_PLACES = {
    **{name: f"fastgan.api:{name}" for name in ("evaluate", "load", "train")},
    **{name: f"fastgan.errors:{name}" for name in ("Diverged", "Stopped", "UserError")},
    "CheckpointSelector": "fastgan.evaluation.sampling:CheckpointSelector",
    "Config": "fastgan.config:Config",
    "Generator": "fastgan.evaluation.generator:Generator",
    "configure": "fastgan.presets:configure",
    "presets": "fastgan.presets",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return pkgutil.resolve_name(_PLACES[name])
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
