"""What the doctor says: of rows written for the purpose, of short runs made to fail, and of the installation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from fastgan import cli, presets
from fastgan.commands import doctor, installation, train
from fastgan.commands.doctor import Diagnosis, RunHistory, diagnose
from fastgan.commands.installation import Line
from fastgan.config import Config
from fastgan.data import named
from fastgan.runs.rows import append_row
from fastgan.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")

WELL = {
    "health/d_accuracy_pairs": 0.7,
    "health/logit_gap": 0.3,
    "health/moved_gap": 0.1,
    "health/diversity": 0.9,
    "health/nearest_real": 1.2,
    "health/saturation": 0.3,
    "health/data_spread": 0.5,
}
D_WINS = {"health/d_accuracy_pairs": 1.0, "loss/D": 0.01}


def course_of(
    *changes: dict[str, float], config: Config | None = None, count: int = 16, num_images: int = 60_000, **fields: Any
) -> RunHistory:
    """A run of so many rows of health, 2,000 images apart, healthy but for the changes."""
    config = config or presets.get("mnist28-fast")
    log: list[dict[str, Any]] = []
    for images_seen in range(2000, 2000 * count + 1, 2000):
        row = {"loss/D": 1.3, "loss/G": 0.8, "grad_norm/D": 2.0, **WELL}
        for change in changes:
            row |= change
        row["health/passes"] = images_seen / num_images
        log.append({"images_seen": images_seen} | {k: v for k, v in row.items() if k.startswith("health/")})
        log.append({"images_seen": images_seen} | {k: v for k, v in row.items() if not k.startswith("health/")})
    return RunHistory(config, log, fields.get("performance", []))


def faults(course: RunHistory) -> list[str]:
    return [finding.fault for finding in diagnose(course).findings]


def with_rates(g_lr: float, d_lr: float) -> Config:
    config = presets.get("mnist28-fast")
    return replace(config, optimizer=replace(config.optimizer, g_lr=g_lr, d_lr=d_lr))


# Rows


def test_healthy() -> None:
    """Figures as healthy runs have them are healthy, with evidence and no remedy."""
    found = diagnose(course_of())
    assert found.verdict == "healthy" and found.evidence and not found.remedy and not found.findings


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"loss/D": 10.0}, "diverging"),
        ({"loss/D": float("nan")}, "diverging"),
        ({"health/diversity": 0.01}, "collapse"),
        ({"health/data_spread": 0.0}, "collapse"),
        ({"health/held_out_gap": 0.8}, "D overfits"),
        (D_WINS, "D far too strong"),
        ({"health/label_real": 0.5, "health/label_fake": 0.52}, "broken labels"),
    ],
)
def test_faults(change: dict[str, float], fault: str) -> None:
    """Each fault by itself is named, with evidence that has a figure, and a remedy."""
    found = diagnose(course_of(change))
    assert found.verdict == fault and faults(course_of(change)) == [fault]
    assert any(character.isdigit() for line in found.evidence for character in line) and found.remedy


def test_divergence_that_ended_the_run() -> None:
    """A run that ended as its losses were no numbers diverged, however few rows it has."""
    performance = [{"images_seen": 640, "health/diverged": 1.0}]
    for count in (0, 1, 16):
        found = diagnose(course_of(count=count, performance=performance))
        assert found.verdict == "diverging" and "640" in found.evidence[0]


def test_learned_by_heart_without_held_out_images() -> None:
    """Copies moved by a pixel stand in for held-out images, where each image was seen often; else they don't count."""
    change = {"health/moved_gap": 0.9}
    assert faults(course_of(change, num_images=64)) == ["D overfits"]
    assert faults(course_of(change)) == []
    assert faults(course_of(change, {"health/held_out_gap": 0.1}, num_images=64)) == []


def test_copies_of_training_images() -> None:
    """Samples that are training images are reported where the set is small enough to have been looked at whole."""
    change = {"health/nearest_real": 0.2}
    assert faults(course_of(change, num_images=500)) == ["D overfits"]
    assert faults(course_of(change)) == []


def test_several_faults() -> None:
    """The most serious comes first; where D's steps are by far the larger ones, what G does is D's doing."""
    both = ({"health/diversity": 0.01}, D_WINS)
    assert faults(course_of(*both)) == ["collapse", "D far too strong"]
    assert faults(course_of(*both, config=with_rates(1e-4, 1e-3))) == ["D far too strong", "collapse"]


