import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fastgan import presets
from fastgan.commands import train
from fastgan.config import Config
from fastgan.data.images import to_bytes, to_unit_range
from fastgan.monitor import chart_groups
from fastgan.monitor.pictures import save_pictures
from fastgan.monitor.tensorboard import RunLogger
from fastgan.runs.rows import append_row, read_rows
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.pngs import grid, save_gif, save_png


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def board_at(folder: RunFolder, images_seen: int) -> RunLogger:
    return RunLogger(folder, presets.debug(), images_seen)


def images(count: int, channels: int = 1, height: int = 5, width: int = 6) -> torch.Tensor:
    """uint8 images in which no two pixels of an image are alike and none is black."""
    pixels = torch.arange(count * channels * height * width) % 251 + 1
    return pixels.to(torch.uint8).view(count, channels, height, width)


def tensorboard(folder: RunFolder) -> EventAccumulator:
    """All that TensorBoard reads from the run's folder."""
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def scalars(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard(folder).Scalars(name)]


# Rows


def test_rows(folder: RunFolder) -> None:
    """Each row is a line of JSON with the images seen; losses and speed are two files."""
    board = board_at(folder, 0)
    board.log(32, {"loss/G": 0.5})
    board.log(64, {"loss/G": 0.25, "loss/D": 1.0})
    board.log_performance(64, {"speed/images_per_s": 10.0})
    board.close()
    lines = folder.log.read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_rows(folder.log)
    assert read_rows(folder.log) == [
        {"images_seen": 32, "loss/G": 0.5},
        {"images_seen": 64, "loss/G": 0.25, "loss/D": 1.0},
    ]
    assert read_rows(folder.performance) == [{"images_seen": 64, "speed/images_per_s": 10.0}]


@pytest.mark.parametrize("cut_off", ["", '{"images_seen": 5', "{", '{"images_seen": 320, "loss/G": 0.3}'])
def test_rows_are_cut_on_resume(folder: RunFolder, cut_off: str) -> None:
    """A run that goes on from a checkpoint has no row after it, nor a last line that was cut off, in both files."""
    for path in (folder.log, folder.performance):
        for images_seen in (32, 64, 96, 128):
            append_row(path, {"images_seen": images_seen, "value": 1 / images_seen})
        with path.open("a") as file:
            file.write(cut_off)
    board = board_at(folder, 64)
    for path in (folder.log, folder.performance):
        assert read_rows(path) == [{"images_seen": number, "value": 1 / number} for number in (32, 64)]
    board.log(96, {"value": 0.0})
    board.close()
    assert folder.log.read_text().splitlines()[-1] == '{"images_seen": 96, "value": 0.0}'
    assert [row["images_seen"] for row in read_rows(folder.log)] == [32, 64, 96]


def test_rows_that_stay_are_as_they_were(folder: RunFolder) -> None:
    """A resume changes no byte of the rows that stay."""
    board = board_at(folder, 0)
    for images_seen in (32, 64):
        board.log(images_seen, {"loss/G": 1 / 3, "loss/D": 1e-17, "logits/real": -0.0})
    board.close()
    before = folder.log.read_bytes()
    board_at(folder, 64).close()
    assert folder.log.read_bytes() == before


def test_rows_are_cut_to_nothing(folder: RunFolder) -> None:
    """A run that starts from scratch keeps no row of a killed one."""
    append_row(folder.log, {"images_seen": 32})
    board_at(folder, 0).close()
    assert read_rows(folder.log) == []


def test_rows_of_no_file(folder: RunFolder) -> None:
    """A file that isn't there has no rows."""
    assert read_rows(folder.log) == []


