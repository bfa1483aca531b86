"""What several tests share: a tiny finished run, an empty folder, handlers of signals put back."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forks import ForkServer
from hypothesis import settings

from fastgan.commands import train
from fastgan.errors import UserError
from fastgan.utils.workers import worker_context

settings.register_profile("fastgan", deadline=None, derandomize=True, database=None)
settings.load_profile("fastgan")
# torch takes what its compiler left behind as it is, also what a killed run left half-written.
_compiled = tempfile.TemporaryDirectory(prefix="fastgan-compiled-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else each process of the tests starts one a core
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where tests compute
EAGER = ("--compile", "off", "--cuda-graphs", "off")  # for runs that are compared bit for bit: no trials on a GPU
torch.backends.cudnn.deterministic = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # long files first: what is left at the end is shared evenly
    if DEVICE.type == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@pytest.fixture
def keep_signal_handlers() -> Iterator[None]:
    """The signal handlers that `train.main` installs are gone after the test."""
    with _signal_handlers_kept():
        yield


@pytest.fixture(autouse=True)
def what_runs_set() -> Iterator[None]:
    """Whatever a run in this process sets, a GPU's convolutions are float32's, and no test has another's threads."""
    torch.backends.cudnn.allow_tf32 = False
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """There is no GPU within, neither in this process nor in those that it starts."""
    if DEVICE.type == "cuda":
        torch.cuda.init()  # else it would never find the GPU again
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers a device
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def no_gpu() -> Iterator[None]:
    """There is no GPU in the test."""
    with without_gpu():
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the test is run, without any data set in the cache."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 64 images with the preset `debug`; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("debug") / "run"
    with _signal_handlers_kept():
        assert train.main(["--preset", "debug", "--images", "64", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session", autouse=True)
def _loaders_import_torch_once() -> None:
    """Start the server of workers as a loader does; one that a preparation starts has no torch yet."""
    worker_context("fastgan.data.torch_loader")


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts processes that have torch and fastgan imported already."""
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


def refusal(action: Callable[[], object]) -> str:
    """The text of the UserError that `action` raises, which is one line."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text
