"""The wheel alone, without a checkout, does what a newcomer wants: train, load, sample, measure, export, show."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and the libraries of this one, but not its fastgan."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("fastgan-*.whl")
    venv.create(folder / "env", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, wheel]
    subprocess.run(install, check=True)
    # A path in a .pth file adds that folder's packages; editable installs in it are left out.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    place = folder / "elsewhere"
    place.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"FASTGAN_CACHE": str(folder / "cache")}

    def program(*words: str) -> str:
        command = [folder / "env" / "bin" / "python", *words]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    return program


def test_train_load_sample(run: Run) -> None:
    """Commands and the API work from the wheel, from training to an export that runs without it, and a page."""
    assert str(ROOT) not in run("-c", "import fastgan; print(fastgan.__file__)")
    run("-m", "fastgan.cli", "train", "--preset", "debug", "--images", "64", "--run-dir", "run")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    out = run(*launch, "-m", "fastgan.train", "--preset", "debug", "--images", "96", "--run-dir", "run")
    assert "done: 96 images seen" in out
    shape = run("-c", "import fastgan; print(fastgan.load('run').sample([1, 2]).shape)")
    assert shape.strip() == "(2, 28, 28, 1)"
    assert "32 images" in run("-m", "fastgan.cli", "sample", "run", "--seeds", "0-31", "--npz", "samples.npz")
    assert "fd_digits" in run("-m", "fastgan.cli", "metrics", "samples.npz", "toy")
    assert "fd_digits" in run("-m", "fastgan.cli", "evaluate", "run", "--images", "64")
    assert "report.html" in run("-m", "fastgan.cli", "report", "run")
    run("-m", "fastgan.cli", "export", "run", "--to", "onnx", "--out", "g.onnx")
    program = "import numpy, onnxruntime; g = onnxruntime.InferenceSession('g.onnx')\n"
    program += "print(g.run(None, {'z': numpy.zeros((3, 100), 'float32')})[0].shape)"
    assert run("-c", program).strip() == "(3, 1, 28, 28)"
    if importlib.util.find_spec("gradio") is not None:
        page = "import subprocess, sys, urllib.request\n"
        page += "demo = subprocess.Popen([sys.executable, '-m', 'fastgan.cli', 'demo', 'run'], stdout=-1, text=True)\n"
        page += "assert '<title>' in urllib.request.urlopen(demo.stdout.readline().split()[1]).read().decode()\n"
        page += "demo.terminate(); assert demo.wait(60) == 75"
        run("-c", page)
