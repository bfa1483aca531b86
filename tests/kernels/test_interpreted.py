"""The checks in interpreted/, each file in a process of its own in which Triton's interpreter runs kernels on the CPU.

Triton decides about its interpreter when a kernel is defined, and the other tests must not have it. By hand:
TRITON_INTERPRET=1 pytest tests/kernels/interpreted/check_bias_act.py
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton isn't made for this platform")

CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


def run(path):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--noconftest", "-p", "no:cacheprovider", str(path)]
    alone = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=os.environ | alone)


@pytest.fixture(scope="module")
def runs(request):
    """The processes of all chosen tests, two at a time."""
    chosen = [item.callspec.params["path"] for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run, path) for path in chosen}


@pytest.mark.parametrize("path", CHECKS, ids=lambda path: path.stem)
def test_interpreted(path, runs):
    """All checks of the file pass."""
    done = runs[path].result()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
