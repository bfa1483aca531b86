"""What one process measures, two and three measure together: each its share, all with the same figures."""

import json
from pathlib import Path

import metrics_worker
import pytest
import torch
from forks import ForkServer
from test_metrics import RegisteredInFloat64, strokes, torch_fidelity_says

from fastgan.evaluation import distances


def written(count: int, folder: Path) -> list[dict]:
    """The figures of each process."""
    return [json.loads((folder / f"{count}-{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    reals = torch.cat([strokes(650, seed=2), strokes(651, seed=3, width=6)])
    torch.save({"fakes": strokes(1103, seed=1), "reals": reals}, folder / "sets.pt")
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "KID_SUBSETS", distances.KID_SUBSETS)  # the worker takes fewer
        patch.setenv("FASTGAN_CACHE", str(folder / "cache-1"))
        metrics_worker.main(folder)
    torch.set_num_threads(threads)
    (found,) = written(1, folder)
    return found


@pytest.fixture(scope="module")
def theirs(folder) -> dict[str, float]:
    """FID, IS, KID, precision and recall by torch-fidelity's own calculate_metrics."""
    sets = torch.load(folder / "sets.pt", weights_only=True)
    return torch_fidelity_says(sets["fakes"], sets["reals"], RegisteredInFloat64, subsets=10)


def test_batches_dont_matter(alone):
    """Batches of 77 have the figures of batches of 100."""
    assert alone["batches of 77"] == pytest.approx(alone["batches of 100"], rel=1e-6)


def assert_theirs(found, theirs):
    for case in ("batches of 100", "batches of 77"):
        assert {name: found[case][name] for name in theirs} == pytest.approx(theirs, rel=1e-6), case


def test_one_process_is_torch_fidelity(alone, theirs):
    """FID, IS, KID, precision and recall are those of torch-fidelity, in batches of any size."""
    assert_theirs(alone, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_are_one(folder, alone, theirs, count, fork_server: ForkServer):
    """Every process has every figure of one process, and of torch-fidelity, in batches of 100 and of 77, neither of
    which divides the sets."""
    fork_server.launch(count, metrics_worker.main, folder, FASTGAN_CACHE=str(folder / f"cache-{count}"))
    found = written(count, folder)
    for mine in found:
        assert_theirs(mine, theirs)
        assert mine.keys() == alone.keys()
        for case, figures in alone.items():
            assert mine[case] == pytest.approx(figures, rel=1e-6), case
    assert all(mine == found[0] for mine in found)
    assert len(list((folder / f"cache-{count}" / "statistics").iterdir())) == 2  # of the reals and of the toy set
