"""The page to play with a generator: what it shows, what it refuses, and itself in a browser."""

import base64
import contextlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import numpy as np
import psutil
import pytest
import torch
from conftest import refusal
from PIL import Image, ImageSequence
from test_api import make_run

import fastgan
from fastgan import cli
from fastgan.commands.demo import serve
from fastgan.commands.demo.images import (
    GRID_SIDE,
    IMAGE_SIDE,
    IN_TURN,
    draw_between,
    draw_grid,
    draw_moved,
    draw_one,
    make_gif,
    next_seeds,
    other_seeds,
)
from fastgan.evaluation.generator import Generator
from fastgan.evaluation.sampling import parse_seeds
from fastgan.utils.pictures import enlarge, to_image
from fastgan.utils.pngs import grid

DCGAN = {"network": "dcgan", "stages": (8, 8)}


@pytest.fixture(scope="module")
def untold(debug_run: Path) -> Generator:
    """A generator that is told nothing."""
    return fastgan.load(debug_run)


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A generator of three classes."""
    path = tmp_path_factory.mktemp("classes")
    make_run(path, num_classes=3, **DCGAN)
    return fastgan.load(path)


@pytest.fixture(scope="module")
def with_vectors(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A generator of vectors of two numbers, whose data are gone."""
    path = tmp_path_factory.mktemp("vectors")
    make_run(path, condition="vector", vector_dim=2, data="nowhere", **DCGAN)
    return fastgan.load(path)


def equal(first: Image.Image, second: Image.Image | np.ndarray) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def single(pixels: np.ndarray) -> Image.Image:
    return enlarge(to_image(pixels), IMAGE_SIDE)


# What the page shows


def test_grid(untold: Generator, with_classes: Generator, with_vectors: Generator) -> None:
    """The picture has `Generator.sample`'s images in as many columns, never more than images; the settings count."""
    images = torch.from_numpy(untold.sample([3, 1, 2], truncation=0.5)).permute(0, 3, 1, 2)
    assert equal(draw_grid(untold, "3,1-2", 2, 0.5), enlarge(to_image(grid(images, 2)), GRID_SIDE))
    assert equal(draw_grid(untold, "3,1-2", 16, 0.5), draw_grid(untold, "3,1-2", 3, 0.5))
    for other, first, second, options in (
        (with_classes, [1], [IN_TURN], {"classes": 1}),
        (with_vectors, [0.5, 1], [0, 0], {"vectors": [0.5, 1]}),
    ):
        images = torch.from_numpy(other.sample([4, 5], **options)).permute(0, 3, 1, 2)
        assert equal(draw_grid(other, "4-5", 2, 1, *first), enlarge(to_image(grid(images, 2)), GRID_SIDE))
        assert not equal(draw_grid(other, "4-5", 2, 1, *first), draw_grid(other, "4-5", 2, 1, *second))


@pytest.mark.parametrize("columns", [1, 3, 16])
def test_one_of_the_grid(with_classes: Generator, columns: int) -> None:
    """A click on any place of the picture gives the image that is seen there, and its seed and class."""
    seeds, names = [5, 9, 2, 7, 4], ["cat", "dog", "owl"]
    picture = draw_grid(with_classes, "5,9,2,7,4", columns, 1, IN_TURN)
    side = min(columns, 5)
    width, height = picture.width // side, picture.height // -(-5 // side)
    for number, seed in enumerate(seeds):
        x, y = number % side * width, number // side * height
        for place in ((x, y), (x + width - 1, y + height - 1)):
            image, name = draw_one(with_classes, "5,9,2,7,4", columns, place, 1, IN_TURN)
            assert name == f"seed {seed}, class {names[seed % 3]}"
            assert equal(image, single(with_classes.sample([seed])[0]))
    assert draw_one(with_classes, "7", 1, (0, 0), 1, 0)[1] == "seed 7, class cat"
    corner = (picture.width - 1, picture.height - 1)
    assert draw_one(with_classes, "5,9,2,7,4", columns, corner, 1, IN_TURN)[1].startswith("seed 4,")


def test_between(untold: Generator, with_classes: Generator, with_vectors: Generator) -> None:
    """The way begins at the one seed's image and ends at the other's, told the same; truncation counts."""
    for other, told, options in (
        (untold, [], {}),
        (with_classes, [1], {"classes": 1}),
        (with_vectors, [0.5, 1], {"vectors": [0.5, 1]}),
    ):
        for share, seed in ((0, 3), (1, 8)):
            shown = np.asarray(draw_between(other, "3", "8", share, 0.7, *told)).astype(int)
            wanted = np.asarray(single(other.sample([seed], truncation=0.7, **options)[0]))
            assert np.abs(shown - wanted).max() <= 1
        assert not equal(draw_between(other, "3", "8", 0.5, 1, *told), draw_between(other, "3", "8", 0, 1, *told))
    first = draw_between(with_classes, "5", "3", 0, 1, IN_TURN)
    assert np.abs(np.asarray(first).astype(int) - np.asarray(single(with_classes.sample([5])[0]))).max() <= 1


