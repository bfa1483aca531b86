"""What happens around the steps of a run: rows, grids, evaluations, checkpoints, and the console."""

import contextlib
import sys
import time
from collections.abc import Callable

import torch

from fastgan.data.images import ImageDataset
from fastgan.data.loaders import missed
from fastgan.distributed.collectives import all_reduce_mean, all_reduce_min
from fastgan.distributed.processes import Processes
from fastgan.errors import Diverged, Stopped
from fastgan.evaluation.fidelity import conditions_for, latents
from fastgan.monitor import health, loss_plot
from fastgan.monitor.asides import Asides
from fastgan.monitor.evaluations import Evaluations
from fastgan.monitor.gallery import Gallery
from fastgan.monitor.pictures import save_pictures
from fastgan.monitor.progress import EpochProgress, Progress, RunProgress
from fastgan.monitor.saving import Saving
from fastgan.monitor.tensorboard import RunLogger
from fastgan.runs.rows import read_figures
from fastgan.runs.run_folder import RunFolder
from fastgan.training.objectives import penalty_ratio
from fastgan.training.trainer import Hook, Trainer
from fastgan.utils.memory import InParts, peak_memory_gib

GRID_PART = 256  # images of a grid that G makes at a time


class Hooks:
    """Do what is due around the steps of one trainer, from where it stands now.

    The main process writes; the others only take part in means. `saved` is as in Saving.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        dataset: ImageDataset,
        processes: Processes,
        saved: Callable[[int], None] = lambda images_seen: None,
    ) -> None:
        self.config, self.folder, self.processes = trainer.config, folder, processes
        self.progress = _progress(trainer) if processes.is_main else None
        self.logger = RunLogger(folder, self.config, trainer.images_seen, self.say) if processes.is_main else None
        self.dataset, self.data_labels = dataset, dataset.labels
        self.gallery = Gallery(self.logger, self.config, dataset, processes.device) if self.logger else None
        self.asides = Asides(processes, self.say)
        self.saving = Saving(self.config, folder, processes, self.asides, saved)
        self.evaluations = Evaluations(
            self.config, folder, dataset, processes, self.logger, self.asides, self.saving, self.say
        )
        self.measure_health = health.Health(self.config, dataset, processes.device)
        self._loss_rows = read_figures(folder.log) if processes.is_main else []  # later: the epoch's
        self._last_log, self._last_time, self._last_wait = trainer.images_seen, time.monotonic(), 0.0
        self._say_missed()
        self.begin_epoch(trainer)

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.say(text)

    def schedule(self, trainer: Trainer) -> list[Hook]:
        """Return what is due when, in its order: what precedes a checkpoint is never done again after a resume."""
        run, epoch = self.config.run, trainer.loader.num_images
        hooks = [
            Hook(1, self.step),
            Hook(run.log_every, self.log),
            Hook(epoch, self.end_epoch),
            Hook(run.grid_every or epoch, self.grid),
        ]
        if run.health_every is None:
            hooks += [Hook(health.EARLY_EVERY, self.early_health), Hook(health.EVERY, self.affordable_health)]
        elif run.health_every:
            hooks.append(Hook(run.health_every, self.health))
        if run.eval_every:
            hooks.append(Hook(run.eval_every, self.evaluations.evaluate))
        if self.config.optimizer.ema_stds:
            hooks.append(Hook(run.ema_snapshot_every or epoch, self.saving.ema_snapshot))
        return [*hooks, Hook(run.checkpoint_every or epoch, self.saving.checkpoint), Hook(epoch, self.begin_epoch)]

    def step(self, trainer: Trainer) -> None:
        """Show the progress. Raises what a write in the background raised, and UserError where another session has the
        run folder.
        """
        self.folder.require_held()
        if self.progress is not None:
            self.progress.step(trainer.images_seen, trainer.epoch)
        self.saving.raise_if_failed()

    def log(self, trainer: Trainer) -> None:
        """Log a row of means since the last row. Raises Diverged instead where they aren't finite."""
        self.asides.check_finite(trainer)
        means = all_reduce_mean(trainer.meter.read())
        if self.logger is None or self.progress is None:
            return
        if (share := penalty_ratio(self.config, trainer.images_seen, means)) is not None:
            means["penalty/share"] = share
        now = time.monotonic()
        seconds = now - self._last_time - sum(self.asides.row_s.values())
        speed = {"speed/images_per_s": (trainer.images_seen - self._last_log) / seconds}
        speed["speed/input_wait"] = (trainer.input_wait_s - self._last_wait) / seconds  # share of training's time
        speed["speed/peak_memory_gib"] = peak_memory_gib(self.processes.device)
        speed |= {f"speed/{name}_s": spent for name, spent in self.asides.row_s.items()}
        speed |= self.saving.figures()
        self.logger.log(trainer.images_seen, means)
        self._loss_rows.append({"images_seen": trainer.images_seen} | means)
        self.logger.log_performance(trainer.images_seen, speed)
        self.progress.losses(trainer.images_seen, trainer.epoch, means["loss/G"], means["loss/D"])
        self._last_log, self._last_time, self._last_wait = trainer.images_seen, now, trainer.input_wait_s
        self.asides.new_row()

    def begin_epoch(self, trainer: Trainer) -> None:
        if self.progress is not None and trainer.images_seen < trainer.total_images:
            self.progress.begin_epoch(trainer.images_seen)

    def end_epoch(self, trainer: Trainer) -> None:
        """Show the epoch's means; its last row ends with it. Raises Diverged as `log` does."""
        if self.asides.is_done("epoch", trainer):
            return
        if trainer.meter.count:
            self.log(trainer)
        self._say_missed()
        if self.progress is not None:
            self.progress.end_epoch(*loss_plot.last_epoch(self._loss_rows, trainer.loader.num_images))
            del self._loss_rows[:-1]

    def _say_missed(self) -> None:
        for line in missed(self.dataset) if self.processes.is_main else []:
            self.say(line)

    def grid(self, trainer: Trainer) -> None:
        """Draw G_ema's images of seeds 0, 1, 2 …, and of classes 0, 1, 2 … in turn if there are any."""
        if self.asides.is_done("grid", trainer):
            return
        if self.logger is not None:
            with self.asides.optional("grid"):
                self._draw(self.logger, trainer)
        if self.config.run.histograms:
            with trainer.D.gathered_params():  # all processes take part
                if self.logger is not None:
                    self.logger.histograms(trainer.images_seen, {"G_ema": trainer.ema.net, "D": trainer.D.net})

    @torch.inference_mode()
    def _draw(self, logger: RunLogger, trainer: Trainer) -> None:
        seeds = torch.arange(self.config.run.grid_side**2, device=self.processes.device)
        networks, G = self.config.networks, InParts(trainer.ema.net, min(len(seeds), GRID_PART))
        images = G(latents(seeds, networks.z_dim), conditions_for(seeds, networks, self.data_labels))
        logger.grid(trainer.images_seen, images)
        if self.gallery is not None:
            self.gallery.draw(trainer.images_seen, G, images)

    def early_health(self, trainer: Trainer) -> None:
        """Measure health more often early on."""
        if trainer.images_seen <= health.EARLY:
            self.affordable_health(trainer)

    def affordable_health(self, trainer: Trainer) -> None:
        """Measure health where earlier rows took less than a hundredth of the session; on all processes alike.

        What the first one costs isn't known before.
        """
        is_affordable = self.asides.fraction("health") < health.SHARE
        if all_reduce_min(int(is_affordable)):
            self.health(trainer)

    def health(self, trainer: Trainer) -> None:
        """Log a row of what `fastgan doctor` judges by. All processes take part. Raises Diverged as `log` does."""
        if self.asides.is_done("health", trainer):
            return
        self.asides.check_finite(trainer)
        with self.asides.optional("health"), trainer.G.gathered_params(), trainer.D.gathered_params():
            found = self.measure_health(trainer)
            if self.logger is not None:
                self.logger.log_performance(trainer.images_seen, found)

    def finish(self, trainer: Trainer) -> None:
        """Do what is due at the end of training, and wait until it is on disk. Raises as `Saving.checkpoint` does."""
        self.end_epoch(trainer)
        self.grid(trainer)
        self.evaluations.evaluate(trainer)
        self.saving.ema_snapshot(trainer)
        self.saving.checkpoint(trainer)
        self.saving.close()
        self.saving.raise_if_failed()

    def close(self, trainer: Trainer, in_haste: bool = False) -> None:
        """Write what is left and close: nothing more will happen. The GIF and the picture of the losses come last.

        Where training was stopped `in_haste`, they are left to the session that ends the run: a scheduler that has
        sent its signal kills what goes on for long. Raises what a write raised, where training itself didn't fail:
        that says more, and the other is reported.
        """
        ending = sys.exception()
        failed = ending is not None and not isinstance(ending, Stopped)
        self.saving.close()
        if isinstance(ending, Stopped):
            self.processes.barrier()  # a launcher ends all processes with the first
        try:
            with contextlib.suppress(*[OSError] * failed):  # a full disk was reported
                if isinstance(ending, Diverged) and self.logger is not None:
                    self.logger.log_performance(trainer.images_seen, {"health/diverged": 1.0})
                self._show(trainer, pictures=not (in_haste and isinstance(ending, Stopped)))
        finally:
            if not failed:
                self.saving.raise_if_failed()
        writer = self.saving.writer
        if writer is not None and writer.failure not in (None, ending):
            print(writer.failure, flush=True)

    def _show(self, trainer: Trainer, pictures: bool) -> None:
        """Write the last figures, the GIF and the picture of the losses; close console and board."""
        if self.progress is None or self.logger is None:
            return
        self._say_missed()
        self.progress.close()
        if figures := self.saving.figures():
            self.logger.log_performance(trainer.images_seen, figures)
        if pictures:
            save_pictures(self.folder, self.config, trainer.images_seen, trainer.loader.num_images)
        self.logger.close(in_haste=not pictures)


def _progress(trainer: Trainer) -> Progress:
    total, num_images = trainer.total_images, trainer.loader.num_images
    if trainer.config.run.console == "epochs":
        return EpochProgress(total, num_images, trainer.steps_to)
    return RunProgress(trainer.images_seen, total, -(-total // num_images))
