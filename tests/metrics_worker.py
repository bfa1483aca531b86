"""What each process of tests/test_metrics_distributed.py does: measure its share, and write down all figures."""

import json
from pathlib import Path

import torch

from fastgan import networks, presets
from fastgan.data import named
from fastgan.data.images import ArrayDataset
from fastgan.data.stacked import StackedDataset
from fastgan.distributed.processes import Processes
from fastgan.evaluation import distances, extractors, fidelity
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.features import collect
from fastgan.evaluation.reference import real_statistics

CPU = torch.device("cpu")


def main(folder: Path) -> None:
    """Write WORLD_SIZE-RANK.json; FASTGAN_CACHE must be without statistics."""
    processes = Processes(threads=1)
    distances.KID_SUBSETS = 10
    extractor = extractors.load("digits", CPU)
    sets = torch.load(folder / "sets.pt", weights_only=True)
    fakes, found = sets["fakes"], {}
    for batch_size in (100, 77):
        reals = real_statistics(ArrayDataset("strokes", sets["reals"]), extractor, CPU, batch_size)
        images = collect(
            extractor,
            len(fakes),
            lambda numbers: fakes[numbers.start : numbers.stop],
            CPU,
            batch_size,
        )
        found[f"batches of {batch_size}"] = fidelity.measure(images, reals, extractor)
    few = collect(extractor, 30, lambda numbers: fakes[numbers.start : numbers.stop], CPU)
    found["one batch for all"] = {
        "distance": distances.frechet(few.gaussian, reals.gaussian),
        "near": len(few.features),
    }
    config = presets.get("debug")
    torch.manual_seed(0)
    G = networks.build(config)[0].eval()
    found["generator"] = Evaluator(config, named.load("toy"), extractor, CPU)(G, 333)
    painter = torch.nn.Sequential(
        torch.nn.Linear(config.networks.z_dim, 3 * 32 * 32), torch.nn.Unflatten(1, (3, 32, 32))
    )
    stacked = StackedDataset(ArrayDataset("toy", named.load("toy").images[:100], torch.arange(100) % 10), 2000)
    found["modes"] = Evaluator(config, stacked, extractor, CPU)(painter, 333)
    (folder / f"{processes.world_size}-{processes.rank}.json").write_text(json.dumps(found))
    processes.close()