def test_gif(with_vectors: Generator, tmp_path: Path) -> None:
    """The GIF is `Generator.walk`; each is a file of its own."""
    paths = {make_gif(with_vectors, tmp_path, "0,5", frames, 0.7, 0.5, 1) for frames in (2, 2)}
    assert len(paths) == 2
    wanted = list(with_vectors.walk([0, 5], 2, vectors=[0.5, 1], truncation=0.7))
    with Image.open(paths.pop()) as image:
        shown = [np.asarray(frame.convert("L")).astype(int) for frame in ImageSequence.Iterator(image)]
    assert len(shown) == 4
    for frame, pixels in zip(shown, wanted, strict=True):
        assert np.abs(frame - np.asarray(single(pixels))).max() <= 2


def test_other_seeds(untold: Generator) -> None:
    """The buttons give as many seeds: the ones that follow, or some by chance; with their picture."""
    assert [next_seeds("0-15"), next_seeds("9,2"), next_seeds("7")] == ["16-31", "10-11", "8"]
    assert len({tuple(parse_seeds(other_seeds("3-4"))) for _ in range(3)}) > 1
    assert len(parse_seeds(other_seeds("3-6"))) == 4
    moved, picture = draw_moved(untold, next_seeds, "0-1", 2, 1)
    assert moved == "2-3" and equal(picture, draw_grid(untold, "2-3", 2, 1))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda G, folder: draw_grid(G, "5-", 4, 1, 0), "seeds is '5-': give numbers and rising ranges"),
        (lambda G, folder: draw_grid(G, "", 4, 1, 0), "seeds is ''"),
        (lambda G, folder: draw_grid(G, "9" * 5000, 4, 1, 0), "give numbers and rising ranges"),
        (lambda G, folder: draw_grid(G, "0-64", 4, 1, 0), "give at most 64 of them"),
        (lambda G, folder: draw_grid(G, "0-9999999", 4, 1, 0), "give at most 64 of them"),
        (lambda G, folder: draw_grid(G, f"{2**63}", 4, 1, 0), "seeds is '9223372036854775808'"),
        (lambda G, folder: draw_grid(G, "0", 0, 1, 0), "columns is 0: give a number from 1 to 16"),
        (lambda G, folder: draw_grid(G, "0", 4, 1.6, 0), "truncation is 1.6: give a number from 0 to 1.5"),
        (lambda G, folder: draw_grid(G, "0", 4, float("nan"), 0), "truncation is nan"),
        (lambda G, folder: draw_grid(G, "0", 4, 1, 3), "this G is told 3 classes"),
        (lambda G, folder: draw_between(G, "0-1", "1", 0.5, 1, 0), "first seed is '0-1'"),
        (lambda G, folder: draw_between(G, "0", "x", 0.5, 1, 0), "second seed is 'x'"),
        (lambda G, folder: draw_between(G, "0", "1", 2, 1, 0), "is 2: give a number from 0 to 1"),
        (lambda G, folder: make_gif(G, folder, "1", 3, 1, 0), "a walk of 1 seeds"),
        (lambda G, folder: make_gif(G, folder, "0-15", 32, 1, 0), "are 512 frames: give at most 256"),
        (lambda G, folder: make_gif(G, folder, "0-1", 3, 1, 7), "this G is told 3 classes"),
        (
            lambda G, folder: draw_moved(G, next_seeds, f"{2**63 - 1}", 4, 1, 0),
            "seeds is",
        ),
    ],
)
def test_mistakes(
    with_classes: Generator, tmp_path: Path, action: Callable[[Generator, Path], object], words: str
) -> None:
    """What can't be shown is one line, and nothing is written."""
    assert words in refusal(lambda: action(with_classes, tmp_path))
    assert list(tmp_path.iterdir()) == []


# The command


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["demo", *args]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    return shown.err


def test_without_gradio(debug_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without gradio the command is one line that says what to install."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fastgan.commands.demo.page", raising=False)
    assert "pip install 'fastgan[demo]'" in complaint(capsys, str(debug_run))
    assert "port is 0" in complaint(capsys, str(debug_run), "--port", "0")


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use, and an address of another machine, are one line; without one, the next port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port is {port}: it is in use" in refusal(lambda: serve.free_port("127.0.0.1", port))
        monkeypatch.setattr(serve, "PORTS", (port,))
        assert "are in use" in refusal(lambda: serve.free_port("127.0.0.1", None))
        monkeypatch.setattr(serve, "PORTS", range(port, port + 30))
        assert port < serve.free_port("127.0.0.1", None) < port + 30
    assert "host is 192.0.2.1" in refusal(lambda: serve.free_port("192.0.2.1", None))


