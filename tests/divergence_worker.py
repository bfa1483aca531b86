"""What each process of test_divergence.py does: the last one meets a loss that is no number, all write their end."""

from pathlib import Path

import torch
from engines_worker import build

from fastgan.distributed.processes import Processes
from fastgan.errors import Diverged


def main(folder: Path) -> None:
    processes = Processes(threads=1)
    trainer, end = build(processes, {"engine": "ddp"}), "went on"
    for step in range(3):
        before = trainer.images_seen
        terms = trainer.train_step(trainer.loader.batch(before))
        if step == 1 and processes.rank == processes.world_size - 1:
            terms["loss/D"] = torch.tensor(float("nan"))
        trainer.meter.add(terms, before)
    try:
        trainer.check_finite()
    except Diverged as error:
        end = str(error)
    (folder / str(processes.rank)).write_text(end)
    processes.close()
