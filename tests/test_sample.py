import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import _signal_handlers_kept
from PIL import Image

import fastgan
from fastgan import cli, networks
from fastgan.commands import sample as command
from fastgan.commands import train
from fastgan.commands.sample import SampleOptions, sample
from fastgan.errors import EXIT_STOPPED, UserError
from fastgan.evaluation.sampling import CheckpointSelector, images_of, open_run, parse_seeds, to_device, weights_hash
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.run_folder import RunFolder
from fastgan.utils import pngs


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
    said = complaint(capsys, str(run_with_best), "--best")
    assert "G_ema.safetensors has changed)" in said and "leave --best out" in said
    said = complaint(capsys, str(run_with_best), "--best", "--length", "0.1")
    assert "length is 0.1: give either it or --best" in said


def test_order_of_seeds(debug_run: Path, tmp_path: Path) -> None:
    """Files and places in a grid follow the seeds in the order in which they were asked for."""
    sample(SampleOptions(debug_run, "9,2,5", tmp_path / "files", npz=tmp_path / "all.npz"))
    paths = [tmp_path / "files" / f"seed-{seed:06d}.png" for seed in (9, 2, 5)]
    with np.load(tmp_path / "all.npz") as archive:
        assert all(np.array_equal(a[:, :, 0], pixels(b)) for a, b in zip(archive["arr_0"], paths, strict=True))
    sample(SampleOptions(debug_run, "9,2,5", tmp_path / "grid", grid=True))
    shown = pixels(tmp_path / "grid" / "grid.png")
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
    """Truncated images are those of scaled latents, in files, npz and grid; a file of another truncation is made anew,
    one without is of 1; nothing else than (0, 2] is taken.
    """
    out, flags = tmp_path / "out", ("--seeds", "4,9", "--truncation", "0.5")
    whole = make(debug_run, out, "--seeds", "4,9")
    assert make(debug_run, out, "--seeds", "4,9", "--truncation", "1") == whole
    half = make(debug_run, out, *flags, "--npz", str(tmp_path / "half.npz"))
    assert half != whole and make(debug_run, out, "--seeds", "4,9") == whole
    G = fastgan.load(debug_run)
    raw = G(0.5 * G.latents([4, 9])).cpu().permute(0, 2, 3, 1).numpy()
    with np.load(tmp_path / "half.npz") as archive:
        assert np.abs((raw + 1) * 127.5 - archive["arr_0"]).max() <= 1
    make(debug_run, tmp_path / "grid", *flags, "--grid")
    assert np.abs(pixels(tmp_path / "grid" / "grid.png")[1:29, 1:29] - (raw[0, :, :, 0] + 1) * 127.5).max() <= 1
    for wrong in ("0", "-1", "2.1", "nan"):
        text = complaint(capsys, str(debug_run), "--truncation", wrong, "--out", str(tmp_path / "none"))
        assert "truncation is " in text and "give a number above 0, at most 2" in text
    assert not (tmp_path / "none").exists()


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


# Many images: as they come, and on after a stop


