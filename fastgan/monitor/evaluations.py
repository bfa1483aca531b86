"""Evaluations during training: the curve of metrics, the best checkpoint by one of them, and when to stop early."""

import sys
from collections.abc import Callable

from fastgan.config import Config
from fastgan.data.images import ImageDataset
from fastgan.distributed.collectives import all_reduce_mean, from_main
from fastgan.distributed.processes import Processes
from fastgan.errors import Stopped
from fastgan.evaluation.evaluator import (
    CURVE_KID_SUBSETS,
    Evaluator,
    best_of,
    check_metric,
    load_on_all,
    made_by,
)
from fastgan.evaluation.features import BATCH_SIZE
from fastgan.monitor.asides import Asides
from fastgan.monitor.saving import Saving
from fastgan.monitor.tensorboard import RunLogger
from fastgan.runs.rows import append_row, read_figures
from fastgan.runs.run_folder import RunFolder
from fastgan.training.trainer import Trainer
from fastgan.utils.memory import InParts


class Evaluations:
    """Measure G's average from time to time; all processes take part, the main process logs.

    Raises UserError where `best_by` is none of the metrics.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        dataset: ImageDataset,
        processes: Processes,
        logger: RunLogger | None,
        asides: Asides,
        saving: Saving,
        say: Callable[[str], None],
    ) -> None:
        self._run, self._folder, self._logger = config.run, folder, logger
        self._asides, self._saving, self._say = asides, saving, say
        rows = read_figures(folder.log) if self._run.best_by and processes.is_main else []
        values = [row.get(f"metrics/{self._run.best_by}") for row in rows]
        self._curve: list[float] = [value for value in values if value is not None]  # of best_by, all sessions'
        self.evaluator: Evaluator | None = None  # on all processes, where one of them can't evaluate or none is to
        if self._run.eval_every != 0:  # None: at the end
            self.evaluator = load_on_all(config, dataset, processes.device, say)
            check_metric(self._run.best_by, self.evaluator)
            if self.evaluator is not None:
                self.evaluator.require_enough(self._num_images(self.evaluator))
            for warning in [] if self.evaluator is None else self.evaluator.warnings(self._run.eval_images):
                say(warning)

    def evaluate(self, trainer: Trainer) -> None:
        """Add a point to the curve and, at the end of training, the full measure; keep the best checkpoint.

        Raises Stopped where patience is at its end.
        """
        evaluator, run = self.evaluator, self._run
        if evaluator is None or self._asides.is_done("evaluation", trainer):
            return
        number = self._num_images(evaluator)
        metrics = self._measure(trainer, evaluator, number, "metrics")
        if metrics is None:
            return
        stale = self._since_best(metrics)
        if stale == 0:
            self._saving.best(trainer, metrics)
        at_end = trainer.images_seen >= trainer.total_images
        is_stale = stale is not None and stale >= (run.patience or sys.maxsize)
        if number < run.eval_images and (at_end or is_stale):
            self._measure(trainer, evaluator, run.eval_images, "full")
        if is_stale and not at_end:
            raise Stopped(f"no better {run.best_by} in {stale} evaluations: stopped at {trainer.images_seen:,} images")

    def _num_images(self, evaluator: Evaluator) -> int:
        """How many images an evaluation generates; the one at the end, where there is none before, all."""
        return evaluator.curve_images if self._run.eval_every else self._run.eval_images

    def _measure(self, trainer: Trainer, evaluator: Evaluator, num_images: int, kind: str) -> dict[str, float] | None:
        """Return the metrics of G's average, the same on all processes, and log them with their protocol.

        None where memory ran out.
        """
        subsets = CURVE_KID_SUBSETS if num_images < self._run.eval_images else None
        metrics = None
        with self._asides.optional("evaluation"):
            measured = evaluator(InParts(trainer.ema.net, BATCH_SIZE), num_images, subsets)
            metrics = all_reduce_mean(measured)
        if metrics is None:
            return None
        if self._logger is not None:
            self._logger.log(trainer.images_seen, {f"{kind}/{name}": value for name, value in metrics.items()})
            share = self._asides.fraction("evaluation")
            self._logger.log_performance(trainer.images_seen, {"speed/evaluation_share": share})
            row = {"images_seen": trainer.images_seen, "kind": kind, "metrics": metrics}
            row["protocol"] = evaluator.protocol(num_images, subsets)
            append_row(self._folder.metrics, row | made_by())
        shown = "  ".join(f"{name} {value:z.3f}" for name, value in metrics.items() if "_std_" not in name)
        self._say(f"evaluation of {num_images:,} at {trainer.images_seen:,} images:  {shown}")
        return metrics

    def _since_best(self, metrics: dict[str, float]) -> int | None:
        """Return how many evaluations ago the best one was, on all processes alike; None where none is the best."""
        name = self._run.best_by
        if name is None:
            return None
        self._curve.append(metrics[name])
        return from_main(best_of(self._curve, name))  # it alone knows of earlier sessions
