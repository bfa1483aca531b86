"""A run's figures and pictures for the services that people compare runs on, beside TensorBoard: `--tracker`.

Accelerate has a class for each of them. trackers/NAME in the run folder says which run a resumed session goes on with.
"""

import io
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image

from fastgan.config import Config, flat
from fastgan.errors import UserError, first_line
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.files import write_atomically

MAX_WAITING = 1_000  # rows that a slow tracker may be behind
MAX_PICTURES = 50  # what may be waiting where one more picture is still taken: those are large
END_S, HASTE_S = 30.0, 5.0  # that a session waits for its trackers, at the end and after a signal
# What they do unless the user's environment says otherwise: ask nothing at the console, leave it alone, don't report
# how they are used, and don't hold the process up at its end.
ENVIRONMENT = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "20",  # else it waits for its network for ever
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SWANLAB_INTERACTIVE": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "ITERATIVE_DO_NOT_TRACK": "1",
}


class Place(NamedTuple):
    """Where a tracker puts a run: its project, the run's name there and here, and its number if it has one yet."""

    project: str
    name: str
    path: Path
    run_id: str | None


class Service(NamedTuple):
    """What is each tracker's own: what its class is given, the number of its run, and how it shows a picture."""

    arguments: Callable[[Place], dict[str, Any]]
    run_id: Callable[[Any], str]
    picture: Callable[[Any, str, Image.Image, int], object]
    package: str = ""  # for pip, where it isn't the tracker's name
    where: Callable[[Any], str] = lambda run: ""  # to look at, where it doesn't say so itself


def _wandb(place: Place) -> dict[str, Any]:
    folder = os.environ.get("WANDB_DIR", str(place.path))
    return {"run_name": place.project, "name": place.name, "dir": folder, "id": place.run_id, "resume": "allow"}


def _mlflow(place: Place) -> dict[str, Any]:
    return {"experiment_name": place.project, "run_name": place.name, "run_id": place.run_id}


def _mlflow_picture(tracker: Any, name: str, image: Image.Image, images_seen: int) -> None:
    import mlflow

    mlflow.log_image(image, key=name, step=images_seen, synchronous=True)


def _aim(place: Place) -> dict[str, Any]:
    return {"run_name": place.name, "experiment": place.project, "run_hash": place.run_id}


def _comet(place: Place) -> dict[str, Any]:
    import comet_ml

    settings = comet_ml.ExperimentConfig(name=place.name)
    return {"run_name": place.project, "experiment_key": place.run_id, "experiment_config": settings}


def _clearml(place: Place) -> dict[str, Any]:
    """By itself it would take over an earlier task of that name, and all that TensorBoard gets."""
    names = {"run_name": place.project, "task_name": place.name}
    return names | {
        "continue_last_task": place.run_id or False,
        "reuse_last_task_id": False,
        "auto_connect_frameworks": False,
    }


def _dvclive(place: Place) -> dict[str, Any]:
    folder = place.path / "dvclive"
    return {"dir": str(folder), "dvcyaml": str(folder / "dvc.yaml"), "resume": place.run_id is not None}


def _dvclive_picture(tracker: Any, name: str, image: Image.Image, images_seen: int) -> None:
    tracker.tracker.step = images_seen
    tracker.tracker.log_image(f"{name}.png", image)


def _swanlab(place: Place) -> dict[str, Any]:
    names = {"run_name": place.project, "experiment_name": place.name, "logdir": str(place.path / "swanlog")}
    return names | {"id": place.run_id, "resume": "allow"}


def _trackio(place: Place) -> dict[str, Any]:
    resume = "never" if place.run_id is None else "allow"
    return {"run_name": place.project, "name": place.run_id or place.name, "resume": resume}


def _trackio_picture(tracker: Any, name: str, image: Image.Image, images_seen: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(image)}, step=images_seen)


def _listed(tracker: Any, name: str, image: Image.Image, images_seen: int) -> None:
    tracker.log_images({name: [image]}, step=images_seen)


def _single(tracker: Any, name: str, image: Image.Image, images_seen: int) -> None:
    tracker.log_images({name: image}, step=images_seen)


SERVICES = {
    "wandb": Service(
        _wandb, lambda run: run.id, _listed, "'fastgan[wandb]'", lambda run: run.url or str(Path(run.dir).parent)
    ),
    "mlflow": Service(_mlflow, lambda run: run.info.run_id, _mlflow_picture, "'fastgan[mlflow]'"),
    "aim": Service(_aim, lambda run: run.hash, _single, "'aim<4'"),
    "comet_ml": Service(
        _comet,
        lambda run: run.get_key(),
        lambda tracker, name, image, step: tracker.tracker.log_image(image, name=name, step=step),
    ),
    "clearml": Service(_clearml, lambda run: run.id, _single),
    "dvclive": Service(_dvclive, lambda run: "dvclive", _dvclive_picture),
    "swanlab": Service(_swanlab, lambda run: run.id, _listed),
    "trackio": Service(_trackio, lambda run: run.name, _trackio_picture),
}


