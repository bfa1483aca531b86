"""The part of a run's settings that changes nothing of what is learned; see `config`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgan.utils.fields import require, require_positive

ExtractorName = Literal["auto", "inception", "inception_clean", "efficientnet", "dinov2", "digits"]
MAX_TIMEOUT_S = 365 * 86_400.0
MAX_EVAL_IMAGES = 10**8


@dataclass(frozen=True)
class RunConfig:
    """Where to, how long, how often. None of it changes what is learned, so a resumed run may change all of it."""

    run_dir: Path | None = None
    """The run folder; without it runs/PRESET, or runs/NAME of the folder of images where no preset is named. The same
    folder again resumes."""
    epochs: float = 50.0
    """How many passes over the data set."""
    images: int | None = None
    """How many images to train on, instead of epochs."""
    minutes: float | None = None
    """Stop this session after so many minutes, with a checkpoint; the same command resumes from it."""
    data_changed: Literal["refuse", "ok"] = "refuse"
    """refuse: a run doesn't resume on other images than its last session's. ok: it does, unless its classes differ."""
    loader: Literal["auto", "in_memory", "dali", "torch"] = "auto"
    """in_memory: decoded once, kept as bytes on the training device; dali, torch: decoded ahead, batch by batch."""
    in_memory_gib: float = 4.0
    """The most memory that `auto` gives to a data set in memory."""
    workers: int | None = None
    """Processes (torch; 0: the training process) or threads (dali) that decode; without it, a process's threads."""
    engine: Literal["auto", "ddp", "zero1", "zero2", "zero3"] = "auto"
    """With several processes. ddp: each holds everything. DeepSpeed's zero1 divides the optimizers' states among them,
    zero2 gradients, too, zero3 weights, too. auto: what Accelerate's configuration asks for, else ddp."""
    offload: bool = False
    """True: zero1 to zero3 keep the optimizers' states in the CPU's memory."""
    micro_batch: int | Literal["auto"] | None = None
    """Images that a process takes through the networks at a time; auto: as many as its GPU's memory holds; without it,
    its whole share. It changes no result. Where memory runs out it is halved."""
    activation_checkpointing: bool = False
    """True: r3gan's blocks keep their inputs alone and compute the rest again: less memory, more time, same results."""
    tf32: bool = True
    """False: GPUs compute float32 convolutions in float32, not in TF32; matrix products they do so anyway."""
    compile: Literal["auto", "off", "on"] = "auto"
    """on: torch.compile makes one graph of each player's step, which takes a minute or more at first. auto: on GPUs,
    where ten minutes are left to train and a trial shows that it is faster. It changes no result but for rounding."""
    cuda_graphs: Literal["auto", "off", "on"] = "auto"
    """on: each kind of step, compiled or not, is recorded as one CUDA graph and replayed. auto: on a single GPU, where
    a trial shows that it is faster. It changes no result but for rounding."""
    timeout_s: float = 300.0
    """With several processes: how long one may be out of reach, or stuck in a step, before the others end."""
    threads: int | None = None
    """CPU threads of a process; without it, the machine's cores divided by its processes."""
    console: Literal["run", "epochs"] = "run"
    """run: one bar for the whole run. epochs: a bar, the time and the mean losses of each epoch."""
    tracker: tuple[str, ...] = ()
    """Where to log beside TensorBoard: some of wandb, mlflow, aim, comet_ml, clearml, dvclive, swanlab, trackio."""
    tracker_project: str = "fastgan"
    """The trackers' project (mlflow: experiment); the run bears its folder's name."""
    log_every: int = 5_000
    """Images between two rows of scalars; an epoch's end has one, too."""
    grid_every: int | None = None
    """Images between two grids; without it, one an epoch."""
    grid_side: int = 4
    """Rows and columns of a grid."""
    histograms: bool = False
    """True: with each grid, histograms of the weights of G's average and D in TensorBoard."""
    health_every: int | None = None
    """Images between two rows of health/, which `fastgan doctor` reads; without it, as many as make them cost less
    than a hundredth of the time; 0: none."""
    checkpoint_every: int | None = None
    """Images between two checkpoints; without it, one an epoch."""
    keep_checkpoints: int = 3
    """How many of the last checkpoints to keep."""
    ema_snapshot_every: int | None = None
    """Images between two snapshots of each of ema_stds, all kept, as large as G; without it, one an epoch."""
    eval_every: int | None = None
    """Images between two evaluations; without it, at the end of training only; 0: none."""
    eval_images: int = 10_000
    """Generated images in the evaluation at the end; real ones: all that the data set has."""
    eval_curve_images: int = 2_000
    """Generated images in each evaluation before, at most eval_images, and of a tenth of the subsets for
    kernel distances; modes are counted in eval_images always."""
    best_by: str | None = None
    """A metric by which the best checkpoint of all evaluations is kept, in best/: fd_digits, say."""
    patience: int | None = None
    """Stop after so many evaluations in a row none of which is the best by best_by."""
    extractor: ExtractorName = "auto"
    """Features that evaluation compares; auto: digits for gray 28x28 images and stacked-mnist, else inception where its
    weights are available, else efficientnet where it is installed."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    profile: bool = False
    """True: some early steps are recorded, in profile/ for Perfetto or TensorBoard, and the ten largest costs shown."""
    dry_run: bool = False
    """Print the plan and end."""

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "log_every", "grid_side", "in_memory_gib", "keep_checkpoints")
        require_positive(self, "eval_images", "eval_curve_images", at_most=MAX_EVAL_IMAGES)
        require_positive(self, "timeout_s", at_most=MAX_TIMEOUT_S)
        micro = self.micro_batch
        require(self, "micro_batch", micro in (None, "auto") or int(micro) > 0, "give a number above 0, or auto")
        every = ("grid_every", "checkpoint_every", "ema_snapshot_every")
        for name in ("images", "minutes", "threads", "patience", *every):
            if getattr(self, name) is not None:
                require_positive(self, name)
        wanted = "it counts evaluations without a better metric: give --best-by and --eval-every, too, or leave it out"
        require(self, "patience", self.patience is None or bool(self.best_by and self.eval_every), wanted)
        require(self, "workers", (self.workers or 0) >= 0, "give a whole number, 0 or more")
        for name in ("eval_every", "health_every"):
            require(self, name, (getattr(self, name) or 0) >= 0, "give a number of images, 0 or more")