# Grids


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (16, 4, 4)]
)
def test_grid(count: int, rows: int, columns: int, channels: int) -> None:
    """Image k stands in row k // side and column k % side, with a black line around it; places left over are black."""
    height, width = 5, 6
    batch = images(count, channels, height, width)
    picture = grid(batch)
    assert picture.shape == (rows * (height + 2), columns * (width + 2), channels) and picture.dtype == np.uint8
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        top, left = row * (height + 2), column * (width + 2)
        cell = picture[top : top + height + 2, left : left + width + 2].copy()
        if place < count:
            assert np.array_equal(cell[1:-1, 1:-1], batch[place].permute(1, 2, 0).numpy())
            cell[1:-1, 1:-1] = 0
        assert not cell.any()


def test_grid_of_channels_last_images() -> None:
    """How the images lie in memory doesn't change the picture."""
    batch = images(4, 3)
    assert np.array_equal(grid(batch.to(memory_format=torch.channels_last)), grid(batch))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png(tmp_path: Path, channels: int) -> None:
    """A PNG has the pixels it was given, gray or in colour; its folder is made, nothing else is left."""
    pixels = images(1, channels)[0].permute(1, 2, 0).numpy()
    save_png(tmp_path / "new" / "a.png", pixels)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.format == "PNG" and image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_png_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a PNG can't be written the older one is as it was, and nothing else is there."""
    save_png(tmp_path / "a.png", images(1)[0].permute(1, 2, 0).numpy())
    before = (tmp_path / "a.png").read_bytes()

    def fails(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="full"):
        save_png(tmp_path / "a.png", images(2)[1].permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_of_a_board(folder: RunFolder, channels: int) -> None:
    """A board's grid is a PNG of the images that bears the images seen, and the same picture in TensorBoard."""
    batch = images(4, channels)
    board = board_at(folder, 0)
    path = board.grid(1234, to_unit_range(batch))
    board.close()
    assert path == folder.grids / "000000001234.png"
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image).reshape(grid(batch).shape), grid(batch))
    (event,) = tensorboard(folder).Images("samples")
    assert (event.step, event.height, event.width) == (1234, *grid(batch).shape[:2])


