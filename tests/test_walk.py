import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, refusal
from PIL import Image, ImageSequence

import fastgan
from fastgan import cli
from fastgan.commands.walk import WalkOptions, gif_durations_ms
from fastgan.evaluation import interpolation
from fastgan.evaluation.fidelity import latents
from fastgan.evaluation.interpolation import Walk, slerp
from fastgan.evaluation.sampling import images_of, open_run
from fastgan.utils.pictures import named_rows, side_by_side
from fastgan.utils.pngs import grid


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["walk", *args]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    return shown.err.removeprefix("fastgan: error: ").strip()


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(image)]


# The way


def test_slerp_ends() -> None:
    """The way begins at the first latent and ends at the second."""
    a, b = latents(torch.arange(5), 64), latents(torch.arange(5, 10), 64)
    path = slerp(a, b, torch.tensor([0.0, 1.0]))
    assert torch.equal(path[0], a) and torch.allclose(path[1], b, atol=1e-6)


def test_slerp_stays_on_the_sphere() -> None:
    """Between latents of one length all have that length, at even angles; a straight line would leave the sphere."""
    a, b = (torch.nn.functional.normalize(latents(torch.tensor([seed]), 64)) for seed in (1, 2))
    path = slerp(a, b, torch.linspace(0, 1, 9))[:, 0].double()
    assert torch.allclose(path.norm(dim=1), torch.ones(9, dtype=torch.double), atol=1e-6)
    angles = (path[1:] * path[:-1]).sum(1).acos()
    assert torch.allclose(angles, angles[0].expand(8), atol=1e-4)
    assert ((a + b) / 2).norm() < 0.9


@pytest.mark.parametrize("sign", [1.0, -1.0, 1 + 1e-9])
def test_slerp_without_an_arc(sign: float) -> None:
    """Equal and opposite latents are joined all the same, by finite ones."""
    a = latents(torch.tensor([3]), 16)
    path = slerp(a, sign * a, torch.tensor([0.0, 0.5, 1.0]))
    assert path.isfinite().all() and torch.allclose(path[0], a) and torch.allclose(path[2], sign * a)


def test_a_walk_passes_its_seeds_and_closes() -> None:
    """Every so many frames the latents are a seed's; from the last seed the way leads to the first; the steps there
    are as long as the others."""
    found = [z for z, _ in Walk([3, 7, 5], 4, []).steps(32)]
    assert len(found) == 12 == len(Walk([3, 7, 5], 4, []))
    for place, seed in enumerate([3, 7, 5]):
        assert torch.equal(found[4 * place], latents(torch.tensor([seed]), 32))
    lengths = [float((b - a).norm()) for a, b in zip(found, [*found[1:], found[0]], strict=True)]
    assert max(lengths) < 2 * min(lengths)


def test_walks_side_by_side_are_different() -> None:
    """Walk k passes the seeds shifted by k times their span, so that no two share a latent."""
    z, _ = next(iter(Walk([2, 5], 1, [], count=4).steps(8)))
    assert torch.equal(z, latents(torch.tensor([2, 6, 10, 14]), 8))


def test_classes_of_walks() -> None:
    """Several walks have the classes in turn and keep them; a single one changes them from seed to seed."""
    several = [labels.tolist() for _, labels in Walk([0, 1], 2, [4, 7], count=4).steps(8) if labels is not None]
    assert several == [[4, 7, 4, 7]] * 4
    single = [labels.tolist() for _, labels in Walk([0, 1, 2], 2, [4, 7]).steps(8) if labels is not None]
    assert single == [[4], [4], [7], [7], [4], [4]]


@pytest.mark.parametrize("fps", [1, 7, 24, 30, 50])
def test_gif_durations(fps: int) -> None:
    """Frames last whole hundredths of a second, and all together as long as they should."""
    times = gif_durations_ms(100, fps)
    assert len(times) == 100 and all(time % 10 == 0 and time >= 10 for time in times)
    assert abs(sum(times) - 1000 * 100 / fps) <= 10


# The command


