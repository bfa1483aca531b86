"""What this machine has for training: versions, devices, a compiler, weights, room. `fastgan doctor` prints it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from fastgan.errors import EXIT_DONE

EXIT_BROKEN = 1
NEEDED = ("torch", "torchvision", "accelerate", "torch-fidelity", "tensorboard", "safetensors")
MIN_PYTHON = (3, 11)
MIN_FREE_GIB = 2.0  # for checkpoints, the data set and statistics
MIN_SHARED_MIB = 256  # for batches between a loader's processes: Docker gives 64 MiB unless it is asked for more
IMPORT_TIMEOUT_S = 60
MIN_OPEN_FILES = 1024  # each of a loader's processes, and each shared tensor, takes some


class Line(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: str  # ok; missing, low: training does without, or with less; broken: it doesn't
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.name:20} {self.what}" + (f": {self.remedy}" if self.remedy else "")


def lines() -> list[Line]:
    """Return all that is looked at, in some seconds; nothing is compiled, downloaded or written."""
    looks: tuple[Callable[[], list[Line]], ...] = (
        _python,
        _packages,
        _devices,
        _compile,
        _dali,
        _deepspeed,
        _trackers,
        _weights,
        _room,
        _limits,
    )
    found = []
    for look in looks:
        try:
            found += look()
        except Exception as error:  # a broken library may raise anything: that is what is to be told
            name, kind = look.__name__.strip("_"), type(error).__name__
            found.append(Line(name, "broken", f"{kind} ({_one_line(error)})", "install it again"))
    return found


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[-160:]


def _python() -> list[Line]:
    found = platform.python_version()
    if tuple(map(int, found.split(".")[:2])) < MIN_PYTHON:
        return [Line("python", "broken", found, "install Python 3.11 or newer")]
    return [Line("python", "ok", f"{found}, {platform.system()} {platform.machine()}")]


def _packages() -> list[Line]:
    found = []
    for name in NEEDED:
        try:
            found.append(Line(name, "ok", version(name)))
        except PackageNotFoundError:
            found.append(Line(name, "broken", "isn't installed", f"pip install {name}"))
    return found


def _devices() -> list[Line]:
    import torch

    cpu = Line("cpu", "ok", f"{torch.get_num_threads()} threads, {os.cpu_count()} cores")
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return [cpu, Line("cuda", "missing", f"no usable GPU ({built})", "training takes the CPU")]
    found = [cpu]
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        what = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        found.append(Line(f"cuda:{number}", "ok", f"{what}, CUDA {torch.version.cuda}, driver {_driver()}"))
    return found


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return "unknown"
    words = path.read_text().splitlines()[0].split()
    return next((word for word in words if word.replace(".", "").isdigit()), "unknown")


def _compile() -> list[Line]:
    """Whether torch.compile finds what it needs; nothing is compiled, as that may take a minute."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "c++"))), None)
    if compiler is None:
        return [Line("torch.compile", "missing", "no C++ compiler", "install g++; training goes on without")]
    triton = "Triton found" if importlib.util.find_spec("triton") else "no Triton: CPU only"
    return [Line("torch.compile", "ok", f"{compiler}, {triton} (looked for, not tried)")]


def _dali() -> list[Line]:
    if not (importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")):
        remedy = "pip install nvidia-dali-cuda130; --loader torch does without"
        return [Line("DALI", "missing", "isn't installed", remedy)]
    try:
        from nvidia import dali

        pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
        with pipeline:
            pipeline.set_outputs(dali.fn.constant(idata=1))
        pipeline.build()
        pipeline.run()
    except Exception as error:  # an ImportError, or whatever its libraries raise on a machine that they don't fit
        return [Line("DALI", "missing", f"doesn't run here ({_one_line(error)})", "--loader torch does without")]
    return [Line("DALI", "ok", f"{dali.__version__}, ran on the CPU")]


def _deepspeed() -> list[Line]:
    """Whether it can be imported, in a process of its own, as it prints and changes torch."""
    if importlib.util.find_spec("deepspeed") is None:
        remedy = "pip install 'fastgan[deepspeed]' for --engine zero1 to zero3"
        return [Line("deepspeed", "missing", "isn't installed", remedy)]
    command = [sys.executable, "-c", "import deepspeed"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [Line("deepspeed", "missing", f"no import within {IMPORT_TIMEOUT_S} s", "--engine ddp does without")]
    if done.returncode:
        said = _one_line(done.stderr)
        return [Line("deepspeed", "missing", f"can't be imported ({said})", "--engine ddp does without")]
    return [Line("deepspeed", "ok", f"{version('deepspeed')}, can be imported")]


def _trackers() -> list[Line]:
    from fastgan.monitor.trackers import choices, installed

    if found := installed():
        return [Line("trackers", "ok", ", ".join(found))]
    what = f"none of {', '.join(choices())} is installed"
    return [Line("trackers", "missing", what, "pip install 'fastgan[wandb]' for --tracker; TensorBoard does without")]


def _weights() -> list[Line]:
    import torch

    digits = resources.files("fastgan.evaluation").joinpath("digits.safetensors")
    if digits.is_file():
        found = [Line("digits weights", "ok", "shipped")]
    else:
        found = [Line("digits weights", "broken", "aren't there", "install fastgan again")]
    paths = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("*inception*"))
    if paths:
        return [*found, Line("Inception weights", "ok", str(paths[0]))]
    remedy = "an evaluation downloads them, or name them with --inception-weights"
    return [*found, Line("Inception weights", "missing", "aren't in torch's cache", remedy)]


def _room() -> list[Line]:
    from fastgan.data.named import cache_dir

    found = []
    for name, path in (("cache folder", cache_dir()), ("runs folder", Path("runs"))):
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        if not os.access(there, os.W_OK):
            found.append(Line(name, "broken", f"{path} can't be written", "give it to your user, or name another"))
        elif free < MIN_FREE_GIB:
            found.append(Line(name, "broken", f"{path} has {free:.1f} GiB free", f"make room: {MIN_FREE_GIB:g} GiB"))
        else:
            found.append(Line(name, "ok", f"{path} has {free:,.0f} GiB free"))
    return found


def _limits() -> list[Line]:
    import resource

    found, shared = [], Path("/dev/shm")
    if shared.exists():
        mib = shutil.disk_usage(shared).total / 2**20
        remedy = "" if mib >= MIN_SHARED_MIB else "docker run --shm-size 1g, or --workers 0"
        found.append(Line("shared memory", "low" if remedy else "ok", f"{mib:,.0f} MiB", remedy))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    many = files == resource.RLIM_INFINITY or files >= MIN_OPEN_FILES
    what = "unlimited" if files == resource.RLIM_INFINITY else f"{files:,}"
    remedy = "" if many else "ulimit -n 4096, or --workers 0"
    found.append(Line("open files", "ok" if many else "low", what, remedy))
    return found


def check() -> int:
    """Print a line for each thing; return 1 where something that training needs is broken, else 0."""
    found = lines()
    for line in found:
        print(line)
    broken = [line.name for line in found if line.state == "broken"]
    print(f"training won't work here: {', '.join(broken)}" if broken else "training works here")
    return EXIT_BROKEN if broken else EXIT_DONE
