"""launch/keep_going: runs a command again as long as that helps."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from fastgan.distributed import consistency

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "launch" / "keep_going"
COUNT = 'n=$(cat "$0" 2>/dev/null || echo 0); n=$((n + 1)); echo "$n" >"$0"; '


def keep_going(tmp_path: Path, command: str, tries: int = 3) -> tuple[int, int]:
    """Its exit code, and how often it ran the command, in which $n counts from 1."""
    environment = os.environ | {"KEEP_GOING_TRIES": str(tries), "KEEP_GOING_PAUSE_S": "0"}
    counter = tmp_path / "count"
    answer = subprocess.run(
        [SCRIPT, "sh", "-c", COUNT + command, counter], env=environment, timeout=60, check=False, capture_output=True
    )
    return answer.returncode, int(counter.read_text())


def test_done_is_done(tmp_path):
    """A command that ends with 0 is run once."""
    assert keep_going(tmp_path, "exit 0") == (0, 1)


def test_end_that_would_repeat_is_final(tmp_path):
    """A user's mistake, divergence and a stop on request end it with their codes, which the launcher hid."""
    for number, code in enumerate((2, 3, 75)):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = f'echo start >>"$FASTGAN_STATUS"; echo exit {code} >>"$FASTGAN_STATUS"; exit 1'
        assert keep_going(folder, command) == (code, 1)


def test_gives_up_without_progress(tmp_path):
    """So many attempts in a row without a new checkpoint, the same one included, and it ends with 69."""
    assert keep_going(tmp_path, 'echo exit 69 >>"$FASTGAN_STATUS"; exit 1') == (69, 3)
    assert keep_going(tmp_path, 'echo checkpoint 100 >>"$FASTGAN_STATUS"; exit 1') == (69, 3 + 3)


def test_goes_on_while_there_is_progress(tmp_path):
    """Each new checkpoint renews its patience."""
    command = '[ "$n" = 8 ] && exit 0; echo checkpoint $((n * 100)) >>"$FASTGAN_STATUS"; exit 1'
    assert keep_going(tmp_path, command, tries=2) == (0, 8)


def test_sigterm_is_handed_on():
    """SIGTERM reaches the command, and nothing is run again."""
    process = subprocess.Popen([SCRIPT, "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75


@pytest.mark.parametrize("command", ["exec sleep 60", "exit 1"])
def test_port_of_another_program_ends_it(command):
    """Whether the launcher waits, as on most hosts, or fails at once, as on the main one: a line and 2, within 30 s."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        words = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        environment = os.environ | {"KEEP_GOING_LOOK_S": "0.5", "PYTHON": sys.executable}
        began = time.monotonic()
        answer = subprocess.run(
            [SCRIPT, "sh", "-c", command, "launcher", *words],
            env=environment,
            timeout=90,
            check=False,
            capture_output=True,
            text=True,
        )
    assert answer.returncode == 2 and f"another program has 127.0.0.1:{port}" in answer.stderr
    assert answer.stderr.count("error:") == 1 and time.monotonic() - began < 30


def test_port_of_a_launch_is_nobody_elses():
    """A port at which nothing listens, or a launch's own store, is not taken; nor is one that isn't named."""
    store = TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
    for words in (["--main_process_port", str(store.port)], ["--main-process-port=9"], []):
        assert (
            consistency.port_taken(["accelerate", "launch", "--main_process_ip", "127.0.0.1", *words, "x.py"]) is None
        )
    assert consistency.port_taken(["fastgan", "train"]) is None
