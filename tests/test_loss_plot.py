import pytest
import torch
from conftest import EAGER
from PIL import Image

from fastgan.commands import train
from fastgan.monitor import loss_plot, progress
from fastgan.runs.rows import read_rows
from fastgan.training.losses import LOSSES

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")


def row(images_seen, g_loss, d_loss=1.0):
    return {"images_seen": images_seen, "loss/G": g_loss, "loss/D": d_loss}


def test_rows_weigh_as_many_images_as_they_stand_for():
    """The mean of an epoch weighs each row by the images since the row before; other rows and epochs don't count."""
    rows = [row(60, 9.0), row(100, 9.0), row(160, 1.0, 3.0), {"images_seen": 180, "metrics/fid": 5.0}, row(200, 2.0)]
    assert loss_plot.last_epoch(rows, 100) == pytest.approx((0.6 * 1 + 0.4 * 2, 0.6 * 3 + 0.4 * 1))
    assert loss_plot.last_epoch(rows[:2], 100) == pytest.approx((9.0, 1.0))


def test_batches_across_an_epochs_end_count_where_they_began():
    """A row that ends a little beyond the epoch is the old epoch's last."""
    rows = [row(64, 1.0), row(128, 2.0), row(192, 3.0), row(256, 4.0)]
    assert loss_plot.last_epoch(rows[:2], 100)[0] == pytest.approx(1.5)
    assert loss_plot.last_epoch(rows, 100)[0] == pytest.approx(3.5)


def test_every_run_leaves_a_picture(debug_run):
    """A finished run has both losses' curves as a PNG."""
    with Image.open(debug_run / "losses.png") as image:
        image.verify()
        assert image.format == "PNG" and min(image.size) > 300


def test_without_rows_there_is_no_picture(tmp_path):
    """Nothing is written where nothing is known."""
    loss_plot.save(tmp_path / "losses.png", [], 100, "nothing", "nonsaturating")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", loss_plot.CHANCE_LEVEL)
def test_chance_level(name):
    """The line stands where D's loss is if it holds every image for as likely real as not."""
    value, _ = loss_plot.CHANCE_LEVEL[name]
    undecided = torch.zeros(4)
    assert float(LOSSES[name].d(undecided, undecided).mean()) == pytest.approx(value)


@pytest.mark.slow
def test_epochs_on_the_console(tmp_path, capsys, monkeypatch):
    """A run that shows epochs prints, for each, its number, finished bar, time and the weighted means of its rows."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1e9)  # no lines before the end, however slow the machine
    run_dir = tmp_path / "run"
    args = ["--preset", "debug", "--console", "epochs", "--epochs", "2", "--log-every", "300"]
    assert train.main([*args, "--run-dir", str(run_dir)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("data: ", "done: "))]
    assert [lines[0], lines[4]] == ["Epoch : 1", "Epoch : 2"] and len(lines) == 8
    assert lines[1].startswith("Training: 100%|██████████| 32/32 [") and lines[2].startswith("Time:")
    rows = [row for row in read_rows(run_dir / "log.jsonl") if "loss/G" in row]
    assert [row["images_seen"] for row in rows] == [320, 608, 928, 1000, 1224, 1512, 1800, 2000]
    for place, number in ((3, 4), (7, 8)):
        g_loss, d_loss = loss_plot.last_epoch(rows[:number], 1000)
        assert lines[place] == f"Generator Loss: {g_loss} Discriminator Loss: {d_loss}"


@pytest.mark.slow
def test_a_resumed_epoch_has_the_means_of_one_never_stopped(tmp_path, capsys):
    """Rows and means of an epoch that was stopped in its middle are those of an epoch that wasn't."""
    args = ["--preset", "debug", "--console", "epochs", "--epochs", "1", "--log-every", "300", *EAGER, "--run-dir"]
    assert train.main([*args, str(tmp_path / "straight")]) == 0
    wanted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Generator Loss")]
    stopped = tmp_path / "stopped"
    assert train.main([*args, str(stopped), "--minutes", "0.00001"]) == 0
    assert (stopped / "losses.png").exists() == (stopped / "log.jsonl").exists()
    assert train.main([*args, str(stopped)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("Generator Loss")] == wanted
    assert (stopped / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()