# The GIF


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def test_gif(folder: RunFolder) -> None:
    """The GIF has a frame for every grid up to the images seen, in their order, enlarged to 360 pixels."""
    board = board_at(folder, 0)
    shades = {9: 10, 100: 200, 1000: 90, 20_000: 255}
    for images_seen in (100, 9, 20_000, 1000):  # written in another order
        board.grid(images_seen, to_unit_range(torch.full((1, 1, 6, 6), shades[images_seen], dtype=torch.uint8)))
    for upto, count in ((20_000, 4), (19_999, 3), (9, 1)):
        save_pictures(folder, presets.get("debug"), upto, 1)
        shown = frames(folder.gif)
        assert [int(frame[len(frame) // 2, len(frame) // 2, 0]) for frame in shown] == list(shades.values())[:count]
        assert {frame.shape for frame in shown} == {(360, 360, 3)}
    board.close()


def test_gif_keeps_pixels(tmp_path: Path) -> None:
    """Each pixel of a small grid becomes a square of its own shade."""
    pixels = grid(images(4))
    save_png(tmp_path / "a.png", pixels)
    save_gif(tmp_path / "a.gif", [tmp_path / "a.png"])
    (frame,) = frames(tmp_path / "a.gif")
    scale = frame.shape[0] // pixels.shape[0]
    assert scale > 1
    assert np.array_equal(frame[:, :, 0], pixels[:, :, 0].repeat(scale, axis=0).repeat(scale, axis=1))


def test_gif_times(tmp_path: Path) -> None:
    """The last frame is shown longer than the others, and the GIF starts over for ever."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        save_png(path, np.full((8, 8, 1), 80 * number, np.uint8))
    save_gif(tmp_path / "a.gif", paths)
    with Image.open(tmp_path / "a.gif") as image:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert times[0] == times[1] < times[2] and image.info["loop"] == 0


def test_gif_leaves_out_what_is_partial(folder: RunFolder) -> None:
    """A PNG that a killed process left half-written is no frame."""
    board = board_at(folder, 0)
    board.grid(5, to_unit_range(images(1)))
    (folder.grids / ".000000000004.png.partial").write_bytes(b"half")
    save_pictures(folder, presets.get("debug"), 5, 1)
    board.close()
    assert len(frames(folder.gif)) == 1


def test_gif_of_nothing(folder: RunFolder) -> None:
    """Without a grid there is no GIF."""
    board = board_at(folder, 0)
    save_pictures(folder, presets.get("debug"), 100, 1)
    board.close()
    assert not folder.gif.exists()


# TensorBoard


def test_tensorboard_scalars(folder: RunFolder) -> None:
    """TensorBoard has every figure of both files at the images seen."""
    board = board_at(folder, 0)
    for images_seen in (32, 64, 1_000_000):
        board.log(images_seen, {"loss/G": images_seen / 4, "loss/D": 0.5})
        board.log_performance(images_seen, {"speed/images_per_s": 8.0})
    board.close()
    assert scalars(folder, "loss/G") == [(32, 8.0), (64, 16.0), (1_000_000, 250_000.0)]
    assert scalars(folder, "loss/D") == [(32, 0.5), (64, 0.5), (1_000_000, 0.5)]
    assert scalars(folder, "speed/images_per_s") == [(32, 8.0), (64, 8.0), (1_000_000, 8.0)]


def test_tensorboard_has_figures_at_once(folder: RunFolder) -> None:
    """A figure can be read before the board is closed."""
    board = board_at(folder, 0)
    board.log(32, {"loss/G": 1.0})
    assert scalars(folder, "loss/G") == [(32, 1.0)]
    board.close()


def test_tensorboard_images(folder: RunFolder) -> None:
    """TensorBoard has every grid, pixel for pixel, at the images seen."""
    board = board_at(folder, 0)
    batches = {0: images(4), 500: images(4).flip(0)}
    for images_seen, batch in batches.items():
        board.grid(images_seen, to_unit_range(batch))
    board.close()
    events = tensorboard(folder).Images("samples")
    assert [event.step for event in events] == list(batches)
    for event, batch in zip(events, batches.values(), strict=True):
        (folder.path / "shown.png").write_bytes(event.encoded_image_string)
        with Image.open(folder.path / "shown.png") as image:
            assert np.array_equal(np.asarray(image.convert("L")), grid(batch)[:, :, 0])


def test_tensorboard_has_the_settings(folder: RunFolder) -> None:
    """TensorBoard shows the settings that decide what is learned, as text and as hyperparameters, in the run's own
    folder."""
    config = replace(presets.debug(), seed=1234)
    RunLogger(folder, config, 0).close()
    events = tensorboard(folder)
    (text,) = events.Tensors("config/text_summary")
    assert config.to_json() in text.tensor_proto.string_val[0].decode()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["seed"].number_value == 1234 and shown["data"].string_value == "toy"
    assert "log_every" not in shown and "run_dir" not in shown
    assert all(path.is_file() for path in folder.tensorboard.iterdir())


def test_tensorboard_has_a_layout(folder: RunFolder) -> None:
    """TensorBoard's custom page has losses together, logits together, and no chart that must stay empty."""
    config = replace(presets.debug(), run=replace(presets.debug().run, eval_every=0))
    RunLogger(folder, config, 0).close()
    (event,) = tensorboard(folder).Tensors("custom_scalars__config__")
    shown = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for group in shown.category for chart in group.chart}
    assert charts["losses of G and D"] == ["loss/"] and charts["D's logits of reals and fakes"] == ["logits/"]
    assert [group.title for group in shown.category][-1] == "Performance"
    assert "Metrics" not in [group.title for group in shown.category] and "gradient penalties" not in charts


def charts_of(config: Config) -> dict[str, list[str]]:
    """The regular expressions of TensorBoard's custom page, by group."""
    found = chart_groups.custom_scalars(config)
    return {group: [tag for _, tags in charts.values() for tag in tags] for group, charts in found.items()}


def test_layout_charts_the_full_measures() -> None:
    """Full measures have charts of their own, in the runs that have any: their images are more than the curve's."""
    config = presets.debug()
    run = replace(config.run, eval_every=64, eval_images=120, eval_curve_images=100)
    groups = charts_of(replace(config, run=run))
    for metric in ("fd_digits", "kid_digits", "recall_digits", "coverage_digits", "is_digits", "confident_digits"):
        assert sum(re.match(tag, f"full/{metric}") is not None for tag in groups["Full measures"]) == 1
        assert not any(re.match(tag, f"full/{metric}") for tag in groups["Metrics"])
    for other in (replace(run, eval_curve_images=120), replace(run, eval_every=None), replace(run, eval_every=0)):
        assert "Full measures" not in charts_of(replace(config, run=other))


def test_tensorboard_layout_is_written_once(folder: RunFolder) -> None:
    """A resumed run leaves the layout as it is: TensorBoard would take any of several."""
    for images_seen in (0, 64):
        board_at(folder, images_seen).close()
    assert len(tensorboard(folder).Tensors("custom_scalars__config__")) == 1


def test_picture(folder: RunFolder) -> None:
    """A picture is in TensorBoard each time, in the run folder the newest."""
    board = board_at(folder, 0)
    first, second = (images(1)[0].permute(1, 2, 0).numpy() + add for add in (0, 1))
    board.picture(0, "walk", first)
    board.picture(32, "walk", second)
    board.close()
    with Image.open(folder.path / "walk.png") as image:
        assert np.array_equal(np.asarray(image), second[:, :, 0])
    assert [event.step for event in tensorboard(folder).Images("walk")] == [0, 32]


def test_histograms(folder: RunFolder) -> None:
    """Each parameter has a histogram; one that is held elsewhere, or isn't finite, is left out."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
    net[1].weight.data.fill_(float("nan"))
    net.register_parameter("elsewhere", torch.nn.Parameter(torch.empty(0)))
    board = board_at(folder, 0)
    board.histograms(32, {"G_ema": net})
    board.close()
    assert sorted(tensorboard(folder).Tags()["histograms"]) == ["G_ema/0.bias", "G_ema/0.weight"]


def test_histograms_of_a_run_on_request(tmp_path: Path, keep_signal_handlers: None) -> None:
    """A run has histograms of G_ema and D where they are asked for, and learns the same."""
    logs = []
    for flags in ([], ["--histograms"]):
        run = RunFolder(tmp_path / str(len(flags)))
        args = ["--preset", "debug", "--images", "64", "--eval-every", "0", "--run-dir", str(run.path)]
        assert train.main([*args, *flags]) == 0
        sides = {name.split("/")[0] for name in tensorboard(run).Tags()["histograms"]}
        assert sides == ({"G_ema", "D"} if flags else set())
        logs.append(run.log.read_bytes())
    assert logs[0] == logs[1]


@pytest.mark.parametrize("resumed_at", [0, 64])
def test_tensorboard_on_resume(folder: RunFolder, resumed_at: int) -> None:
    """What a killed process showed after the place where the run goes on is gone; what it showed up to there stays."""
    for start, value in ((0, 1.0), (resumed_at, 2.0)):
        board = board_at(folder, start)
        for images_seen in (0, 32, 64, 96, 128):
            if images_seen > start or start == images_seen == 0:
                board.grid(images_seen, to_unit_range(images(1)))
                board.log(images_seen, {"loss/G": value})
        board.close()
    wanted = [(images_seen, 1.0 if 0 < images_seen <= resumed_at else 2.0) for images_seen in (0, 32, 64, 96, 128)]
    if resumed_at:
        wanted[0] = (0, 1.0)
    assert scalars(folder, "loss/G") == wanted
    assert [event.step for event in tensorboard(folder).Images("samples")] == [0, 32, 64, 96, 128]


def test_round_trip_of_a_grid_in_the_unit_range() -> None:
    """Images that went to [-1, 1] and back give the same grid."""
    batch = images(3, 3)
    assert np.array_equal(grid(to_bytes(to_unit_range(batch))), grid(batch))