def test_d_too_weak() -> None:
    """A D that does worse than chance with by far the smaller steps is too weak."""
    change = {"health/d_accuracy_pairs": 0.3}
    assert faults(course_of(change, config=with_rates(1e-2, 1e-4))) == ["D too weak"]
    assert faults(course_of(change)) == []


@pytest.mark.parametrize("loss", ["relativistic", "hinge", "least-squares", "nonsaturating"])
def test_losses_have_scales_of_their_own(loss: str) -> None:
    """D's loss is judged by what it is where D can't tell; that of the Wasserstein loss isn't."""
    config = presets.get("mnist28")
    config = replace(config, objective=replace(config.objective, loss=loss))
    undecided = doctor.CHANCE_LEVEL[loss]
    assert faults(course_of({"loss/D": undecided}, config=config)) == []
    assert faults(course_of({"loss/D": 4 * undecided}, config=config)) == ["diverging"]
    assert faults(course_of(D_WINS | {"loss/D": undecided / 10}, config=config)) == ["D far too strong"]
    wasserstein = replace(config, objective=replace(config.objective, loss="wasserstein"))
    assert faults(course_of({"loss/D": 4 * undecided}, config=wasserstein)) == []


def test_too_short() -> None:
    """Before enough rows nothing is judged; before enough images faults are, but not good health, nor labels."""
    labels = {"health/label_real": 0.5, "health/label_fake": 0.5}
    assert diagnose(course_of(D_WINS, count=3)).verdict == "too short to tell"
    assert diagnose(course_of(D_WINS, count=4)).verdict == "D far too strong"
    assert diagnose(course_of(labels, count=9)).verdict == "too short to tell"
    assert diagnose(course_of(labels, count=11)).verdict == "broken labels"
    assert diagnose(course_of(count=11)).verdict == "healthy"


def test_the_past_is_past() -> None:
    """A run that has got over a fault is judged by how it is now."""
    course = course_of()
    for row in course.health[:8]:
        row["health/diversity"] = 0.0
    assert diagnose(course).verdict == "healthy"


