"""`--tracker`: what the trackers are given, and that none of them holds a run up."""

import base64
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking
from conftest import refusal
from PIL import Image

from fastgan import cli
from fastgan.config import Config, flat
from fastgan.monitor import trackers
from fastgan.runs.rows import read_rows
from fastgan.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
RUN = (
    "train",
    "--preset",
    "debug",
    "--eval-every",
    "0",
    "--health-every",
    "0",
    "--batch-size",
    "32",
    "--log-every",
    "32",
)
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


class Fake:
    """A tracker that keeps all that it is given; `fault` is called with what it is asked to do."""

    sessions: list["Fake"]
    fault: Callable[[str], object]

    def __init__(self, place: trackers.Place) -> None:
        self.place, self.number = place, place.run_id or f"number {len(Fake.sessions)}"
        self.settings: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[int, str, np.ndarray]] = []
        self.has_finished = False
        Fake.sessions.append(self)

    @property
    def tracker(self) -> str:
        return self.number

    def start(self) -> None:
        Fake.fault("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        Fake.fault("log")
        self.rows.append({"images_seen": step} | values)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        Fake.fault("picture")
        self.pictures.append((step, name, np.asarray(image)))

    def finish(self) -> None:
        Fake.fault("finish")
        self.has_finished = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Fake]:
    """Stands for wandb, and for mlflow; all runs are made in an empty folder."""
    Fake.sessions, Fake.fault = [], lambda what: None
    service = trackers.Service(lambda place: {"place": place}, str, Fake.picture)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(trackers.SERVICES, name, service)
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(trackers, "installed", lambda: ["wandb", "mlflow"])
    monkeypatch.chdir(tmp_path)
    return Fake


# Which


