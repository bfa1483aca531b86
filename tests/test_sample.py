from pathlib import Path

import numpy as np
import pytest
from conftest import _signal_handlers_kept
from PIL import Image

from fastgan import cli, networks, train
from fastgan.commands.sample import SampleOptions, sample
from fastgan.errors import UserError
from fastgan.evaluation.sampling import CheckpointSelector, images_of, open_run, parse_seeds, to_device
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.run_folder import RunFolder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def make(run: Path, out: Path, *flags: str) -> dict[str, bytes]:
    """The files that `fastgan sample` makes, by name."""
    assert cli.main(["sample", str(run), "--out", str(out), *flags]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on standard error with which `fastgan sample` ends; its exit code is 2."""
    assert cli.main(["sample", *args]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    return shown.err


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5-5", [5]),
        ("1,5,8-11", [1, 5, 8, 9, 10, 11]),
        ("8-9,1", [8, 9, 1]),
        ("3,3", [3, 3]),
        (" 1 , 2-3 ", [1, 2, 3]),
        ("007", [7]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    """Numbers and ranges are what they say, ends included, in the order in which they stand."""
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "1-", "-1", "3-1", "1-2-3", "1.5", "1 2", "1;2", "0x10", "1,-2"])
def test_bad_seeds(text: str) -> None:
    """Anything else is refused in one line with the text and an example."""
    with pytest.raises(UserError) as caught:
        parse_seeds(text)
    assert str(caught.value).startswith(f"seeds is {text!r}: ") and "0-63" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_same_seeds_same_bytes(debug_run: Path, tmp_path: Path) -> None:
    """The same seeds give the same files twice, byte for byte; other seeds give other images."""
    first = make(debug_run, tmp_path / "a", "--seeds", "0-5")
    assert make(debug_run, tmp_path / "b", "--seeds", "0-5") == first
    assert set(first) == {f"seed-{seed:06d}.png" for seed in range(6)}
    assert len(set(first.values())) == 6


def test_image_of_a_seed(debug_run: Path, tmp_path: Path) -> None:
    """A seed's image is the run's generator's, in evaluation mode, whatever other seeds it is asked with."""
    make(debug_run, tmp_path / "many", "--seeds", "0-70")
    make(debug_run, tmp_path / "few", "--seeds", "66,3")
    _, config, _, G = open_run(debug_run)
    device = to_device()
    for seed in (3, 66):
        image = pixels(tmp_path / "few" / f"seed-{seed:06d}.png")
        assert image.shape == (28, 28) and np.ptp(image) > 0
        assert np.abs(image - pixels(tmp_path / "many" / f"seed-{seed:06d}.png")).max() <= 1  # a sum's rounding
        direct = images_of(G.to(device), [seed], config.networks.z_dim, device)[0, 0].numpy().astype(int)
        assert np.abs(image - direct).max() <= 1


def test_the_averaged_generator_of_the_newest_checkpoint(debug_run: Path, tmp_path: Path) -> None:
    """Images are those of G_ema in the newest checkpoint, not of G, nor of an older checkpoint."""
    tensors = open_run(debug_run)[2].tensors
    changed = {name: -value if name.endswith("weight") else value for name, value in tensors["G_ema"].items()}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((debug_run / "config.json").read_bytes())
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(tensors, {"images_seen": 64})
    checkpoints.save(tensors | {"G_ema": changed}, {"images_seen": 128})
    make(tmp_path / "run", tmp_path / "out", "--seeds", "5")
    G, _ = networks.build(RunFolder(debug_run).read_config())
    G.load_state_dict(changed)
    device = to_device()
    wanted = images_of(G.eval().to(device), [5], 100, device)[0, 0].numpy().astype(int)
    assert np.abs(pixels(tmp_path / "out" / "seed-000005.png") - wanted).max() <= 1
    make(debug_run, tmp_path / "before", "--seeds", "5")
    assert np.abs(pixels(tmp_path / "before" / "seed-000005.png") - wanted).max() > 1


@pytest.fixture
def run_with_best(debug_run: Path, tmp_path: Path) -> Path:
    """The run of `debug_run`, its newest checkpoint and, in best/, one whose G is another."""
    tensors = open_run(debug_run)[2].tensors
    changed = {name: -value if name.endswith("weight") else value for name, value in tensors["G_ema"].items()}
    run = tmp_path / "best run"
    run.mkdir()
    (run / "config.json").write_bytes((debug_run / "config.json").read_bytes())
    Checkpoints(run / "checkpoints").save(tensors, {"images_seen": 128})
    Checkpoints(run / BEST, keep=1).save(tensors | {"G_ema": changed}, {"images_seen": 64})
    return run


def test_best_checkpoint(run_with_best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--best` takes the best checkpoint instead of the newest, in `sample` and `walk`, and says of which place."""
    newest = make(run_with_best, tmp_path / "newest", "--seeds", "5")
    best = make(run_with_best, tmp_path / "best", "--seeds", "5", "--best")
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 images after 64 images seen")
    assert newest.keys() == best.keys() and newest != best
    snapshot, G = open_run(run_with_best, CheckpointSelector(best=True))[2:]
    assert snapshot.state["images_seen"] == 64
    wanted = images_of(G.to(to_device()), [5], 100, to_device())[0, 0].numpy().astype(int)
    assert np.abs(pixels(tmp_path / "best" / "seed-000005.png") - wanted).max() <= 1
    flags = ["--frames", "2", "--seeds", "0-1", "--grid", "1", "--out", str(tmp_path / "walk.gif")]
    assert cli.main(["walk", str(run_with_best), *flags, "--best"]) == 0
    assert "after 64 images seen" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["sample", "walk", "evaluate"])
def test_no_best_checkpoint(debug_run: Path, verb: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--best` of a run that kept none is one line, which says how to get one; nothing is made."""
    assert cli.main([verb, str(debug_run), "--best"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no best checkpoint; train with --best-by METRIC" in said
    assert not list(here.iterdir())


def test_best_that_cannot_be(run_with_best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged best checkpoint, and `--best` with a length, are one line each."""
    (path,) = Checkpoints(run_with_best / BEST).paths()
    (path / "G_ema.safetensors").write_bytes(b"broken")
    assert "G_ema.safetensors has changed): leave --best out" in complaint(capsys, str(run_with_best), "--best")
    said = complaint(capsys, str(run_with_best), "--best", "--length", "0.1")
    assert "length is 0.1: give either it or --best" in said


def test_order_of_seeds(debug_run: Path, tmp_path: Path) -> None:
    """Files and places in a grid follow the seeds in the order in which they were asked for."""
    paths = sample(SampleOptions(debug_run, "9,2,5", tmp_path / "files"))
    assert [path.name for path in paths] == ["seed-000009.png", "seed-000002.png", "seed-000005.png"]
    (picture,) = sample(SampleOptions(debug_run, "9,2,5", tmp_path / "grid", grid=True))
    shown = pixels(picture)
    assert shown.shape == (60, 60)
    for path, (row, column) in zip(paths, [(0, 0), (0, 1), (1, 0)], strict=True):
        cell = shown[30 * row + 1 : 30 * row + 29, 30 * column + 1 : 30 * column + 29]
        assert np.array_equal(cell, pixels(path))
    assert not shown[30:, 30:].any()


def test_grid_file(debug_run: Path, tmp_path: Path) -> None:
    """With `--grid` there is one picture, which bears the seeds, instead of a file each."""
    made = make(debug_run, tmp_path / "out", "--seeds", "0-3,8", "--grid")
    assert list(made) == ["grid.png"]


def test_truncation(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks without a mapping can't be truncated: said in one line, and nothing is made."""
    text = complaint(capsys, str(debug_run), "--truncation", "0.7", "--out", str(tmp_path / "out"))
    assert "truncation is 0.7: this run's G has no mapping to truncate; leave it out" in text
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run_with_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 32 images with two classes."""
    folder = tmp_path_factory.mktemp("classes") / "run"
    flags = ["--preset", "debug", "--network", "dcgan", "--stages", "8", "8", "--num-classes", "2", "--eval-every", "0"]
    with _signal_handlers_kept():
        assert train.main([*flags, "--images", "32", "--run-dir", str(folder)]) == 0
    return folder


def test_grid_of_classes(run_with_classes: Path, tmp_path: Path) -> None:
    """Several classes: a row a class, a column a seed; as files, one of each seed in each class."""
    make(run_with_classes, tmp_path / "grid", "--seeds", "0-4", "--class", "0-1", "--grid")
    shown = pixels(tmp_path / "grid" / "grid.png")
    assert shown.shape == (2 * 30, 5 * 30)
    files = make(run_with_classes, tmp_path / "files", "--seeds", "0-4", "--class", "1,0")
    assert len(files) == 10
    for number in (0, 1):
        make(run_with_classes, tmp_path / str(number), "--seeds", "0-4", "--class", str(number))
        for seed in range(5):
            cell = shown[30 * number + 1 : 30 * number + 29, 30 * seed + 1 : 30 * seed + 29]
            alone = pixels(tmp_path / str(number) / f"seed-{seed:06d}.png")
            assert np.abs(cell - alone).max() <= 1
            named = pixels(tmp_path / "files" / f"class-{number:03d}-seed-{seed:06d}.png")
            assert np.abs(named - alone).max() <= 1


@pytest.mark.parametrize("classes", ["0-2", "2", "-1", "a", "1-0", ""])
def test_classes_that_are_none(
    run_with_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: str
) -> None:
    """Classes that the run doesn't have, and what are none, are one line."""
    flags = [f"--class={classes}", "--out", str(tmp_path / "out")]
    assert complaint(capsys, str(run_with_classes), *flags).startswith("fastgan: error: class is ")
    assert not (tmp_path / "out").exists()


def test_pictures_beside_the_grids(run_with_classes: Path, debug_run: Path) -> None:
    """A run with classes leaves a picture of them, a row each; every run one of real images and samples, and a walk."""
    classes = pixels(run_with_classes / "classes.png")
    assert classes.shape[0] % 2 == 0 and classes.shape[1] > classes.shape[0]
    for name in ("real_and_fake.png", "walk.png"):
        assert pixels(debug_run / name).std() > 0
    assert not (debug_run / "classes.png").exists()


def test_what_is_said(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says how many images it made, of which state of the run, and where they are."""
    make(debug_run, tmp_path / "out", "--seeds", "0-3")
    assert capsys.readouterr() == (f"4 images after 64 images seen: {tmp_path / 'out'}\n", "")


def test_the_run_stays_as_it_is(debug_run: Path, tmp_path: Path) -> None:
    """Sampling writes nothing into the run folder."""
    before = {path: path.stat().st_mtime_ns for path in debug_run.rglob("*")}
    make(debug_run, tmp_path / "out", "--seeds", "0")
    assert {path: path.stat().st_mtime_ns for path in debug_run.rglob("*")} == before


@pytest.mark.parametrize("kind", ["missing", "empty", "a file", "no JSON", "not text"])
def test_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """A folder without a run is named in one line, and no output folder is made."""
    run, out = tmp_path / "run", tmp_path / "out"
    if kind == "a file":
        run.write_text("hello")
    elif kind != "missing":
        run.mkdir()
    if kind in ("no JSON", "not text"):
        (run / "config.json").write_bytes(b"{" if kind == "no JSON" else b"\xff\xfe\x00")
    text = complaint(capsys, str(run), "--out", str(out))
    assert f"{run} is no run folder" in text and not out.exists()


def test_run_without_a_checkpoint(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that has no checkpoint yet is named in one line."""
    (tmp_path / "config.json").write_bytes((debug_run / "config.json").read_bytes())
    assert f"{tmp_path} has no checkpoint yet" in complaint(capsys, str(tmp_path))


def test_run_with_a_damaged_checkpoint(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose only checkpoint is damaged is no reason for a traceback."""
    RunFolder(tmp_path).config.write_bytes((debug_run / "config.json").read_bytes())
    (path,) = Checkpoints(debug_run / "checkpoints").paths()
    (tmp_path / "checkpoints" / path.name).mkdir(parents=True)
    assert "every checkpoint" in complaint(capsys, str(tmp_path))


@pytest.mark.parametrize("seeds", ["many", "3-1", "99999999999999999999"])
def test_bad_seeds_on_the_command_line(debug_run: Path, capsys: pytest.CaptureFixture[str], seeds: str) -> None:
    """Seeds that aren't any, or don't fit into 64 bits, are named in one line."""
    assert seeds in complaint(capsys, str(debug_run), "--seeds", seeds)


def test_output_that_cannot_be_written(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output folder that can't be made is named in one line."""
    (tmp_path / "out").write_text("a file")
    text = complaint(capsys, str(debug_run), "--seeds", "0", "--out", str(tmp_path / "out"))
    assert str(tmp_path / "out") in text and "--out" in text
