"""launch/keep_going: runs a command again as long as that helps."""

import os
import signal
import subprocess
from pathlib import Path

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


def test_launcher_that_starts_nothing_is_told_of():
    """While a launcher waits for the main host, a line says what to look at; where a process has started, none does."""
    environment = os.environ | {"KEEP_GOING_HINT_S": "0.2", "KEEP_GOING_PAUSE_S": "0"}
    for command, told in (("sleep 1", True), ('echo start >>"$FASTGAN_STATUS"; sleep 1', False)):
        answer = subprocess.run(
            [SCRIPT, "sh", "-c", command], env=environment, timeout=60, check=True, capture_output=True, text=True
        )
        assert ("is --main_process_port free" in answer.stderr) == told
