import io
from types import SimpleNamespace

import pytest

from fastgan.monitor import progress
from fastgan.monitor.progress import LINE_EVERY_S, EpochProgress, Progress, RunProgress


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def train(shown: Progress, clock: Clock, images: range, seconds: float) -> None:
    """Steps and losses at each place, `seconds` apart."""
    for images_seen in images:
        clock.now += seconds
        epoch = (images_seen - 1) // 100 + 1
        shown.step(images_seen, epoch)
        shown.losses(images_seen, epoch, 0.7, 1.4)


def test_lines(clock: Clock) -> None:
    """Where there is no terminal a line has the epoch, images, share, speed, time left and both losses."""
    out = io.StringIO()
    shown = RunProgress(0, 4000, 4, out)
    clock.now += 20
    shown.losses(1000, 1, 0.70429, 1.16449)
    assert out.getvalue() == ("epoch 1/4  1,000/4,000 images (25.0%)  50.0 img/s  left 01:00  G 0.704  D 1.164\n")


def test_no_carriage_returns(clock: Clock) -> None:
    """Where there is no terminal only whole lines are printed, without a bar's control characters."""
    out = io.StringIO()
    shown = RunProgress(0, 400, 4, out)
    train(shown, clock, range(10, 401, 10), LINE_EVERY_S)
    shown.say("a grid")
    shown.close()
    text = out.getvalue()
    assert text.count("\n") == 41 and text.endswith("a grid\n")
    assert all(character.isprintable() or character == "\n" for character in text)