def test_memory_of_a_batch(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images are made, those of two batches at most are in memory, and the others in their files."""
    monkeypatch.setattr(command, "BATCH_SIZE", 4)
    made: list[weakref.ref[torch.Tensor]] = []

    def make_batch(G: torch.nn.Module, seeds: list[int], *args: object) -> torch.Tensor:
        assert len(seeds) <= 4
        assert sum(batch() is not None for batch in made) <= 1
        assert len(list(tmp_path.glob("out/*.png"))) == 4 * len(made)
        images = images_of(G, seeds, *args)  # type: ignore[arg-type]
        made.append(weakref.ref(images))
        return images

    monkeypatch.setattr(command, "images_of", make_batch)
    make(debug_run, tmp_path / "out", "--seeds", "0-21", "--npz", str(tmp_path / "all.npz"))
    assert len(made) == 6


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, stop: signal.Signals | OSError) -> None:
    """The signal comes, or the error, while file `number` is written."""
    write, count = Path.write_bytes, 0

    def stopped(self: Path, data: memoryview) -> int:
        nonlocal count
        count += 1
        if count == number:
            write(self, data[:20])
            if isinstance(stop, OSError):
                raise stop
            signal.raise_signal(stop)
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_and_begun_again(
    debug_run: Path,
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    keep_signal_handlers: None,
) -> None:
    """A stop is one line and the exit code of a stop, and leaves whole files only; the same command makes the others,
    those there stay as they are, and all pixels are those of a command that wasn't stopped. Handlers are put back."""
    wanted = make(debug_run, tmp_path / "whole", "--seeds", "0-80")
    capsys.readouterr()
    out = tmp_path / "out"
    flags = ["sample", str(debug_run), "--seeds", "0-80", "--out", str(out)]
    signal.signal(number, signal.default_int_handler)  # whoever runs the tests may ignore it
    handler = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as stopping:
        stop_at(stopping, 71, number)
        assert cli.main(flags) == EXIT_STOPPED
    assert capsys.readouterr() == ("", "fastgan: stopped on request: the same command goes on or starts again\n")
    assert signal.getsignal(number) == handler
    there = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert sorted(there) == sorted(wanted)[:70]
    assert make(debug_run, out, "--seeds", "0-80") == wanted
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there


def test_full_disk(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk is one line, which says that the same command goes on; nothing half-written stays."""
    flags = [str(debug_run), "--seeds", "0-9", "--out", str(tmp_path / "out"), "--npz", str(tmp_path / "all.npz")]
    with pytest.MonkeyPatch.context() as full:
        stop_at(full, 4, OSError(errno.ENOSPC, "No space left on device"))
        assert "(No space left on device): mend that and the same command goes on" in complaint(capsys, *flags)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"seed-{seed:06d}.png" for seed in range(3)]
    (tmp_path / "all.npz").mkdir()
    assert f"cannot write into {tmp_path / 'all.npz'} (Is a directory)" in complaint(capsys, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "out"]


def test_folder_of_others(run_with_best: Path, tmp_path: Path) -> None:
    """Images of another checkpoint, cut-off ones and what a killed command left are made anew; all else is left."""
    wanted = make(run_with_best, tmp_path / "wanted", "--seeds", "0-3", "--best")
    out = tmp_path / "out"
    make(run_with_best, out, "--seeds", "0-4")
    shutil.copy(tmp_path / "wanted" / "seed-000001.png", out)
    (out / "seed-000001.png").write_bytes(wanted["seed-000001.png"][:-1])
    (out / "seed-000002.png").write_bytes(b"")
    (out / "seed-000003.png").write_text("notes")
    for name in (".seed-000002.png.partial", ".class-001-seed-000002.png.partial", ".my.partial", "my.png"):
        (out / name).write_bytes(b"mine")
    found = make(run_with_best, out, "--seeds", "0-3", "--best")
    assert {name: found[name] for name in wanted} == wanted
    assert set(found) - set(wanted) == {"seed-000004.png", ".my.partial", "my.png"}


def test_the_same_weights_computed_otherwise(debug_run: Path) -> None:
    """Images of the same weights in another precision don't pass for those that are asked for."""
    _, config, _, G = open_run(debug_run, CheckpointSelector())
    half = replace(config, networks=replace(config.networks, precision="bfloat16"))
    assert weights_hash(G, half) != weights_hash(G, config)


def test_another_class_under_the_same_name(run_with_classes: Path, tmp_path: Path) -> None:
    """A seed's image of one class isn't taken for that of another."""
    wanted = [make(run_with_classes, tmp_path / str(number), "--seeds", "5", "--class", number) for number in "01"]
    for number in "010":
        assert make(run_with_classes, tmp_path / "out", "--seeds", "5", "--class", number) == wanted[int(number)]


def test_two_at_once(debug_run: Path, tmp_path: Path, no_gpu: None) -> None:
    """Two commands that write the same files at the same time both end well, with the files of one."""
    wanted = make(debug_run, tmp_path / "whole", "--seeds", "0-40")

    def child() -> None:
        torch.set_num_threads(1)  # a fork has no other threads
        os._exit(cli.main(["sample", str(debug_run), "--seeds", "0-40", "--out", str(tmp_path / "out")]))

    both = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == wanted


def test_file_that_another_process_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process removed before it had its name is written once more."""
    replace, removed = Path.replace, list[Path]()

    def tidied(self: Path, target: Path) -> Path:
        if not removed:
            self.unlink()
            removed.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", tidied)
    pngs.save_png(tmp_path / "a.png", np.full((4, 4, 1), 7, np.uint8))
    assert removed and (pixels(tmp_path / "a.png") == 7).all()


def test_seeds_that_are_asked_for_twice(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed that is asked for more than once is one file, and counts once."""
    assert list(make(debug_run, tmp_path / "out", "--seeds", "7,7,5-7")) != []
    assert capsys.readouterr().out.startswith("3 images after 64 images seen")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"seed-00000{seed}.png" for seed in (5, 6, 7)]


def test_too_many_seeds(debug_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds whose mere numbers would fill the memory are one line."""
    assert "give at most 10,000,000" in complaint(capsys, str(debug_run), "--seeds", "0-99999999999999")


def test_npz(run_with_classes: Path, debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The npz is as ADM's: all pixels [N, H, W, C] in the order of the seeds, and their classes where there are any."""
    make(run_with_classes, tmp_path / "files", "--seeds", "9,0-70", "--npz", str(tmp_path / "a.npz"))
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive) == {"arr_0", "arr_1"}
        images, classes = archive["arr_0"], archive["arr_1"]
    order = [9, *(seed for seed in range(71) if seed != 9)]
    assert images.dtype == np.uint8 and images.shape == (71, 28, 28, 1)
    assert classes.dtype == np.int64 and classes.tolist() == [seed % 2 for seed in order]
    for image, seed in zip(images, order, strict=True):
        assert np.array_equal(image[:, :, 0], pixels(tmp_path / "files" / f"seed-{seed:06d}.png"))
    make(debug_run, tmp_path / "none", "--seeds", "0-2", "--npz", str(tmp_path / "new" / "b.npz"))
    with np.load(tmp_path / "new" / "b.npz") as archive:
        assert set(archive) == {"arr_0"} and archive["arr_0"].shape == (3, 28, 28, 1)
    text = complaint(capsys, str(debug_run), "--grid", "--npz", str(tmp_path / "c.npz"))
    assert "leave --grid out" in text and not (tmp_path / "c.npz").exists()


@pytest.mark.slow
def test_two_processes_share_the_seeds(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have one's files and npz, and say so once."""
    wanted = make(debug_run, tmp_path / "one", "--seeds", "0-199", "--npz", str(tmp_path / "one.npz"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    flags = [str(debug_run), "--seeds", "0-199", "--out", str(tmp_path / "two"), "--npz", str(tmp_path / "two.npz")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    answer = subprocess.run(
        [*launch, "-m", "fastgan.cli", "sample", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("200 images after 64 images seen") == 1
    found = {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert found.keys() == wanted.keys()
    for name in wanted:  # other numbers of threads round otherwise
        assert np.abs(pixels(tmp_path / "one" / name) - pixels(tmp_path / "two" / name)).max() <= 1
    if torch.get_num_threads() == 1:
        assert found == wanted and (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
