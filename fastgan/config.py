"""The whole of a run's settings as frozen dataclasses. Imports no torch, so that the command line answers at once.

Each field is a flag of the same name on the command line. A field's comment string is that flag's help.
"""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastgan.errors import UserError

MAX_SEED = 2**63 - 1


def _require(right: bool, name: str, value: object, wanted: str) -> None:
    if not right:
        raise UserError(f"{name} is {value!r}: {wanted}")


def _require_positive(section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _require(value > 0 and math.isfinite(value), name, value, "give a number above 0")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are dealt out."""

    data: str = "mnist"
    """A named data set (mnist, fashion-mnist, toy), a folder of images, or a folder that `data prepare` made."""
    image_size: tuple[int, int] = (28, 28)
    """Height and width in pixels."""
    channels: int = 1
    """1 for gray, 3 for RGB."""
    batch_size: int = 256
    """Images a step, all processes together."""
    keep_partial_batch: bool = True
    """True: an epoch ends with a smaller batch. False: batches run on across the end of an epoch."""
    mirror: bool = False
    """True: each image is mirrored left to right with probability 0.5."""

    def __post_init__(self) -> None:
        _require(bool(self.data), "data", self.data, "name a data set")
        _require(min(self.image_size) > 0, "image_size", self.image_size, "give height and width above 0")
        _require_positive(self, "channels", "batch_size")


@dataclass(frozen=True)
class NetworkConfig:
    """The two networks."""

    network: str = "dcgan28"
    """The family of G and D: dcgan28 or dcgan128."""
    z_dim: int = 100
    """Length of the latent vector z."""
    width: float = 1.0
    """Multiplies the channels of every hidden layer."""

    def __post_init__(self) -> None:
        _require_positive(self, "z_dim", "width")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the two players descend."""

    loss: str = "nonsaturating"
    """The adversarial loss."""
    share_fakes: bool = False
    """True: one pass of G serves both players' phases. False: each phase draws its own latents."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How they descend it."""

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """What turns gradients into steps, for both players."""
    g_lr: float = 1e-4
    """Learning rate of G."""
    d_lr: float = 1e-4
    """Learning rate of D."""
    lr_decay: float = 0.0
    """Keras's legacy decay of both learning rates: lr / (1 + decay * steps taken)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two betas."""
    eps: float = 1e-8
    """Adam's or RMSprop's epsilon."""
    rho: float = 0.9
    """RMSprop's share of the past in its mean of squared gradients."""
    ema_half_life: float = 0.0
    """Half-life of G's weights in G_ema, in images; 0: G_ema is G itself."""
    ema_ramp: float = 0.05
    """Early on the half-life is at most this share of the images seen."""

    def __post_init__(self) -> None:
        _require_positive(self, "g_lr", "d_lr", "eps")
        for beta in self.betas:
            _require(0 <= beta < 1, "betas", self.betas, "give two numbers from 0 up to, not with, 1")
        _require(0 <= self.rho < 1, "rho", self.rho, "give a number from 0 up to, not with, 1")
        decay = self.lr_decay
        _require(decay >= 0 and math.isfinite(decay), "lr_decay", decay, "give a number of 0 or more")
        _require(self.ema_half_life >= 0, "ema_half_life", self.ema_half_life, "give a number of images, 0 or more")
        _require(self.ema_ramp > 0, "ema_ramp", self.ema_ramp, "give a number above 0")


@dataclass(frozen=True)
class RunConfig:
    """Where to, how long, how often. None of it changes what is learned, so a resumed run may change all of it."""

    run_dir: Path | None = None
    """The run folder; without it runs/PRESET. The same folder again resumes."""
    epochs: float = 50.0
    """How many passes over the data set."""
    images: int | None = None
    """How many images to train on, instead of epochs."""
    minutes: float | None = None
    """Stop this session after so many minutes, with a checkpoint; the same command goes on from it."""
    loader: Literal["auto", "resident", "dali", "torch"] = "auto"
    """resident: decoded once, kept as bytes on the training device; dali, torch: decoded ahead, batch by batch."""
    resident_gib: float = 4.0
    """The most memory that `auto` gives to a resident data set."""
    workers: int | None = None
    """Processes (torch; 0: the training process) or threads (dali) that decode; without it, a process's threads."""
    threads: int | None = None
    """CPU threads of a process; without it, the machine's cores divided by its processes."""
    console: Literal["run", "epochs"] = "run"
    """run: one bar for the whole run. epochs: a bar, the time and the mean losses of each epoch."""
    log_every: int = 5_000
    """Images between two rows of scalars; an epoch's end has one, too."""
    grid_every: int | None = None
    """Images between two grids; without it, one an epoch."""
    grid_side: int = 4
    """Rows and columns of a grid."""
    checkpoint_every: int | None = None
    """Images between two checkpoints; without it, one an epoch."""
    keep_checkpoints: int = 3
    """How many of the last checkpoints to keep."""
    eval_every: int | None = None
    """Images between two evaluations; without it, at the end of training only; 0: none."""
    eval_images: int = 10_000
    """Generated images in an evaluation; real ones: as many as the data set has, up to 50,000."""
    extractor: Literal["auto", "inception", "digits"] = "auto"
    """Features that evaluation compares; auto: digits for gray 28x28 images, else inception."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    dry_run: bool = False
    """Print the plan and end."""

    def __post_init__(self) -> None:
        _require_positive(self, "epochs", "log_every", "grid_side", "resident_gib", "keep_checkpoints", "eval_images")
        for name in ("images", "minutes", "threads", "grid_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        _require((self.workers or 0) >= 0, "workers", self.workers, "give a whole number, 0 or more")
        _require((self.eval_every or 0) >= 0, "eval_every", self.eval_every, "give a number of images, 0 or more")


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    preset: str = "mnist28"
    """The recipe that all other fields start from."""
    seed: int = 0
    """Every random choice is a function of this and of the images seen."""
    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"give a whole number from 0 to {MAX_SEED}")

    @property
    def run_dir(self) -> Path:
        return self.run.run_dir or Path("runs") / self.preset

    def total_images(self, num_images: int) -> int:
        """Images of the whole run on a data set of `num_images`: the step that reaches them is the last."""
        return self.run.images or math.ceil(self.run.epochs * num_images)

    def to_json(self) -> str:
        """The config as text from which `from_json` makes an equal config."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @staticmethod
    def from_json(text: str) -> "Config":
        """The config that `to_json` wrote. Raises UserError on fields that this version doesn't know."""
        config: Config = _from_plain(Config, json.loads(text))
        return config

    def differences(self, other: "Config") -> list[str]:
        """`field: mine, the other's` for every field that decides what is learned and isn't equal."""
        mine, others = (flat(dataclasses.replace(config, run=RunConfig())) for config in (self, other))
        return [f"{name}: {mine[name]}, not {others[name]}" for name in mine if mine[name] != others[name]]


def flat(section: Any) -> dict[str, Any]:
    """A config's fields, those of its sections too, by their own names: no two sections share one."""
    leaves: dict[str, Any] = {}
    for part in dataclasses.fields(section):
        value = getattr(section, part.name)
        leaves.update(flat(value) if dataclasses.is_dataclass(value) else {part.name: value})
    return leaves


def _from_plain(kind: Any, value: Any) -> Any:
    """`value`, made of what JSON knows, as the type `kind`."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        kinds = typing.get_type_hints(kind)
        if unknown := set(value) - set(kinds):
            raise UserError(f"config: unknown fields {', '.join(sorted(unknown))}: was it made by a newer fastgan?")
        return kind(**{name: _from_plain(kinds[name], value[name]) for name in value})
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (kind, *typing.get_args(kind)) else value
