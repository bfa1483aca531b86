"""The kernels are programs by the oldest Triton, too: the one that comes with the lowest torch that setup.cfg allows.

`launch/test` puts it in a folder of the environment. torch runs with any Triton that stands first on Python's path, so
no second torch is needed. By hand: PYTHONPATH=.venv/triton-3.6.0 pytest tests/kernels/test_cubins.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

VERSION = "3.6.0"
OLDEST = Path(sys.prefix) / f"triton-{VERSION}"
CUBINS = Path(__file__).with_name("test_cubins.py")


@pytest.mark.skipif(not OLDEST.exists(), reason=f"{OLDEST} isn't there: `launch/test` installs it")
def test_cubins_by_the_oldest_triton():
    """All of test_cubins.py passes in a process that imports the oldest Triton."""
    program = f"import pytest, sys, triton; assert triton.__version__ == {VERSION!r}; sys.exit(pytest.main())"
    options = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", str(CUBINS)]
    path = os.pathsep.join([str(OLDEST), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
