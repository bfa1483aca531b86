"""The whole of a run's settings as frozen dataclasses. Imports no torch, so that the command line answers at once.

Each field is a flag of the same name on the command line. A field's comment string is that flag's help.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastgan.run_config import RunConfig
from fastgan.utils.fields import MAX_INT, flat, from_plain, require, require_positive
from fastgan.utils.tone_options import parse_background, parse_range

MAX_SEED = MAX_INT
MIN_EMA_STD, MAX_EMA_STD = 0.001, 0.25  # the plain mean of all weights since the start has 0.289
MAX_BLOCKS = 1_000
FORMER_FIELDS = {"share_fakes": "reuse_fakes", "resident_gib": "in_memory_gib"}  # of 0.1's config.json
FORMER_LOADERS = {"resident": "in_memory"}
BATCH_NORM_IN_D = ("dcgan128",)  # the networks whose D couples the images of a batch


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are dealt out."""

    data: str = "mnist"
    """A named data set (mnist, fashion-mnist, toy, stacked-mnist), a folder of images, or a prepared one."""
    image_size: tuple[int, int] = (28, 28)
    """Height and width in pixels."""
    channels: int = 1
    """1 for gray, 3 for RGB, 4 for RGB and transparency."""
    batch_size: int = 256
    """Images a step, all processes together."""
    keep_partial_batch: bool = True
    """True: an epoch ends with a smaller batch. False: batches run on across the end of an epoch."""
    mirror: bool = False
    """True: each image is mirrored left to right with probability 0.5."""
    labels: str = "auto"
    """What the labels of a folder of images are: a CSV or JSON file of file names and labels; none; auto: dataset.json
    or class folders."""
    label_column: str | None = None
    """The column of a CSV file's labels, by name or, without names, by number; of a vector several: a,b,c."""
    file_column: str | None = None
    """The column of a CSV file's file names."""
    background: str = "auto"
    """What a folder's transparent images lie on: white, black, #RRGGBB; auto: what keeps the pictures visible."""
    range: str = "auto"
    """LOW:HIGH, which numbers in a folder's files are black and white; full: the least and the most that such files
    hold; auto: full, or, of files of more than 8 bits, what the set's numbers take up."""

    def __post_init__(self) -> None:
        require(self, "data", bool(self.data), "name a data set")
        require(self, "image_size", min(self.image_size) > 0, "give height and width above 0")
        require_positive(self, "channels", "batch_size")
        parse_background(self.background)
        parse_range(self.range)