# In a browser

# What a process connects to, or looks up, on standard error.
HOOK = """
import sys
def told(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print("asks", args[1] if event == "socket.connect" else args[0], file=sys.stderr, flush=True)
sys.addaudithook(told)
from fastgan import cli
sys.exit(cli.main())
"""
SHOWN = "document.querySelector('.picture img')"


@contextlib.contextmanager
def served(run: Path, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The page of a run: its address and process, which ends as it should."""
    with log.open("w") as errors:
        command = [sys.executable, "-c", HOOK, "demo", str(run)]
        environment = {**os.environ, "TMPDIR": str(log.parent)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(str(run)), log.read_text()
        yield line.split()[1], psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75
    finally:
        process.kill()


def set_field(page: browser.Browser, selector: str, value: str, *events: str) -> None:
    """Type a value, as a user does."""
    send = "".join(f"one.dispatchEvent(new Event('{event}', {{bubbles: true}}));" for event in events)
    page.ask(f"{{ const one = document.querySelector({selector!r}); one.value = {value!r}; {send} }}")


def click(page: browser.Browser, text: str, kind: str = "button") -> None:
    button = f"[...document.querySelectorAll('{kind}')].find(one => one.textContent.trim() === {text!r})"
    page.wait_for(button)
    page.ask(f"{button}.click()")


def shown(page: browser.Browser, changed_from: str | None = None) -> Image.Image:
    """The picture, once it is another."""
    page.wait_for(f"{SHOWN} && {SHOWN}.complete && {SHOWN}.src !== {changed_from or ''!r}")
    code = (
        f"fetch({SHOWN}.src).then(r => r.bytes()).then(b => btoa(Array.from(b, c => String.fromCharCode(c)).join('')))"
    )
    return Image.open(io.BytesIO(base64.b64decode(page.ask(code))))


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio isn't installed")
def test_page_in_a_browser(tmp_path: Path) -> None:
    """Two people at once each see what they ask for, on a desktop and a phone; mistakes are messages; nothing is asked
    of other hosts; an idle page costs next to nothing; a signal ends it with one line, and what it kept is gone."""
    make_run(tmp_path / "run", num_classes=3, **DCGAN)
    log, G = tmp_path / "log", fastgan.load(tmp_path / "run")
    with (
        served(tmp_path / "run", log) as (address, process),
        browser.Browser(tmp_path / "first") as desktop,
        browser.Browser(tmp_path / "second") as phone,
    ):
        desktop.open(address, browser.DESKTOP)
        phone.open(address, browser.PHONE)
        before = {}
        for page, size in ((desktop, browser.DESKTOP), (phone, browser.PHONE)):
            assert equal(shown(page), draw_grid(G, "0-15", 4, 1, IN_TURN))
            before[page] = page.ask(f"{SHOWN}.src")
            assert page.ask("document.documentElement.scrollWidth") == size[0]
        set_field(desktop, "[aria-label$='slider for Truncation']", "0.5", "input")
        set_field(phone, "textarea", "7-8", "input", "blur")
        assert equal(shown(desktop, before[desktop]), draw_grid(G, "0-15", 4, 0.5, IN_TURN))
        assert equal(shown(phone, before[phone]), draw_grid(G, "7-8", 4, 1, IN_TURN))
        desktop.ask(
            f"{{ const box = {SHOWN}.getBoundingClientRect(), clientX = box.left + 0.3 * box.width;"
            " const place = {clientX, clientY: box.top + 0.7 * box.height, bubbles: true};"
            f" {SHOWN}.dispatchEvent(new MouseEvent('click', place)) }}"
        )
        desktop.wait_for("document.body.innerText.includes('seed 9, class cat')")
        set_field(desktop, "textarea", "<b>5-", "input", "blur")
        desktop.wait_for(
            "document.querySelector('.toast-body')?.textContent.includes(\"seeds is '<b>5-': give numbers\")"
        )
        click(phone, "Walk", "[role=tab]")
        click(phone, "Make a GIF")
        phone.wait_for(f"{SHOWN} && {SHOWN}.src.endsWith('walk.gif') && {SHOWN}.naturalWidth")
        seconds = sum(process.cpu_times()[:2])
        time.sleep(4)
        assert sum(process.cpu_times()[:2]) - seconds < 0.15
        for page in (desktop, phone):
            assert page.ask(browser.BROKEN_IMAGES) == page.complaints == []
            assert all(url.startswith((address, "data:")) for url in page.requests)
        assert len(list(tmp_path.glob("fastgan-demo-*/**/*.png"))) >= 3
    assert not list(tmp_path.glob("fastgan-demo-*"))
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("fastgan: stopped on request") and all("127.0.0.1" in line for line in lines[:-1])