# The command


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no run is a user's mistake, in one line."""
    assert cli.main(["doctor", str(tmp_path / "nowhere")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "is no run folder" in shown.err


def test_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without any rows yet is one line, and no fault."""
    RunFolder(tmp_path / "run").open(presets.debug())
    assert cli.main(["doctor", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.count("\n") == 1
    assert "too short to tell" in shown.out and "no rows yet" in shown.out


@pytest.mark.parametrize(("change", "code"), [({}, 0), (D_WINS, 1)])
def test_exit_code(change: dict[str, float], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault is exit code 1 and printed with its evidence and remedy; good health is 0."""
    folder = RunFolder(tmp_path / "run")
    folder.open(presets.get("mnist28-fast"))
    course = course_of(change)
    for row in (*course.health, *course.log):
        append_row(folder.log, row)
    assert cli.main(["doctor", str(folder.path)]) == code
    shown = capsys.readouterr().out
    assert ("evidence:" in shown and "remedy:" in shown) == bool(code)
    assert ("D far too strong" in shown) == bool(code) and ("healthy" in shown) != bool(code)


# Runs made to fail

SMALL = ("--preset", "mnist28-fast", "--data", "toy", "--num-classes", "0", "--stages", "16", "8", "--threads", "1")
QUIET = ("--eval-every", "0", "--grid-every", "100000", "--checkpoint-every", "100000", "--log-every", "500")
QUIET += ("--health-every", "2000")


def diagnosis_of(folder: Path, *options: str) -> Diagnosis:
    """What the doctor says of a run with these options."""
    train.main([*SMALL, *QUIET, "--run-dir", str(folder), *options])
    run = RunFolder(folder)
    return diagnose(RunHistory(run.read_config(), doctor.read_figures(run.log), doctor.read_figures(run.performance)))


def put(folder: Path, images: Tensor, labels: list[int] | None = None) -> str:
    """A folder of uint8 images [N, 1, H, W], in a folder for each class where there are labels."""
    for number, image in enumerate(images):
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{number:04}.png")
    return str(folder)


def crowded(count: int) -> Tensor:
    """Images of five toy shapes each: no two are much alike."""
    return named.load("toy").images[: 5 * count].view(count, 5, 1, 28, 28).amax(1)


def rates(g_lr: str, d_lr: str) -> tuple[str, ...]:
    return ("--g-lr", g_lr, "--d-lr", d_lr)


@pytest.mark.slow
def test_run_with_too_high_a_learning_rate(tmp_path: Path) -> None:
    """Fifty times the learning rate is divergence, of a seed whose run has losses far above those of chance."""
    options = (*rates("0.1", "0.1"), "--images", "8200", "--seed", "1")
    assert diagnosis_of(tmp_path / "run", *options).verdict == "diverging"


@pytest.mark.slow
def test_run_with_far_too_strong_a_d(tmp_path: Path) -> None:
    """A D that learns two hundred times as fast as G, without a penalty, is far too strong."""
    options = (*rates("2e-5", "4e-3"), "--penalty", "none", "--images", "8200")
    assert diagnosis_of(tmp_path / "run", *options).verdict == "D far too strong"


@pytest.mark.slow
def test_run_that_collapses(tmp_path: Path) -> None:
    """Large steps with momentum and without a penalty make G's images identical: collapse."""
    options = ("--loss", "least-squares", "--penalty", "none", "--betas", "0.9", "0.999", "--images", "8200")
    assert diagnosis_of(tmp_path / "run", *rates("2e-2", "1e-3"), *options).verdict == "collapse"


@pytest.mark.slow
def test_run_on_identical_images(tmp_path: Path) -> None:
    """A data set of one image many times is told as what it is."""
    data = put(tmp_path / "data", named.load("toy").images[:1].expand(256, 1, 28, 28))
    found = diagnosis_of(tmp_path / "run", "--data", data, "--images", "8200")
    assert found.verdict == "collapse" and "all training images" in found.evidence[0]


@pytest.mark.slow
def test_run_on_64_images(tmp_path: Path) -> None:
    """D memorises 64 images: it overfits."""
    data = put(tmp_path / "data", crowded(64))
    options = ("--data", data, "--d-width", "4", "--penalty", "none", *rates("4e-3", "4e-3"), "--images", "14000")
    assert diagnosis_of(tmp_path / "run", *options).verdict == "D overfits"


def with_classes(folder: Path, mix_up: Callable[[list[int]], list[int]]) -> tuple[str, ...]:
    toy = named.load("toy")
    assert toy.labels is not None
    return ("--data", put(folder, toy.images, mix_up(toy.labels.tolist())), "--num-classes", "2", "--images", "20100")


@pytest.mark.slow
def test_run_with_broken_labels(tmp_path: Path) -> None:
    """Classes that have nothing to do with the images are found out."""
    options = with_classes(tmp_path / "data", lambda labels: [(5 * n * n + n // 3) % 2 for n in range(len(labels))])
    assert diagnosis_of(tmp_path / "run", *options).verdict == "broken labels"


def test_run_that_is_too_short(tmp_path: Path) -> None:
    """A run of a few thousand images is too short to tell."""
    assert diagnosis_of(tmp_path / "run", "--images", "3000").verdict == "too short to tell"


@pytest.mark.slow
def test_healthy_run(tmp_path: Path) -> None:
    """The same settings with true labels, and none of the faults, are healthy."""
    assert diagnosis_of(tmp_path / "run", *with_classes(tmp_path / "data", list)).verdict == "healthy"


# The installation


@pytest.mark.slow
def test_installation(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a run, each thing that training needs has a line, and all is well where these tests run."""
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("python", "torch", "accelerate", "cpu", "torch.compile", "DALI", "deepspeed", "digits weights"):
        assert f" {name} " in shown
    assert shown.splitlines()[-1] == "training works here"


def test_broken_installation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What training needs and isn't there is exit code 1, named at the end; what it does without isn't."""
    monkeypatch.setattr(installation, "lines", lambda: [Line("torch", "ok", "2"), Line("DALI", "missing", "no")])
    assert cli.main(["doctor"]) == 0
    monkeypatch.setattr(installation, "lines", lambda: [Line("torch", "broken", "isn't installed", "install it")])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "training won't work here: torch"


def test_library_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that fails is a line of its own; the others are still there."""

    def _devices() -> list[Line]:
        raise OSError("libcuda.so:\n no such file")

    monkeypatch.setattr(installation, "_devices", _devices)
    monkeypatch.setattr(installation, "_deepspeed", list)
    found = installation.lines()
    assert [(line.name, line.state) for line in found if line.state == "broken"] == [("devices", "broken")]
    assert len(found) > 8 and all("\n" not in str(line) for line in found)


@pytest.mark.parametrize("free", [1, 3])
def test_full_disk(free: int, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """A disk without room is broken, with what it takes."""
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 2**30))
    rooms = {line.name: line.state for line in installation._room()}
    assert set(rooms.values()) == {"broken" if free == 1 else "ok"}