@dataclass(frozen=True)
class NetworkConfig:
    """The two networks."""

    network: str = "dcgan28"
    """The family of G and D: r3gan, dcgan, or the reports' dcgan28 and dcgan128."""
    z_dim: int = 100
    """Length of the latent vector z."""
    width: float = 1.0
    """Multiplies the channels of every hidden layer."""
    d_width: float = 1.0
    """dcgan: multiplies D's channels once more."""
    stages: tuple[int, ...] = ()
    """r3gan, dcgan: channels of each stage, from the lowest resolution up."""
    smooth_image: bool = False
    """dcgan: G's image passes the filter [1, 2, 1] / 4 along both axes, through which a checkerboard doesn't."""
    blocks: int = 2
    """r3gan: residual blocks a stage."""
    expansion: int = 2
    """r3gan: how many times wider a block is inside."""
    group_width: int = 16
    """r3gan: channels of a group of the 3x3 convolutions; 0: one group, which CPUs compute best."""
    stem: Literal[1, 2, 4] = 1
    """r3gan: stride of the one convolution between the pixels and the stages; above 1 for CPUs."""
    num_classes: int = 0
    """r3gan, dcgan: classes that G and D are told of each image, as the data set labels them; 0: none."""
    condition: Literal["class", "vector"] = "class"
    """What they are told: a class, or a vector of attributes."""
    vector_dim: int = 0
    """With --condition vector: how many numbers an image has."""
    spectral_norm: bool = False
    """True: each linear layer and convolution of D is divided by its largest singular value."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What convolutions compute in (but float32: r3gan only); weights, losses and penalties stay float32. float16, for
    GPUs without bfloat16, overflows sooner: each player's loss is scaled, and steps that overflow are left out."""
    float32_stages: int = 1
    """r3gan in another precision: how many stages, from the lowest resolution up, compute in float32 all the same."""

    def __post_init__(self) -> None:
        require_positive(self, "z_dim", "width", "d_width", "expansion")
        require_positive(self, "blocks", at_most=MAX_BLOCKS)
        require(self, "group_width", self.group_width >= 0, "give a number of channels, 0 for one group")
        for channels in self.stages:
            require(self, "stages", channels > 0, "give numbers of channels above 0")
        require(self, "num_classes", self.num_classes >= 0, "give a number of classes, 0 for none")
        self._check_condition()
        require(self, "float32_stages", self.float32_stages >= 0, "give a number of stages, 0 or more")

    def _check_condition(self) -> None:
        is_vector = self.condition == "vector"
        require(self, "vector_dim", self.vector_dim >= 0, "give a number of numbers")
        wanted = "networks are told classes or vectors: give --num-classes 0, or --condition class"
        require(self, "num_classes", not (is_vector and self.num_classes), wanted)
        require(self, "vector_dim", is_vector or not self.vector_dim, "it goes with --condition vector")

    @property
    def is_conditional(self) -> bool:
        """Whether G and D are told anything of an image."""
        return self.condition == "vector" or self.num_classes > 0

    @property
    def condition_width(self) -> int:
        """Numbers that tell it, as `layers.encode_condition` makes them; 0 for none."""
        return self.vector_dim + 1 if self.condition == "vector" else self.num_classes


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the two players descend."""

    loss: Literal["nonsaturating", "relativistic", "hinge", "least-squares", "wasserstein"] = "nonsaturating"
    """The adversarial loss."""
    label_smoothing: float = 0.0
    """nonsaturating: how much less than 1 the confidence is that D is to have in reals."""
    penalty: Literal["none", "r1", "r1+r2", "wgan-gp"] = "none"
    """Gradient penalty of D, on every image: r1 on reals, r2 on fakes, wgan-gp on mixes of both."""
    gamma: float | None = None
    """The penalty's weight; without it 0.0002 * pixels / batch size, for wgan-gp 10."""
    gamma_end: float | None = None
    """Where the weight arrives after burn_in; without it, it stays."""
    penalty_form: Literal["exact", "finite-difference"] = "exact"
    """exact: by double backpropagation. finite-difference: of logits at a small distance, r1 and r2 only."""
    penalty_every: int = 1
    """Steps between two penalties (lazy regularization), which then weigh so many times more."""
    logit_centring: float = 0.0
    """Weight of (D(x) + D(G(z)))^2, which holds the relativistic loss's logits around 0."""
    augment: Literal["none", "ada", "ada-upright", "diffaugment", "r3gan"] = "none"
    """What D sees of reals and fakes alike; ada-upright turns and mirrors nothing, for digits and letters; r3gan is
    ada with half as much of its colours, and cutout."""
    augment_p: float = 0.0
    """Probability of each of its operations, reached after burn_in; where it adapts itself, at the start."""
    augment_target: float | None = None
    """Let augment_p adapt itself so that this share more of the reals than not looks real to D (ADA: 0.6)."""
    augment_pairs: bool = True
    """True: the real and the fake of a pair get the same changes. False: each gets its own."""
    reuse_reals: bool = True
    """relativistic: True: G's phase compares with the reals that D just saw. False: with reals of its own, as R3GAN's
    program does, drawn from an order of their own."""
    reuse_fakes: bool = False
    """True: one pass of G serves both players' phases. False: each phase draws its own latents."""

    def __post_init__(self) -> None:
        smoothing, p = self.label_smoothing, self.augment_p
        require(self, "label_smoothing", 0 <= smoothing < 0.5, "give a number from 0 up to, not with, 0.5")
        require(
            self,
            "label_smoothing",
            not smoothing or self.loss == "nonsaturating",
            f"the loss {self.loss} has no labels: give 0 or --loss nonsaturating",
        )
        for name in ("gamma", "gamma_end", "logit_centring"):
            value = getattr(self, name)
            require(self, name, value is None or 0 <= value < math.inf, "give a number of 0 or more")
        require(self, "augment_p", 0 <= p <= 1, "give a probability")
        require(
            self, "augment_p", p == 0 or self.augment != "none", "no augmentation is chosen: give --augment ada, or 0"
        )
        require(
            self,
            "augment_target",
            self.augment_target is None or self.augment != "none",
            "no augmentation is chosen: give --augment ada",
        )
        require(
            self,
            "penalty_form",
            self.penalty_form == "exact" or self.penalty in ("r1", "r1+r2"),
            f"it is for the penalties r1 and r1+r2, not {self.penalty}: give exact",
        )
        self._refuse_idle_reals()
        self._refuse_what_fails()

    def _refuse_idle_reals(self) -> None:
        """Refuse reals for G that it doesn't look at, or whose classes its fakes can't have."""
        require(
            self,
            "reuse_reals",
            self.reuse_reals or self.loss == "relativistic",
            f"under the loss {self.loss} G sees no reals: give --reuse-reals or --loss relativistic",
        )
        require(
            self,
            "reuse_reals",
            self.reuse_reals or not self.reuse_fakes,
            "fakes that serve both phases go with reals that do: give --reuse-reals or --no-reuse-fakes",
        )

    def _refuse_what_fails(self) -> None:
        require_positive(self, "penalty_every")
        require(
            self,
            "penalty_every",
            self.penalty_every == 1 or self.loss != "relativistic",
            "lazy penalties make the relativistic loss unstable (R3GAN, appendix): give 1",
        )
        require(
            self,
            "penalty",
            self.loss != "relativistic" or self.penalty in ("r1+r2", "none"),
            "the relativistic loss diverges with r1 alone (R3GAN, table 1): give r1+r2",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How they descend it."""

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """What turns gradients into steps, for both players."""
    g_lr: float = 1e-4
    """Learning rate of G."""
    d_lr: float = 1e-4
    """Learning rate of D."""
    g_lr_end: float | None = None
    """Where G's arrives after burn_in; without it, it stays."""
    d_lr_end: float | None = None
    """Where D's arrives after burn_in; without it, it stays."""
    lr_decay: float = 0.0
    """Keras's legacy decay of both learning rates: lr / (1 + decay * steps taken)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two betas."""
    beta2_end: float | None = None
    """Where Adam's second beta arrives after burn_in; without it, it stays."""
    eps: float = 1e-8
    """Adam's or RMSprop's epsilon."""
    rho: float = 0.9
    """RMSprop's share of the past in its mean of squared gradients."""
    burn_in: int = 0
    """Images over which gamma, learning rates, beta2, half-lives and augment_p go along a cosine to where they stay."""
    ema_half_lives: tuple[float, ...] = ()
    """Half-lives of G's weights in its averages, in images; the first one's images are shown; none: G's own are."""
    ema_ramp: float = 0.05
    """Early on a half-life is at most this share of the images seen."""
    ema_stds: tuple[float, ...] = ()
    """Widths of power-function averages (EDM2), shares of training up to 0.25: `fastgan ema` makes any other of two."""

    @property
    def ema_names(self) -> list[str]:
        """The averages of half-lives as a checkpoint names them: one at least."""
        return [f"G_ema{number or ''}" for number in range(max(1, len(self.ema_half_lives)))]

    @property
    def power_names(self) -> list[str]:
        """The power-function averages as a checkpoint names them."""
        return [f"G_power{number}" for number in range(len(self.ema_stds))]

    def __post_init__(self) -> None:
        require_positive(self, "g_lr", "d_lr", "eps", "ema_ramp")
        for beta in self.betas:
            require(self, "betas", 0 <= beta < 1, "give two numbers from 0 up to, not with, 1")
        end = self.beta2_end
        require(self, "beta2_end", end is None or 0 <= end < 1, "give a number from 0 up to, not with, 1")
        require(self, "rho", 0 <= self.rho < 1, "give a number from 0 up to, not with, 1")
        for name in ("lr_decay", "g_lr_end", "d_lr_end", "burn_in"):
            value = getattr(self, name)
            require(self, name, value is None or 0 <= value < math.inf, "give a number of 0 or more")
        for half_life in self.ema_half_lives:
            require(self, "ema_half_lives", 0 < half_life < math.inf, "give numbers of images above 0")
        for std in self.ema_stds:
            wanted = f"give numbers from {MIN_EMA_STD} to {MAX_EMA_STD}"
            require(self, "ema_stds", MIN_EMA_STD <= std <= MAX_EMA_STD, wanted)
        different = len(set(self.ema_stds)) == len(self.ema_stds)
        require(self, "ema_stds", different, "give each once")


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    preset: str = "mnist28"
    """The recipe that all other fields start from. Without it the one that suits the images of --data, which is told;
    without those mnist28-fast."""
    seed: int = 0
    """Every random choice is a function of this and of the images seen."""
    transfer: Path | None = None
    """Another run's folder: G and D start from its newest weights, where names and shapes agree."""
    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(self, "seed", 0 <= self.seed <= MAX_SEED, f"give a whole number from 0 to {MAX_SEED}")
        network, penalty = self.networks.network, self.objective.penalty
        require(
            self.objective,
            "penalty",
            penalty == "none" or network not in BATCH_NORM_IN_D,
            f"D of {network} has BatchNorm, under which no image has a gradient of its own (WGAN-GP, section 4): "
            "give --penalty none or --network r3gan",
        )
        require(
            self.run,
            "micro_batch",
            self.run.micro_batch is None or network not in BATCH_NORM_IN_D,
            f"D of {network} has BatchNorm, whose statistics are those of the whole batch: leave it out",
        )
        precision, form = self.networks.precision, self.objective.penalty_form
        require(
            self.objective,
            "penalty_form",
            precision == "float32" or form == "exact",
            f"logits in {precision} are too coarse for differences: give exact, or --precision float32",
        )

    @property
    def run_dir(self) -> Path:
        return self.run.run_dir or Path("runs") / self.preset

    def total_images(self, num_images: int) -> int:
        """Return how many images the whole run takes on a data set of `num_images`."""
        wanted = f"the {num_images:,} images so often are more than 64 bits count: give fewer"
        require(self.run, "epochs", self.run.epochs * num_images < MAX_INT, wanted)
        return self.run.images or math.ceil(self.run.epochs * num_images)

    def to_json(self) -> str:
        """Return the config as text from which `from_json` makes an equal config."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @staticmethod
    def from_json(text: str) -> "Config":
        """Return the config that `to_json` wrote. Raises UserError on fields that this version doesn't know."""
        config: Config = from_plain(Config, _upgrade(json.loads(text)))
        return config

    def differences(self, other: "Config") -> list[str]:
        """Return `field: mine, the other's` for every field that decides what is learned and isn't equal."""
        mine, others = (flat(dataclasses.replace(config, run=RunConfig())) for config in (self, other))
        return [f"{name}: {mine[name]}, not {others[name]}" for name in mine if mine[name] != others[name]]


def _upgrade(plain: dict[str, Any]) -> dict[str, Any]:
    """Return an earlier version's config.json in today's words."""
    new = {
        section: {FORMER_FIELDS.get(name, name): value for name, value in fields.items()}
        if isinstance(fields, dict)
        else fields
        for section, fields in plain.items()
    }
    if isinstance(new.get("data"), dict):
        new["data"] = {"background": "black", "range": "full"} | new["data"]
    run = new.get("run", {})
    if isinstance(run.get("cuda_graphs"), bool):
        run["cuda_graphs"] = "on" if run["cuda_graphs"] else "auto"
    if run.get("loader") in FORMER_LOADERS:
        run["loader"] = FORMER_LOADERS[run["loader"]]
    return new