def choices() -> list[str]:
    """Return the trackers that the installed Accelerate knows."""
    return [name for name in SERVICES if name in LoggerType.list()]


def installed() -> list[str]:
    """Return those whose packages are installed."""
    return [name for name in choices() if LoggerType(name) in tracking.get_available_trackers()]


def check(names: Iterable[str]) -> None:
    """Raise UserError where one of them is no tracker, or its package isn't installed."""
    for name in names:
        if name not in choices():
            raise UserError(f"tracker is {name!r}: give some of {', '.join(choices())}; TensorBoard is always written")
        if name not in installed():
            package = SERVICES[name].package or name
            raise UserError(f"tracker is {name!r}, which isn't installed: pip install {package}, or leave it out")


class Tracker:
    """One tracker of a run, from the first row on, in a thread of its own: training never waits for it.

    Where it fails it says so in one line and is off for the rest of the session; what it is too slow for is dropped.
    """

    def __init__(self, name: str, folder: RunFolder, config: Config, say: Callable[[str], None]) -> None:
        self._name, self._service, self._config, self._say = name, SERVICES[name], config, say
        self._path, self._id_file = folder.path.resolve(), folder.trackers.resolve() / name
        self._jobs: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._has_begun, self._has_failed, self._num_dropped = False, False, 0
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)

    def log(self, images_seen: int, values: dict[str, float]) -> None:
        """Have the row logged soon."""
        self._put(lambda tracker: tracker.log(values, step=images_seen), MAX_WAITING)

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        """Have the picture, a PNG's bytes, logged soon."""

        def show(tracker: Any) -> None:
            with Image.open(io.BytesIO(png)) as image:
                image.load()
                self._service.picture(tracker, name, image, images_seen)

        self._put(show, MAX_PICTURES)

    def _put(self, job: Callable[[Any], object], limit: int) -> None:
        if self._has_failed:
            return
        if not self._has_begun:
            self._has_begun = True
            self._thread.start()
        if self._jobs.qsize() < limit:
            self._jobs.put(job)
            return
        self._num_dropped += 1
        if self._num_dropped == 1:
            self._say(f"{self._name} is too slow: it misses what comes until it has caught up; TensorBoard has all")

    def _work(self) -> None:
        try:
            tracker = self._start()
            while (job := self._jobs.get()) is not None:
                job(tracker)
            tracker.finish()
        except (Exception, SystemExit) as error:  # whatever a library and its network may raise
            self._has_failed = True
            text = f"{type(error).__name__}: {first_line(error)}"
            self._say(f"{self._name} failed, and is off until the next session; TensorBoard has all ({text})")

    def _start(self) -> tracking.GeneralTracker:
        """The tracker, with the settings, in the run that an earlier session's logged into if there was one."""
        run_id = self._id_file.read_text() if self._id_file.exists() else None
        place = Place(self._config.run.tracker_project, self._path.name, self._path, run_id)
        tracker = tracking.LOGGER_TYPE_TO_CLASS[self._name](**self._service.arguments(place))
        tracker.start()
        if run_id is None:  # some refuse other values later, as a longer run's `epochs`
            tracker.store_init_configuration(plain(self._config))
            write_atomically(self._id_file, self._service.run_id(tracker.tracker).encode())
        if where := self._service.where(tracker.tracker):
            self._say(f"{self._name}: {where}")
        return tracker

    def ask_to_end(self) -> None:
        """Have it end once it has logged what it was given."""
        self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Wait for that until then, by the monotonic clock."""
        if not self._has_begun:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        is_late = self._thread.is_alive()
        missed = self._num_dropped + is_late * self._jobs.qsize()
        if missed and not self._has_failed:
            self._say(f"{self._name} misses {missed:,} rows and pictures" + ": it isn't done in time" * is_late)
        self._say = lambda text: None  # whatever it still comes to


def close(trackers: Sequence[Tracker], in_haste: bool) -> None:
    """End them all, once they have logged what they were given; what takes too long is left, and said."""
    deadline = time.monotonic() + (HASTE_S if in_haste else END_S)
    for tracker in trackers:
        tracker.ask_to_end()
    for tracker in trackers:
        tracker.join(deadline)


def plain(config: Config) -> dict[str, bool | int | float | str]:
    """Return all settings by their own names, as trackers take them."""
    return {name: value if isinstance(value, int | float) else str(value) for name, value in flat(config).items()}
