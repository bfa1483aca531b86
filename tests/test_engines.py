"""Every engine, on one, two and three processes, with and without micro-batches, learns what one process learns."""

from pathlib import Path

import engines_worker
import pytest
import torch
from forks import ForkServer

from fastgan.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

STEPS = 20
RIGHT = {
    False: (1, "ddp", None, False),
    True: (1, "ddp", None, True),
}  # what one process learns, without and with split_g
# (processes, engine, size of a micro-batch, whether G goes through in micro-batches, too): each engine with and without
# micro-batches, each number of processes, and the sizes that leave a last micro-batch smaller or a process one image.
CASES = [
    (1, "ddp", 7, False),
    (1, "ddp", 4, True),
    (2, "ddp", None, False),
    (2, "ddp", 2, True),
    (2, "zero1", 4, False),
    (2, "zero1", None, True),
    (2, "zero2", None, False),
    (2, "zero2", 2, True),
    (2, "zero3", 4, False),
    (2, "zero3", None, True),
    (3, "ddp", None, False),
    (3, "ddp", 1, True),
]
ENGINES = {1: ("ddp",), 2: ("ddp", "zero1", "zero2", "zero3"), 3: ("ddp",)}


def name(count: int, engine: str, size: int | None, split_g: bool = False) -> str:
    return f"{count}-{engine}-{size}{'-split' if split_g else ''}"


def cases(count: int) -> list[dict]:
    """All that so many processes do: whole runs in float64, resumed ones in float32, and those that take over."""
    found = []
    for case in [*RIGHT.values(), *CASES]:
        if case[0] == count:
            _, engine, size, split_g = case
            whole = {"engine": engine, "micro_batch": size, "double": True, "steps": STEPS, "split_g": split_g}
            found.append({"name": name(*case), **whole})
    for engine in ENGINES[count]:
        for resume in (False, True):
            found.append({"name": f"{count}-{engine}-{resume}", "engine": engine, "steps": STEPS, "resume": resume})
    if count == 2:
        for engine in ("ddp", "zero2"):
            found.append({"name": f"half-{engine}", "engine": engine, "double": True, "steps": STEPS // 2})
        found.append(taking_over("zero2", 2))
        found.append({"name": "offload", "engine": "zero2", "offload": True, "double": True, "steps": STEPS})
    found += [taking_over("ddp", count)] if count != 2 else []
    return found


def taking_over(start: str, count: int) -> dict:
    """What two processes of an engine began, so many of DDP end."""
    whole = {"start": f"half-{start}", "engine": "ddp", "double": True, "steps": STEPS - STEPS // 2}
    return {"name": f"{start}-to-{count}", **whole}


@pytest.fixture(scope="module")
def states(tmp_path_factory, fork_server: ForkServer) -> Path:
    """Where the states of all cases are."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("states")
    for count in (2, 1, 3):
        fork_server.launch(count, engines_worker.main, cases(count), folder)
    return folder


def tensors(folder: Path, case: str) -> dict[str, torch.Tensor]:
    snapshot = Checkpoints(folder / case).latest()
    assert snapshot is not None
    return {f"{group}/{key}": value for group, values in snapshot.tensors.items() for key, value in values.items()}


def assert_near(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """Each tensor of the networks, averages and optimizers differs by less than `tolerance` of its own size."""
    assert found.keys() == right.keys()
    for key, value in right.items():
        distance = (found[key].double() - value.double()).norm()
        assert distance <= tolerance * value.double().norm(), key


@pytest.mark.parametrize(("count", "engine", "size", "split_g"), CASES)
def test_learns_what_one_process_learns(states, count, engine, size, split_g):
    """In float64 to 1e-6 of each weight, average and optimizer state. BatchNorm, in G, is over the global batch."""
    right = tensors(states, name(*RIGHT[split_g]))
    assert_near(tensors(states, name(count, engine, size, split_g)), right)


def test_states_on_the_host_change_nothing(states):
    """Optimizers' states kept in the CPU's memory by ZeRO 2."""
    assert_near(tensors(states, "offload"), tensors(states, name(*RIGHT[False])))


@pytest.mark.parametrize(("count", "engine"), [(count, engine) for count in ENGINES for engine in ENGINES[count]])
def test_resume_is_bit_for_bit(states, count, engine):
    """A run resumed half-way, in float32, ends with the very weights of one that wasn't."""
    found, right = (tensors(states, f"{count}-{engine}-{resume}") for resume in (True, False))
    assert found.keys() == right.keys()
    for key, value in right.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(("start", "count"), [("ddp", 1), ("ddp", 3), ("zero2", 2)])
def test_other_processes_and_engines_go_on(states, start, count):
    """What two processes began, by DDP or ZeRO 2, one or three end, or two by DDP, as if one had done it all."""
    assert_near(tensors(states, f"{start}-to-{count}"), tensors(states, name(*RIGHT[False])))


COMPILED = ("ddp", "zero1", "zero2")


@pytest.fixture(scope="module")
def compiled_states(tmp_path_factory, fork_server: ForkServer) -> Path:
    """What two processes learn compiled, and one learns eagerly, from networks of 3 MB."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("compiled")
    few = {"split_g": True, "wide": True, "double": True, "steps": 2}
    compiled = [{"name": engine, "engine": engine, "compile": True, **few} for engine in COMPILED]
    fork_server.launch(2, engines_worker.main, compiled, folder)
    fork_server.launch(1, engines_worker.main, [{"name": "eager", "engine": "ddp", **few}], folder)
    return folder


@pytest.mark.parametrize("engine", COMPILED)
def test_compiled_processes_learn_what_one_eager_process_learns(compiled_states, engine):
    """In float64 to 1e-6, exact R1 and R2 included, with a D that DDP exchanges in several parts."""
    assert_near(tensors(compiled_states, engine), tensors(compiled_states, "eager"))


@pytest.fixture(scope="module")
def float16_states(tmp_path_factory, fork_server: ForkServer) -> Path:
    """What one and two processes learn in float16; in the third of six steps D's gradient overflows on the last."""
    folder = tmp_path_factory.mktemp("float16")
    for count in (1, 2):
        whole = {"engine": "ddp", "split_g": True, "precision": "float16", "steps": 6, "every_rank": True}
        chosen = [{"name": str(count), "overflow_in": 2, **whole}, {"name": f"{count}-smooth", **whole}]
        fork_server.launch(count, engines_worker.main, chosen, folder)
    return folder


def test_overflow_on_one_process_skips_the_step_on_all(float16_states):
    """In float16 both ranks leave out the same step, halve the same scale and end with equal weights: one process's."""
    alone, *both = (Checkpoints(float16_states / name).latest() for name in ("1-0", "2-0", "2-1"))
    smooth = Checkpoints(float16_states / "1-smooth-0").latest()
    for found in (*both, alone):
        assert found.state["loss_scales"]["D"]["scale"] == smooth.state["loss_scales"]["D"]["scale"] / 2
        assert found.state["loss_scales"] == alone.state["loss_scales"]
    for key, value in tensors(float16_states, "2-0").items():
        assert torch.equal(tensors(float16_states, "2-1")[key], value), key
    assert_near(tensors(float16_states, "2-0"), tensors(float16_states, "1-0"), 1e-2)