def test_throttled(clock: Clock) -> None:
    """Where there is no terminal no two lines are closer than the interval, however many losses come."""
    out = io.StringIO()
    shown = RunProgress(0, 1_000_000, 4, out)
    train(shown, clock, range(1, 1001), LINE_EVERY_S / 10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 100
    assert [line.split()[2] for line in lines[:3]] == ["10/1,000,000", "20/1,000,000", "30/1,000,000"]


def test_last_line(clock: Clock) -> None:
    """Where there is no terminal the end of training is always a line, however short the time since the last."""
    out = io.StringIO()
    shown = RunProgress(0, 400, 4, out)
    train(shown, clock, range(100, 401, 100), 0.001)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("epoch 4/4  400/400 images (100.0%)") and "left 00:00" in line


def test_nothing_before_losses(clock: Clock) -> None:
    """Where there is no terminal a step by itself prints nothing."""
    out = io.StringIO()
    shown = RunProgress(0, 400, 4, out)
    clock.now += 100
    shown.step(100, 1)
    shown.close()
    assert out.getvalue() == ""


def test_speed_of_a_resumed_run(clock: Clock) -> None:
    """A resumed run's speed counts only the images since it was resumed; its time left, all that are missing."""
    out = io.StringIO()
    shown = RunProgress(1000, 2000, 4, out)
    clock.now += 20
    shown.losses(1200, 2, 0.7, 1.4)
    assert "1,200/2,000 images (60.0%)  10.0 img/s  left 01:20" in out.getvalue()


def test_say_is_not_throttled(clock: Clock) -> None:
    """What must be said is said at once, each on a line of its own."""
    out = io.StringIO()
    shown = RunProgress(0, 400, 4, out)
    shown.say("one")
    shown.say("two")
    assert out.getvalue() == "one\ntwo\n"


def test_bar(clock: Clock) -> None:
    """On a terminal a bar is drawn again and again in its place: it has the epoch, the images and both losses."""
    out = Terminal()
    shown = RunProgress(0, 400, 4, out)
    train(shown, clock, range(100, 401, 100), 1.0)
    shown.close()
    text = out.getvalue()
    assert text.count("\r") > 4 and text.count("\n") == 1
    last = text.rstrip("\n").rsplit("\r", 1)[1]
    assert "epoch 4/4" in last and "400/400" in last and "100%" in last and "G 0.700 D 1.400" in last


def test_bar_of_a_resumed_run(clock: Clock) -> None:
    """On a terminal a resumed run's bar begins where the run stands."""
    out = Terminal()
    RunProgress(100, 400, 4, out).close()
    assert "25%" in out.getvalue() and "100/400" in out.getvalue()


def test_say_above_the_bar(clock: Clock) -> None:
    """On a terminal what is said stands on a line of its own, and the bar goes on below."""
    out = Terminal()
    shown = RunProgress(0, 400, 4, out)
    train(shown, clock, range(100, 101), 1.0)
    shown.say("a grid")
    text = out.getvalue()
    assert "\ra grid\n" in text
    assert "100/400" in text.split("a grid\n")[1]
    shown.close()


def test_standard_output(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Without another place, lines go to what standard output is then, not to what it was at import."""
    RunProgress(0, 400, 4).say("here")
    assert capsys.readouterr().out == "here\n"


def steps_to(images_seen: int) -> int:
    """The steps of epochs of 100 images at batch 32, whose last batch has four."""
    return images_seen // 100 * 4 + -(-(images_seen % 100) // 32)


def encoded(encoding: str) -> io.TextIOWrapper:
    """A file of that encoding, no terminal."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def text_of(out: io.TextIOWrapper) -> str:
    out.seek(0)
    return out.read()


def one_epoch(shown: Progress, clock: Clock, places: tuple[int, ...], seconds: float = 1.0) -> None:
    """Steps and losses at each place, `seconds` apart, then the end of the epoch."""
    for images_seen in places:
        clock.now += seconds
        shown.step(images_seen, 1)
        shown.losses(images_seen, 1, 0.7, 1.4)
    shown.end_epoch(0.7042951583862305, 1.1644889116287231)


def test_epoch_lines(clock: Clock) -> None:
    """Where there is no terminal a finished epoch is four lines in the form of Keras's notebooks."""
    out = encoded("utf-8")
    shown = EpochProgress(250, 100, steps_to, out)
    shown.begin_epoch(0)
    one_epoch(shown, clock, (32, 64, 96, 100), 2.0)
    shown.begin_epoch(200)  # the last epoch is half as long
    one_epoch(shown, clock, (232, 250), 0.5)
    shown.close()
    losses = "Generator Loss: 0.7042951583862305 Discriminator Loss: 1.1644889116287231"
    assert text_of(out).splitlines() == [
        "Epoch : 1",
        "Training: 100%|██████████| 4/4 [00:08<00:00,  2.00s/it]",
        "Time:8.0",
        losses,
        "Epoch : 3",
        "Training: 100%|██████████| 2/2 [00:01<00:00,  2.00it/s]",
        "Time:1.0",
        losses,
    ]


def test_epoch_lines_every_so_often(clock: Clock) -> None:
    """Where there is no terminal a long epoch's bar is a line every so often, with the losses so far."""
    out = encoded("utf-8")
    shown = EpochProgress(100, 100, steps_to, out)
    shown.begin_epoch(0)
    one_epoch(shown, clock, (32, 64, 96, 100), LINE_EVERY_S * 0.6)
    lines = text_of(out).splitlines()
    assert lines[1] == "Training:  50%|█████     | 2/4 [00:18<00:18,  9.00s/it, G 0.700 D 1.400]"
    assert [line.split(":")[0] for line in lines] == ["Epoch ", "Training", "Training", "Time", "Generator Loss"]


def test_epoch_of_a_resumed_run(clock: Clock) -> None:
    """An epoch that goes on after a resume has its number again; speed and time are of the session's own steps."""
    out = encoded("utf-8")
    shown = EpochProgress(200, 100, steps_to, out)
    shown.begin_epoch(164)
    one_epoch(shown, clock, (196, 200))
    lines = text_of(out).splitlines()
    assert lines[:3] == ["Epoch : 2", "Training: 100%|██████████| 4/4 [00:02<00:00,  1.00it/s]", "Time:2.0"]


def test_epoch_lines_where_blocks_cannot_be_written(clock: Clock) -> None:
    """Where the console's encoding has no blocks the bar is drawn with what every encoding has."""
    out = encoded("latin-1")
    shown = EpochProgress(100, 100, steps_to, out)
    shown.begin_epoch(0)
    one_epoch(shown, clock, (100,))
    assert "Training: 100%|##########| 4/4 [" in text_of(out)


def test_epoch_bar(clock: Clock) -> None:
    """On a terminal a bar is drawn for each epoch; what remains of it has the steps and no losses of its own."""
    out = Terminal()
    shown = EpochProgress(200, 100, steps_to, out)
    for start in (0, 100):
        shown.begin_epoch(start)
        one_epoch(shown, clock, tuple(start + n for n in (32, 64, 96, 100)))
    shown.say("a word")
    lines = out.getvalue().splitlines()
    shown_last = [line.rsplit("\r", 1)[-1].strip() for line in out.getvalue().split("\n")]
    assert "G 0.700 D 1.400" in out.getvalue() and lines[0] == "Epoch : 1"
    bars = [line for line in shown_last if line.startswith("Training: 100%")]
    assert len(bars) == 2 and all("4/4" in bar and "G 0.7" not in bar for bar in bars)
    assert shown_last[-2:] == ["a word", ""]
