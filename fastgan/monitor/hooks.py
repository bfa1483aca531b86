"""What happens around the steps of a run: rows, grids, evaluations, checkpoints, and the console."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.data.images import ImageDataset
from fastgan.distributed.processes import Processes
from fastgan.errors import Diverged, Stopped, UserError
from fastgan.evaluation.evaluator import (
    CURVE,
    CURVE_KID_SUBSETS,
    Evaluator,
    best_of,
    check_metric,
    load_on_all,
    made_by,
)
from fastgan.evaluation.features import BATCH_SIZE
from fastgan.evaluation.fidelity import labels_for, latents
from fastgan.monitor import health, loss_plot
from fastgan.monitor.gallery import Gallery
from fastgan.monitor.progress import EpochProgress, Progress, RunProgress
from fastgan.monitor.tensorboard import RunLogger
from fastgan.runs.async_writer import AsyncWriter
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.ema_snapshots import EmaSnapshots
from fastgan.runs.rows import append_row, read_rows
from fastgan.runs.run_folder import RunFolder
from fastgan.training.objectives import penalty_ratio
from fastgan.training.trainer import Hook, Trainer
from fastgan.utils.memory import InParts, peak_memory_gib


class Hooks:
    """Watches one trainer from where it stands now; the main process writes, the others only take part in means."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        source: ImageDataset,
        processes: Processes,
        saved: Callable[[int], None] = lambda images_seen: None,
    ) -> None:
        self.saved = saved
        self.config, self.folder, self.processes = trainer.config, folder, processes
        self.checkpoints = Checkpoints(folder.checkpoints, self.config.run.keep_checkpoints)
        self.averages = EmaSnapshots(folder.averages, self.config.optimizer.ema_stds)
        self.board = RunLogger(folder, self.config, trainer.images_seen) if processes.is_main else None
        self.gallery = Gallery(self.board, self.config, source, processes.device) if self.board else None
        self.progress = _progress(trainer) if processes.is_main else None
        self.writer = AsyncWriter() if processes.is_main else None
        self._began = time.monotonic()
        self.evaluator = self._evaluator(source)
        self.measure_health = health.Health(self.config, source, processes.device)
        if processes.is_main:
            self.averages.remove_partial()
        self._aside_s = {"grid": 0.0, "evaluation": 0.0, "checkpoint": 0.0, "health": 0.0}  # since the last row
        self._total_s = dict(self._aside_s)  # since the session began
        self._pause_ms: dict[str, float] = {}  # what the last of each kind cost, until a row shows it
        self._last_log, self._last_time, self._last_wait = trainer.images_seen, time.monotonic(), 0.0
        self._done_at: dict[str, int] = {}
        self._finite_at: int | None = None
        self._taken_part: int | None = None  # in which checkpoint last
        self.begin_epoch(trainer)

    def _evaluator(self, source: ImageDataset) -> Evaluator | None:
        """None, on all processes, where no evaluation is wanted or one of them can't; why it can't is said once.

        Raises UserError where `best_by` is none of the metrics.
        """
        if self.config.run.eval_every == 0:
            return None
        evaluator = load_on_all(self.config, source, self.processes, self.say)
        check_metric(self.config.run.best_by, evaluator)
        for remark in [] if evaluator is None else evaluator.warnings(self.config.run.eval_images):
            self.say(remark)
        return evaluator

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.say(text)

    def hooks(self, trainer: Trainer) -> list[Hook]:
        """In their order: what a checkpoint follows on is never done again after a resume."""
        run, epoch = self.config.run, trainer.loader.num_images
        events = [
            Hook(1, self.step),
            Hook(run.log_every, self.log),
            Hook(epoch, self.end_epoch),
            Hook(run.grid_every or epoch, self.grid),
            Hook(run.checkpoint_every or epoch, self.checkpoint),
            Hook(epoch, self.begin_epoch),
        ]
        if self.averages.stds:
            events.insert(4, Hook(run.ema_snapshot_every or epoch, self.average))
        if run.eval_every:
            events.insert(4, Hook(run.eval_every, self.evaluate))
        if run.health_every is None:
            events[4:4] = [Hook(health.EARLY_EVERY, self.early_health), Hook(health.EVERY, self.affordable_health)]
        elif run.health_every:
            events.insert(4, Hook(run.health_every, self.health))
        return events

    def step(self, trainer: Trainer) -> None:
        """Raises what a write in the background raised."""
        if self.progress is not None and self.writer is not None:
            self.progress.step(trainer.images_seen, trainer.epoch)
            self.writer.raise_if_failed()

    def log(self, trainer: Trainer) -> None:
        """A row of means since the last row. Raises Diverged instead where they aren't finite."""
        self._check_finite(trainer)
        means = self.processes.all_reduce_mean(trainer.meter.read())
        if self.board is None or self.progress is None:
            return
        if (share := penalty_ratio(self.config, trainer.images_seen, means)) is not None:
            means["penalty/share"] = share
        now = time.monotonic()
        seconds = now - self._last_time - sum(self._aside_s.values())
        speed = {"speed/images_per_s": (trainer.images_seen - self._last_log) / seconds}
        speed["speed/input_wait"] = (trainer.input_wait_s - self._last_wait) / seconds  # share of training's time
        speed["speed/peak_memory_gib"] = peak_memory_gib(self.processes.device)
        speed |= {f"speed/{name}_s": spent for name, spent in self._aside_s.items()} | self._saving()
        self.board.log(trainer.images_seen, means)
        self.board.log_performance(trainer.images_seen, speed)
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
            self.progress.end_epoch(*loss_plot.last_epoch(read_rows(self.folder.log), trainer.loader.num_images))

    def grid(self, trainer: Trainer) -> None:
        """G_ema's images of seeds 0, 1, 2 …, and of classes 0, 1, 2 … in turn if there are any."""
        if self._is_done("grid", trainer):
            return
        if self.board is not None:
            with self._optional("grid"):
                self._draw(self.board, trainer)
        if self.config.run.histograms:
            with trainer.D.gathered_params():  # all processes take part
                if self.board is not None:
                    self.board.histograms(trainer.images_seen, {"G_ema": trainer.ema.net, "D": trainer.D.net})

    @torch.inference_mode()
    def _draw(self, board: RunLogger, trainer: Trainer) -> None:
        seeds = torch.arange(self.config.run.grid_side**2, device=self.processes.device)
        networks, G = self.config.networks, InParts(trainer.ema.net, len(seeds))
        images = G(latents(seeds, networks.z_dim), labels_for(seeds, networks.num_classes))
        board.grid(trainer.images_seen, images)
        if self.gallery is not None:
            self.gallery.draw(trainer.images_seen, G, images)

    def early_health(self, trainer: Trainer) -> None:
        """Early on rows of health are closer together."""
        if trainer.images_seen <= health.EARLY:
            self.affordable_health(trainer)

    def affordable_health(self, trainer: Trainer) -> None:
        """Measure health where earlier rows took less than a hundredth of the session; on all processes alike.

        What the first one costs isn't known before.
        """
        is_affordable = self._total_s["health"] < health.SHARE * (time.monotonic() - self._began)
        if self.processes.all_reduce_min(int(is_affordable)):
            self.health(trainer)

    def health(self, trainer: Trainer) -> None:
        """A row of what `fastgan doctor` judges by. All processes take part. Raises Diverged as `log` does."""
        if self._is_done("health", trainer):
            return
        self._check_finite(trainer)
        with self._optional("health"), trainer.G.gathered_params(), trainer.D.gathered_params():
            found = self.measure_health(trainer)
            if self.board is not None:
                self.board.log_performance(trainer.images_seen, found)

    def evaluate(self, trainer: Trainer) -> None:
        """The curve has a point; at the end of training there is the full measure, too. All processes take part.

        The best checkpoint by `best_by` will be on disk. Raises Stopped where patience is at its end.
        """
        evaluator, run = self.evaluator, self.config.run
        if evaluator is None or self._is_done("evaluation", trainer):
            return
        number = evaluator.curve_images if run.eval_every else run.eval_images
        metrics = self._measure(trainer, evaluator, number, "metrics")
        if metrics is None:
            return
        is_best, stale = self._compare()
        if is_best:
            self._keep_best(trainer, metrics)
        at_end, is_stale = trainer.images_seen >= trainer.total_images, stale >= (run.patience or sys.maxsize)
        if number < run.eval_images and (at_end or is_stale):
            self._measure(trainer, evaluator, run.eval_images, "full")
        if is_stale and not at_end:
            raise Stopped(f"no better {run.best_by} in {stale} evaluations: stopped at {trainer.images_seen:,} images")

    def _measure(self, trainer: Trainer, evaluator: Evaluator, num_images: int, kind: str) -> dict[str, float] | None:
        """The metrics of G's average, the same on all processes; they stand on the board, with their protocol.

        None where memory ran out.
        """
        subsets = CURVE_KID_SUBSETS if num_images < self.config.run.eval_images else None
        metrics = None
        with self._optional("evaluation"):
            metrics = self.processes.all_reduce_mean(
                evaluator(InParts(trainer.ema.net, BATCH_SIZE), num_images, subsets)
            )
        if metrics is None:
            return None
        if self.board is not None:
            self.board.log(trainer.images_seen, {f"{kind}/{name}": value for name, value in metrics.items()})
            share = self._total_s["evaluation"] / (time.monotonic() - self._began)
            self.board.log_performance(trainer.images_seen, {"speed/evaluation_share": share})
            row = {"images_seen": trainer.images_seen, "kind": kind, "metrics": metrics}
            row["protocol"] = evaluator.protocol(num_images, subsets)
            append_row(self.folder.path / CURVE, row | made_by())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "_std_" not in name)
        self.say(f"evaluation of {num_images:,} at {trainer.images_seen:,} images:  {shown}")
        return metrics

    def _compare(self) -> tuple[bool, int]:
        """Whether the log's last metrics are the best so far, and how many evaluations ago those were; on all alike."""
        name = self.config.run.best_by
        if name is None:
            return False, 0
        stale = 0
        if self.processes.is_main:
            values = (row.get(f"metrics/{name}") for row in read_rows(self.folder.log))
            stale = best_of([value for value in values if value is not None], name)
        stale = int(self.processes.all_reduce_sum(torch.tensor(stale)))  # the main process's: it alone has the log
        return stale == 0, stale

    def _keep_best(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """A checkpoint of this place will be in best/, instead of an earlier one."""
        with self._pause("best"):
            self._check_finite(trainer)
            tensors, state = trainer.state()  # all processes take part
            if self.writer is not None:
                best = Checkpoints(self.folder.path / BEST, keep=1)
                state = state | {"metrics": metrics}
                self.writer.save("best", tensors, lambda copies: best.save(copies, state))

    def average(self, trainer: Trainer) -> None:
        """A snapshot of each power-function average. Raises as `checkpoint` does."""
        if not self.averages.stds or self._is_done("average", trainer):
            return
        with self._pause("average"):
            self._check_finite(trainer)
            if self.writer is not None:
                self.averages.save(trainer.power.nets, trainer.images_seen, self.writer)

    def checkpoint(self, trainer: Trainer) -> None:
        """A checkpoint of this very place will be on disk: training may go on.

        Raises Diverged where there is nothing worth keeping, and what an earlier write raised: UserError where it was a
        checkpoint's.
        """
        if self._is_done("checkpoint", trainer):
            return
        with self._pause("checkpoint"):
            self._check_finite(trainer)
            tensors, state = trainer.state()  # all processes take part
            if self.writer is not None:
                self.writer.save("checkpoint", tensors, lambda copies: self._write(copies, state))
            elif self._taken_part is not None:
                self.saved(self._taken_part)  # the main process has written it by now
        self._taken_part = trainer.images_seen

    def _write(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self.checkpoints.save(tensors, state)
        self.saved(state["images_seen"])

    def finish(self, trainer: Trainer) -> None:
        """Training has come to its end: what is due then, and it is on disk. Raises as `checkpoint` does."""
        self.end_epoch(trainer)
        self.grid(trainer)
        self.evaluate(trainer)
        self.average(trainer)
        self.checkpoint(trainer)
        if self.writer is not None:
            self.writer.close()
            self.writer.raise_if_failed()

    def close(self, trainer: Trainer, in_haste: bool = False) -> None:
        """Write what is left and close: nothing more will happen. The GIF and the picture of the losses come last.

        Where training was stopped `in_haste`, they are left to the session that ends the run: a scheduler that has
        sent its signal kills what goes on for long. Raises what a write raised, where training itself didn't fail:
        that says more, and the other is told of.
        """
        ending = sys.exception()
        failed = ending is not None and not isinstance(ending, Stopped)
        if self.writer is not None:
            self.writer.close()
        if isinstance(ending, Stopped):
            self.processes.barrier()  # a launcher ends all processes with the first
        try:
            with contextlib.suppress(*[OSError] * failed):  # a full disk was told of
                if isinstance(ending, Diverged) and self.board is not None:
                    self.board.log_performance(trainer.images_seen, {"health/diverged": 1.0})
                self._show(trainer, pictures=not (in_haste and isinstance(ending, Stopped)))
        finally:
            if self.writer is not None and not failed:
                self.writer.raise_if_failed()
        if self.writer is not None and self.writer.failure not in (None, ending):
            print(self.writer.failure, flush=True)

    def _show(self, trainer: Trainer, pictures: bool) -> None:
        """Write the last figures, the GIF and the picture of the losses; close console and board."""
        if self.progress is None or self.board is None:
            return
        self.progress.close()
        if saving := self._saving():
            self.board.log_performance(trainer.images_seen, saving)
        if pictures:
            self.board.gif(trainer.images_seen)
            path, rows = self.folder.path / "losses.png", read_rows(self.folder.log)
            title = f"{self.config.preset}: losses"
            loss_plot.save(path, rows, trainer.loader.num_images, title, self.config.objective.loss)
        self.board.close()

    def _saving(self) -> dict[str, float]:
        """What saving cost since this was asked last: the pause of training, and what the thread took to write."""
        figures = {f"speed/{kind}_pause_ms": spent for kind, spent in self._pause_ms.items()}
        self._pause_ms = {}
        if self.writer is not None:
            figures |= {f"speed/{kind}_write_s": spent for kind, spent in self.writer.finished().items()}
        return figures

    def _check_finite(self, trainer: Trainer) -> None:
        """Raises Diverged where a loss or weight isn't finite; a place that was found good isn't looked at again."""
        if self._finite_at != trainer.images_seen:
            trainer.check_finite()
            self._finite_at = trainer.images_seen

    def _is_done(self, what: str, trainer: Trainer) -> bool:
        """Whether it was done at this very place; from now on it was."""
        done = self._done_at.get(what) == trainer.images_seen
        self._done_at[what] = trainer.images_seen
        return done

    @contextlib.contextmanager
    def _aside(self, what: str) -> Iterator[None]:
        """The time of the block doesn't count as training."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self._aside_s[what] += spent
            self._total_s[what] += spent

    @contextlib.contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Training can do without the rest of the block, aside from it, where memory runs out for a single image.

        But not on one process alone where all exchange what they find: raises UserError.
        """
        with self._aside(what):
            try:
                yield
            except torch.OutOfMemoryError as error:
                if what == "evaluation" and self.processes.world_size > 1:
                    raise UserError(
                        f"memory runs out in an evaluation, of which each process has a part ({error}): give "
                        "--eval-every 0, or use smaller networks"
                    ) from None
                self.say(f"memory ran out in {what} at {self._done_at[what]:,} images, which is left out: {error}")

    @contextlib.contextmanager
    def _pause(self, kind: str) -> Iterator[None]:
        """The time of the block is what saving cost training."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)  # steps that are still computed belong to training
        before = self._aside_s["checkpoint"]
        with self._aside("checkpoint"):
            yield
        self._pause_ms[kind] = 1000 * (self._aside_s["checkpoint"] - before)


def _progress(trainer: Trainer) -> Progress:
    total, num_images = trainer.total_images, trainer.loader.num_images
    if trainer.config.run.console == "epochs":
        return EpochProgress(total, num_images, trainer.steps_to)
    return RunProgress(trainer.images_seen, total, -(-total // num_images))