def test_gif(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The frame at a seed shows that seed's images, as `fastgan sample` makes them; the same walk twice is one file."""
    args = ["walk", str(debug_run), "--seeds", "0-2", "--frames", "3", "--grid", "2", "--fps", "25"]
    paths = [tmp_path / "new" / name for name in ("a.gif", "b.gif")]
    for path in paths:
        assert cli.main([*args, "--out", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert capsys.readouterr().out.startswith("4 walks, 9 frames, 0.4 s after 64 images seen: ")
    shown = frames(paths[0])
    assert len(shown) == 9
    _, config, _, G = open_run(debug_run)
    G.to(DEVICE)
    wanted = grid(images_of(G, [1, 4, 7, 10], config.networks.z_dim, DEVICE), 2)[:, :, 0]
    scale = shown[3].shape[0] // wanted.shape[0]
    assert np.abs(shown[3][::scale, ::scale].astype(int) - wanted).max() <= 2
    with Image.open(paths[0]) as image:
        assert image.info["loop"] == 0
        assert {frame.info["duration"] for frame in ImageSequence.Iterator(image)} == {40}


def test_truncation(debug_run: Path, tmp_path: Path) -> None:
    """A truncated walk passes its seeds' truncated images, as a file and from Python."""
    flags = ["--seeds", "4,9", "--frames", "1", "--grid", "1", "--truncation", "0.5", "--out", str(tmp_path / "a.gif")]
    assert cli.main(["walk", str(debug_run), *flags]) == 0
    G = fastgan.load(debug_run)
    wanted = np.pad(G.sample([4, 9], truncation=0.5)[:, :, :, 0], ((0, 0), (1, 1), (1, 1)))  # with a grid's lines
    for frame, way, image in zip(frames(tmp_path / "a.gif"), G.walk([4, 9], 1, truncation=0.5), wanted, strict=True):
        scale = frame.shape[0] // image.shape[0]
        assert np.abs(frame[::scale, ::scale].astype(int) - image).max() <= 2
        assert np.abs(way[:, :, 0].astype(int) - image).max() <= 1


@pytest.mark.parametrize("per_batch", [1, 2, 3])
def test_batches_do_not_show(debug_run: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int) -> None:
    """However many frames go through G together, each is itself."""
    _, config, _, G = open_run(debug_run)
    G.to(DEVICE)
    way = Walk([0, 1], 3, [], count=4)
    whole = list(interpolation.pictures(way, G, config.networks.z_dim, DEVICE))
    monkeypatch.setattr(interpolation, "BATCH_SIZE", 4 * per_batch)
    parts = list(interpolation.pictures(way, G, config.networks.z_dim, DEVICE))
    assert len(parts) == len(whole) == len(way)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(whole, parts, strict=True)) <= 1


def test_strip(debug_run: Path) -> None:
    """A strip's rows begin and end at the images of their seeds."""
    _, config, _, G = open_run(debug_run)
    G.to(DEVICE)
    with torch.inference_mode():
        steps = interpolation.strip(G, 2, 5, config.networks.z_dim, None, DEVICE)
    ends = images_of(G, [0, 1, 2, 3], config.networks.z_dim, DEVICE)
    assert (steps.cpu()[[0, 4, 5, 9]].int() - ends.int()).abs().max() <= 1


def test_video(debug_run: Path, tmp_path: Path) -> None:
    """An .mp4 has all frames, of even width and height."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "walk.mp4"
    flags = ["--seeds", "0-1", "--frames", "5", "--grid", "1", "--out", str(out)]
    assert cli.main(["walk", str(debug_run), *flags]) == 0
    reader = imageio_ffmpeg.read_frames(str(out))
    width, height = next(reader)["size"]
    assert width % 2 == height % 2 == 0 and len(list(reader)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["walk.mp4"]


def test_video_without_its_library(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without imageio-ffmpeg an .mp4 is refused in one line that says what to install, before anything is read."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    out = tmp_path / "walk.mp4"
    assert cli.main(["walk", str(debug_run), "--out", str(out)]) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'fastgan[video]'" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "5"], "seeds is '5': a walk needs two"),
        (["--seeds", "5-"], "seeds is '5-'"),
        (["--seeds", "0,9223372036854775807"], "larger ones than there are"),
        (["--frames", "0"], "frames is 0"),
        (["--grid", "0"], "grid is 0"),
        (["--fps", "60"], "fps is 60: browsers show at most 50"),
        (["--class", "1"], "class is 1: the run has no classes"),
        (["--out", "walk.avi"], "out is walk.avi: give a name that ends in .gif or .mp4"),
    ],
)
def test_mistakes(
    debug_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    """What can't be walked is one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert words in complaint(capsys, str(debug_run), *flags)
    assert list(tmp_path.iterdir()) == []


def test_no_run(tmp_path: Path, debug_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a run, a run without a checkpoint and a file that can't be made are one line each."""
    assert "is no run folder" in complaint(capsys, str(tmp_path))
    shutil.copy(debug_run / "config.json", tmp_path)
    assert "has no checkpoint yet" in complaint(capsys, str(tmp_path))
    out = tmp_path / "config.json" / "walk.gif"
    assert "cannot write" in complaint(capsys, str(debug_run), "--out", str(out))


def test_a_video_may_have_more_frames_a_second() -> None:
    """The limit of GIFs isn't that of videos."""
    assert WalkOptions(Path("run"), fps=60, out=Path("a.mp4")).fps == 60
    assert "fps" in refusal(lambda: WalkOptions(Path("run"), fps=60))


# Pictures with words


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_side_by_side(channels: int) -> None:
    """Two pictures stand beside each other, enlarged without blur, under their names."""
    left, right = (np.full((30, 40, channels), value, np.uint8) for value in (90, 160))
    shown = side_by_side([("real", left), ("generated", right)])
    assert shown.shape[2] == channels and shown.dtype == np.uint8
    assert (shown[-1, :360, 0] == 90).all() and (shown[-1, -360:, 0] == 160).all()
    words = shown[: shown.shape[0] - 270, :, 0]
    assert words.min() < 100 and words.max() == 255
    assert shown.shape[1] == 360 + 6 + 360


def test_named_rows() -> None:
    """Each row has its name to its left."""
    pixels = np.repeat(np.arange(60, 180, 40, np.uint8), 20)[:, None, None].repeat(60, 1)
    shown = named_rows(["0", "1", "22"], pixels)
    left = shown.shape[1] - 360
    assert left > 10 and shown.shape[0] == 360
    for row, value in enumerate((60, 100, 140)):
        part = shown[120 * row : 120 * row + 120]
        assert (part[:, left:] == value).all() and part[:, :left].min() == 0 and part[:, :left].max() == 255