def test_what_can_be_chosen(fake: type[Fake], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no tracker, or not installed, is refused in one line that says what to give, before there is a run."""
    for args, words in (
        (["--tracker", "wandb", "wand"], ["'wand'", "wandb, mlflow, aim, comet_ml", "swanlab"]),
        (["--tracker", "tensorboard", "--dry-run"], ["'tensorboard'", "wandb, mlflow"]),
        (["--tracker", "aim"], ["pip install 'aim<4'"]),
        (["--tracker", "swanlab", "--dry-run"], ["pip install swanlab"]),
    ):
        assert cli.main([*RUN, "--run-dir", "run", "--images", "64", *args]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not Path("run").exists() and fake.sessions == []


def test_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where wandb or mlflow is missing, the line names our extra."""
    monkeypatch.setattr(tracking, "_available_trackers", [])
    for name in ("wandb", "mlflow"):
        assert f"pip install 'fastgan[{name}]'" in refusal(lambda name=name: trackers.check([name]))


def test_names_are_accelerates() -> None:
    """Each name is one by which Accelerate knows a class, and none of its others is left out but TensorBoard's."""
    assert set(trackers.choices()) == set(tracking.LOGGER_TYPE_TO_CLASS) - {"tensorboard"}


# What they get


def test_they_get_what_tensorboard_gets(fake: type[Fake]) -> None:
    """All rows and pictures, by the same names and images seen, and once all settings; a second session goes on with
    the tracker's run, also where it has others beside it."""
    assert cli.main([*RUN, "--run-dir", "runs/mine", "--images", "64", "--tracker", "wandb"]) == 0
    more = ["--tracker", "mlflow", "wandb", "--tracker-project", "other"]
    assert cli.main([*RUN, "--run-dir", "runs/mine", "--images", "128", *more]) == 0
    first, *others = fake.sessions
    (second,) = (session for session in others if session.number == first.number)
    (new,) = (session for session in others if session.number != first.number)
    assert first.place == ("fastgan", "mine", Path("runs/mine").resolve(), None)
    assert (second.place.project, second.place.run_id) == ("other", first.number)
    folder = RunFolder(Path("runs/mine"))
    rows = [row for row in read_rows(folder.log) + read_rows(folder.performance) if len(row) > 1]
    assert len(first.rows) >= 4 and new.rows == second.rows
    assert sorted(map(json.dumps, first.rows + second.rows)) == sorted(map(json.dumps, rows))
    for session, grids in ((first, (0, 64)), (second, (128,))):
        assert [step for step, name, _ in session.pictures if name == "samples"] == list(grids)
        assert {name for _, name, _ in session.pictures} == {"samples", "real_and_fake", "walk"}
        for step, name, pixels in session.pictures:
            if name == "samples":
                with Image.open(folder.grids / f"{step:012d}.png") as image:
                    assert np.array_equal(np.asarray(image), pixels)
        assert session.has_finished
    assert first.settings.keys() == flat(Config()).keys() and second.settings == {} and new.settings["images"] == 128
    assert first.settings["batch_size"] == 32 and first.settings["image_size"] == "(28, 28)"


# What fails


@pytest.mark.parametrize("fails_at", ["start", "log", "picture", "finish"])
def test_one_that_fails(fails_at: str, tmp_path: Path, fake: type[Fake]) -> None:
    """It is reported in one line, once, and is given nothing any more; the next session tries again."""

    def fault(what: str) -> None:
        if what == fails_at:
            raise ConnectionError("no network\nand a second line")

    fake.fault = fault  # type: ignore[assignment]
    said = log_three(tmp_path)
    assert len(said) == 1 and said[0].startswith("wandb failed") and "(ConnectionError: no network)" in said[0]
    assert len(fake.sessions[0].rows) == {"start": 0, "log": 0, "picture": 1, "finish": 3}[fails_at]
    fake.fault = lambda what: None  # type: ignore[assignment]
    assert log_three(tmp_path) == [] and len(fake.sessions[1].rows) == 3


def log_three(path: Path) -> list[str]:
    """Give a tracker three rows and as many pictures; returns what it says."""
    said: list[str] = []
    tracker = trackers.Tracker("wandb", RunFolder(path), Config(), said.append)
    for step in range(3):
        tracker.log(step, {"loss/G": 1.0})
        tracker.picture(step, "samples", PNG)
    trackers.close([tracker], in_haste=False)
    return said


def test_run_goes_on(fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose one tracker fails and whose other never answers ends as without them, a limited time later."""
    monkeypatch.setattr(trackers, "END_S", 0.2)
    release = threading.Event()

    def fault(what: str) -> None:
        if threading.current_thread().name == "wandb":
            raise ConnectionError("no network")
        release.wait(60)

    fake.fault = fault  # type: ignore[assignment]
    began = time.monotonic()
    assert cli.main([*RUN, "--run-dir", "run", "--images", "64", "--tracker", "wandb", "mlflow"]) == 0
    assert time.monotonic() - began < 50
    release.set()
    said = capsys.readouterr().out
    assert said.count("wandb failed") == 1 and "done: 64 images" in said.split("it isn't done in time")[1]
    assert read_rows(Path("run/log.jsonl"))[-1]["images_seen"] == 64


def test_one_that_is_slow(tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow tracker can't take is dropped, pictures before rows; that is said once, and at the end how much."""
    monkeypatch.setattr(trackers, "MAX_WAITING", 6)
    monkeypatch.setattr(trackers, "MAX_PICTURES", 3)
    release, said = threading.Event(), []
    fake.fault = lambda what: release.wait(60)  # type: ignore[assignment]
    tracker = trackers.Tracker("wandb", RunFolder(tmp_path), Config(), said.append)
    for step in range(10):
        tracker.log(step, {"loss/G": 1.0})
        tracker.picture(step, "samples", PNG)
    release.set()
    trackers.close([tracker], in_haste=False)
    (session,) = fake.sessions
    assert [row["images_seen"] for row in session.rows] == [0, 1, 2, 3, 4]
    assert [step for step, _, _ in session.pictures] == [0]
    assert len(said) == 2 and "wandb is too slow" in said[0] and said[1] == "wandb misses 14 rows and pictures"


# The real ones


def records(path: Path) -> list[Any]:
    """The records of a run file of wandb's: protobufs in LevelDB's log format, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, whole, found = path.read_bytes(), 7, b"", []
    while offset + 7 <= len(data):
        if (left := 2**15 - offset % 2**15) < 7:  # the end of a block
            offset += left
            continue
        length, kind = struct.unpack("<HB", data[offset + 4 : offset + 7])
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # the whole, or its last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


@pytest.mark.slow
def test_wandb(tmp_path: Path) -> None:
    """Offline, wandb's file has figures, pictures and settings, and a second session's is of the same run; of two
    processes one logs."""
    pytest.importorskip("wandb")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    two = ("-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "2", "--num_machines", "1")
    for images, launcher in ((64, (*two, "--main_process_port", "0")), (128, ())):
        command = [sys.executable, *launcher, "-m", "fastgan.cli", *RUN, "--run-dir", "mine", "--tracker", "wandb"]
        command += ["--images", str(images)]
        answer = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert f"wandb: {tmp_path}/mine/wandb/offline-run-" in answer.stdout
    first, second = (records(path) for path in sorted((tmp_path / "mine" / "wandb").glob("offline-run-*/*.wandb")))
    runs = [record.run for record in (*first, *second) if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {(tmp_path / "mine" / "trackers" / "wandb").read_text()}
    assert {(run.project, run.display_name) for run in runs} == {("fastgan", "mine")}
    settings = {
        item.key: item.value_json for record in first for item in (*record.run.config.update, *record.config.update)
    }
    assert settings["batch_size"] == "32" and settings["loss"] == '"nonsaturating"'
    for session, step in ((first, 64), (second, 128)):
        rows = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in session
            if record.WhichOneof("record_type") == "history"
        ]
        (row,) = (row for row in rows if row["_step"] == step)
        (wanted,) = (row for row in read_rows(tmp_path / "mine" / "log.jsonl") if row["images_seen"] == step)
        assert row["loss/G"] == wanted["loss/G"] and "speed/images_per_s" in row
        shown = tmp_path.glob(f"mine/wandb/*/files/{row['samples.filenames'][0]}")
        with Image.open(next(shown)) as image, Image.open(tmp_path / f"mine/grids/{step:012d}.png") as grid:
            assert np.array_equal(np.asarray(image), np.asarray(grid))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's store has figures, pictures and settings of both sessions in one run, which has ended."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = RunFolder(tmp_path / "mine")
    for images in ("64", "128"):
        assert cli.main([*RUN, "--run-dir", str(folder.path), "--images", images, "--tracker", "mlflow"]) == 0
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'fastgan'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder.trackers / "mlflow").read_text()
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params.keys() == flat(Config()).keys() and run.data.params["batch_size"] == "32"
    wanted = [(row["images_seen"], row["loss/G"]) for row in read_rows(folder.log)]
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss/G")] == wanted
    assert "speed/images_per_s" in run.data.metrics
    shown = Path(run.info.artifact_uri.removeprefix("file://")).glob("images/samples*.png")
    assert sorted(int(path.name.split("step+")[1].split("+")[0]) for path in shown) == [0, 64, 128]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where MLflow's server doesn't answer, or nobody is logged in at wandb, the run ends all the same, and says so."""
    for package in ("mlflow", "wandb"):
        pytest.importorskip(package)
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment |= {"WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = ["--run-dir", str(tmp_path / "run"), "--images", "64", "--tracker", "mlflow", "wandb"]
    assert cli.main([*RUN, *args]) == 0
    said = capsys.readouterr().out
    assert said.count("failed, and is off") == 2 and "wandb login" in said, said
