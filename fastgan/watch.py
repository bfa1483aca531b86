"""What happens around the steps of a run: rows, grids, evaluations, checkpoints, and the console."""

import contextlib
import time
from collections.abc import Iterator

import torch

from fastgan import curves
from fastgan.averages import Averages
from fastgan.board import Board, peak_memory_gib, read_rows
from fastgan.checkpoint import Checkpoints
from fastgan.data.images import ImageSource
from fastgan.distributed import Processes
from fastgan.errors import UserError
from fastgan.evaluate import Evaluator
from fastgan.metrics import extractors
from fastgan.metrics.fidelity import labels_for, latents
from fastgan.objectives import penalty_share
from fastgan.progress import EpochProgress, Progress, RunProgress
from fastgan.run_folder import RunFolder
from fastgan.trainer import Event, Trainer


class Watch:
    """Watches one trainer from where it stands now; the main process writes, the others only take part in means."""

    def __init__(self, trainer: Trainer, folder: RunFolder, source: ImageSource, processes: Processes) -> None:
        self.config, self.folder, self.processes = trainer.config, folder, processes
        self.checkpoints = Checkpoints(folder.checkpoints, self.config.run.keep_checkpoints)
        self.averages = Averages(folder.averages, self.config.optimizer.ema_stds)
        self.board = Board(folder, self.config, trainer.images_seen) if processes.is_main else None
        self.progress = _progress(trainer) if processes.is_main else None
        self.evaluator = self._evaluator(source)
        if processes.is_main:
            self.averages.remove_partial()
        self._aside_s = {"grid": 0.0, "evaluation": 0.0, "checkpoint": 0.0}
        self._last_log, self._last_time, self._last_wait = trainer.images_seen, time.monotonic(), 0.0
        self._done_at: dict[str, int] = {}
        self.begin_epoch(trainer)

    def _evaluator(self, source: ImageSource) -> Evaluator | None:
        """None where no evaluation is wanted or possible; why it isn't is said once."""
        if self.progress is None or self.config.run.eval_every == 0:
            return None
        try:
            name, weights = extractors.name_for(self.config), self.config.run.inception_weights
            extractor = extractors.load(name, self.processes.device, weights)
        except UserError as error:
            self.progress.say(f"training goes on without evaluation: {error}")
            return None
        return Evaluator(self.config, source, extractor, self.processes.device)

    def events(self, trainer: Trainer) -> list[Event]:
        """In their order: what a checkpoint follows on is never done again after a resume."""
        run, epoch = self.config.run, trainer.loader.num_images
        events = [
            Event(1, self.step),
            Event(run.log_every, self.log),
            Event(epoch, self.end_epoch),
            Event(run.grid_every or epoch, self.grid),
            Event(run.checkpoint_every or epoch, self.checkpoint),
            Event(epoch, self.begin_epoch),
        ]
        if self.averages.stds:
            events.insert(4, Event(run.ema_snapshot_every or epoch, self.average))
        if run.eval_every:
            events.insert(4, Event(run.eval_every, self.evaluate))
        return events

    def step(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.step(trainer.images_seen, trainer.epoch)

    def log(self, trainer: Trainer) -> None:
        """A row of means since the last row. Raises Diverged instead where they aren't finite."""
        trainer.check_finite()
        means = self.processes.mean(trainer.meter.read())
        if self.board is None or self.progress is None:
            return
        if (share := penalty_share(self.config, trainer.images_seen, means)) is not None:
            means["penalty/share"] = share
        now = time.monotonic()
        seconds = now - self._last_time - sum(self._aside_s.values())
        speed = {"speed/images_per_s": (trainer.images_seen - self._last_log) / seconds}
        speed["speed/input_wait"] = (trainer.input_wait_s - self._last_wait) / seconds  # share of training's time
        speed["speed/peak_memory_gib"] = peak_memory_gib(self.processes.device)
        speed |= {f"speed/{name}_s": spent for name, spent in self._aside_s.items()}
        self.board.log(trainer.images_seen, means)
        self.board.performance(trainer.images_seen, speed)
        self.progress.losses(trainer.images_seen, trainer.epoch, means["loss/G"], means["loss/D"])
        self._last_log, self._last_time, self._last_wait = trainer.images_seen, now, trainer.input_wait_s
        self._aside_s = dict.fromkeys(self._aside_s, 0.0)

    def begin_epoch(self, trainer: Trainer) -> None:
        if self.progress is not None and trainer.images_seen < trainer.total_images:
            self.progress.begin_epoch(trainer.images_seen)

    def end_epoch(self, trainer: Trainer) -> None:
        """The console shows the epoch's means; its last row ends with it. Raises Diverged as `log` does."""
        if self._is_done("epoch", trainer):
            return
        if trainer.meter.count:
            self.log(trainer)
        if self.progress is not None:
            self.progress.end_epoch(*curves.last_epoch(read_rows(self.folder.log), trainer.loader.num_images))

    @torch.inference_mode()
    def grid(self, trainer: Trainer) -> None:
        """G_ema's images of seeds 0, 1, 2 …, and of classes 0, 1, 2 … in turn if there are any."""
        if self.board is None or self._is_done("grid", trainer):
            return
        with self._aside("grid"):
            seeds = torch.arange(self.config.run.grid_side**2, device=self.processes.device)
            networks = self.config.networks
            images = trainer.ema.net(latents(seeds, networks.z_dim), labels_for(seeds, networks.num_classes))
            self.board.grid(trainer.images_seen, images)

    def evaluate(self, trainer: Trainer) -> None:
        if (
            self.board is None
            or self.progress is None
            or self.evaluator is None
            or self._is_done("evaluation", trainer)
        ):
            return
        with self._aside("evaluation"):
            metrics = self.evaluator(trainer.ema.net, self.config.run.eval_images)
        self.board.log(trainer.images_seen, {f"metrics/{name}": value for name, value in metrics.items()})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "_std_" not in name)
        self.progress.say(f"evaluation at {trainer.images_seen:,} images:  {shown}")

    def average(self, trainer: Trainer) -> None:
        """A snapshot of each power-function average. Raises Diverged as `checkpoint` does."""
        if not self.averages.stds or self._is_done("average", trainer):
            return
        trainer.check_finite()
        if self.board is not None:
            with self._aside("checkpoint"):
                self.averages.save(trainer.power.nets, trainer.images_seen)

    def checkpoint(self, trainer: Trainer) -> None:
        """Raises Diverged where there is nothing worth keeping, UserError where it can't be written."""
        if self._is_done("checkpoint", trainer):
            return
        trainer.check_finite()
        if self.board is not None:
            with self._aside("checkpoint"):
                self.checkpoints.save(*trainer.state())

    def finish(self, trainer: Trainer) -> None:
        """Training has come to its end: what is due then."""
        self.end_epoch(trainer)
        self.grid(trainer)
        self.evaluate(trainer)
        self.average(trainer)
        self.checkpoint(trainer)

    def close(self, trainer: Trainer) -> None:
        """Nothing more will happen; the GIF and the picture of the losses show all that has."""
        if self.progress is not None:
            self.progress.close()
        if self.board is not None:
            self.board.gif(trainer.images_seen)
            path, rows = self.folder.path / "losses.png", read_rows(self.folder.log)
            title = f"{self.config.preset}: losses"
            curves.save(path, rows, trainer.loader.num_images, title, self.config.objective.loss)
            self.board.close()

    def _is_done(self, what: str, trainer: Trainer) -> bool:
        """Whether it was done at this very place; from now on it was."""
        done = self._done_at.get(what) == trainer.images_seen
        self._done_at[what] = trainer.images_seen
        return done

    @contextlib.contextmanager
    def _aside(self, what: str) -> Iterator[None]:
        """The time of the block doesn't count as training."""
        began = time.monotonic()
        yield
        self._aside_s[what] += time.monotonic() - began


def _progress(trainer: Trainer) -> Progress:
    total, num_images = trainer.total_images, trainer.loader.num_images
    if trainer.config.run.console == "epochs":
        return EpochProgress(total, num_images, trainer.steps_to)
    return RunProgress(trainer.images_seen, total, -(-total // num_images))
