import contextlib
import html
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

from fastgan import cli, presets
from fastgan.commands.report import charts, embed, record
from fastgan.commands.report.charts import Line, Plot
from fastgan.commands.report.page import plots_of
from fastgan.monitor import chart_groups
from fastgan.runs.rows import append_row
from fastgan.runs.run_folder import RunFolder

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
VOID = {"meta", "link", "img", "input", "br"}


def write_page(*args: str) -> str:
    """The page that `fastgan report` writes with `--out` as its last argument."""
    assert cli.main(["report", *args]) == 0
    return Path(args[-1]).read_text()


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["report", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    return shown.err.removeprefix("fastgan: error: ").strip()


@pytest.fixture
def run(debug_run: Path, tmp_path: Path) -> Path:
    """A copy of a small finished run, with more rows, grids and what `fastgan evaluate` measured."""
    path = tmp_path / "a run"
    shutil.copytree(debug_run, path)
    folder = RunFolder(path)
    for images_seen in range(96, 3200, 32):
        values = {"loss/G": 1 + 1 / images_seen, "loss/D": 1.2, "penalty/r1": 10.0 ** -(images_seen // 800)}
        append_row(folder.log, {"images_seen": images_seen} | values)
        append_row(folder.performance, {"images_seen": images_seen, "speed/images_per_s": 100.0})
    random = np.random.default_rng(0)
    for images_seen in range(100, 3200, 100):
        pixels = random.integers(0, 256, (60, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder.grids / f"{images_seen:012d}.png")
    protocol = {"extractor": "digits", "num_fakes": 10_000, "num_reals": 60_000}
    protocol["transform"] = "a sentence that is wider than any telephone, said of pixels that go into a network"
    session = {"fastgan": "0.1", "commit": "abc", "packages": {"torch": "2"}}
    metrics = {"fd_digits": 0.125, "precision_digits": 0.75}
    row = {"images_seen": 3200, "which": {}, "metrics": metrics, "protocol": protocol, "session": session}
    append_row(folder.evaluation, row)
    append_row(folder.sessions, _session("/opt/bin/fastgan train --preset debug"))
    return path


class Balance(HTMLParser):
    """Which tags are open, whether each was closed in its place, and what stands in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        self.images += [given] if tag == "img" else []
        self.addresses += [value for name in ("src", "href") if (value := given.get(name)) is not None]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    found = Balance()
    found.feed(page)
    assert found.open == []
    return found


# The page


def test_page_of_a_run(run: Path, tmp_path: Path) -> None:
    """A page has the run's figures, protocol, settings, sessions, commands and pictures."""
    page = write_page(str(run), "--out", str(tmp_path / "page.html"))
    parsed(page)
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for word in ("a run", "debug", "fd_digits", "0.125", "60,000", "generated images", "losses of G and D", "loss/D"):
        assert word in text, word
    for command in ("fastgan sample '", "fastgan walk '", "fastgan evaluate '", "fastgan train --preset debug"):
        assert command in text, command
    assert "samples after 0 images seen" in text and "samples after 3,100 images seen" in text


def test_data_by_name(run: Path, tmp_path: Path) -> None:
    """The data set is named without its path, which is in the settings; in the protocol each thing has one name."""
    config = json.loads((run / "config.json").read_text())
    config["data"]["data"] = "/somewhere/deep/my faces"
    (run / "config.json").write_text(json.dumps(config))
    page = write_page(str(run), "--out", str(tmp_path / "page.html"))
    assert "<dd>my faces, 28x28 gray</dd>" in page and "/somewhere/deep/my faces" in page
    names = [name for found in record.Record(run).measurements() for name in found.protocol]
    assert "generated images" in names and len({name.replace("-", " ") for name in names}) == len(set(names))


def test_full_measures_in_the_table(run: Path) -> None:
    """A full measure that was taken once has no curve; taken twice it has."""
    append_row(RunFolder(run).log, {"images_seen": 3200, "full/fd_digits": 0.5})
    assert not any("Full" in group for group, _ in plots_of([record.Record(run)]))
    append_row(RunFolder(run).log, {"images_seen": 6400, "full/fd_digits": 0.4})
    assert any("Full" in group for group, _ in plots_of([record.Record(run)]))


def test_page_stands_alone(run: Path, tmp_path: Path) -> None:
    """A page names nothing outside of itself; each anchor that it links to is there once; each image has a text."""
    found = parsed(write_page(str(run), "--out", str(tmp_path / "page.html")))
    assert found.images and all(image["alt"] for image in found.images)
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert len(set(found.ids)) == len(found.ids)
    assert {address[1:] for address in found.addresses if address.startswith("#")} <= set(found.ids)


def test_page_beside_the_run(run: Path) -> None:
    """Without --out a run's page is in its folder."""
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_what_a_run_says_is_escaped(run: Path, tmp_path: Path) -> None:
    """Names, commands and settings can't become part of the page's own text."""
    evil = tmp_path / '<script>alert("1")<&\'>'
    run.rename(evil)
    append_row(RunFolder(evil).sessions, _session("fastgan train --data '<img src=x>'"))
    page = write_page(str(evil), "--out", str(tmp_path / "page.html"))
    parsed(page)
    assert "<script>alert" not in page and "<img src=x>" not in page
    assert "&lt;script&gt;alert" in page and "&lt;img src=x&gt;" in page


def _session(command: str) -> dict:
    packages = {"torch": "2"}
    return {
        "fastgan": "0.1",
        "commit": None,
        "python": "3.11",
        "packages": packages,
        "machine": "m",
        "command": command,
        "started": "2026-01-01T00:00:00+00:00",
    }


def test_comparison(run: Path, debug_run: Path, tmp_path: Path) -> None:
    """Several runs are side by side: what differs in their settings, their metrics, their curves on common axes."""
    other = tmp_path / "other"
    shutil.copytree(debug_run, other)
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["g_lr"] = 0.005
    (other / "config.json").write_text(json.dumps(config))
    page = write_page(str(run), str(other), "--out", str(tmp_path / "page.html"))
    parsed(page)
    table = page[page.index("What differs") : page.index("How they stand")]
    assert "g_lr" in table and "0.005" in table and "d_lr" not in table and "images" not in table.split("Metrics")[0]
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', page)[1])  # type: ignore[index]
    losses = next(plot for plot in plots if plot["lines"][0]["points"][-1][0] == 3168)
    assert [line["name"] for line in losses["lines"]] == ["a run", "other"]


def test_runs_of_one_name(run: Path, debug_run: Path, tmp_path: Path) -> None:
    """Runs whose folders bear one name are told apart by their paths; the same folder twice is one run."""
    other = tmp_path / "elsewhere" / run.name
    shutil.copytree(debug_run, other)
    page = write_page(str(run), str(other), str(run), "--out", str(tmp_path / "page.html"))
    assert f">{other}<" in page and "<title>2 runs" in page


def test_size(run: Path, tmp_path: Path) -> None:
    """However large and many the grids, the page stays under 10 MB, with the first and the last of them."""
    random = np.random.default_rng(0)
    for images_seen in range(0, 25_000, 1_000):
        pixels = random.integers(0, 256, (600, 600, 3), np.uint8)  # noise: nothing is larger
        Image.fromarray(pixels).save(run / "grids" / f"{images_seen:012d}.png", compress_level=1)
    page = write_page(str(run), "--out", str(tmp_path / "page.html"))
    assert len(page.encode()) < 10e6
    assert page.count("24,000 images seen") >= 2 and ">0 images seen" in page


# What can't be reported


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, and one without a run, are one line."""
    assert complaint(capsys) == "fastgan report needs a run folder"
    assert "is no run folder" in complaint(capsys, str(tmp_path))


def test_empty_run(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which nothing has happened yet is one line, and no page is written."""
    shutil.copy(debug_run / "config.json", tmp_path)
    assert complaint(capsys, str(tmp_path)) == f"{tmp_path} has nothing to report yet: let it train on"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_run_with_a_start_only(debug_run: Path, tmp_path: Path) -> None:
    """A run that has its first grid and no figure yet has a page."""
    for name in ("config.json", "sessions.jsonl"):
        shutil.copy(debug_run / name, tmp_path)
    (tmp_path / "grids").mkdir()
    shutil.copy(debug_run / "grids" / "000000000000.png", tmp_path / "grids")
    page = write_page(str(tmp_path), "--out", str(tmp_path / "page.html"))
    parsed(page)
    assert "Nothing was measured" in page and "<h2>Curves" not in page


def test_unknown_metric(run: Path, debug_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A metric that no run has is named, with those there are."""
    text = complaint(capsys, str(run), "--metric", "fid")
    assert text.startswith("metric is 'fid': choose from fd_digits, precision_digits")


def test_metric(run: Path, tmp_path: Path) -> None:
    """The wanted metric heads the page."""
    page = write_page(str(run), "--metric", "precision_digits", "--out", str(tmp_path / "page.html"))
    assert "<dt>precision_digits</dt><dd>0.75</dd>" in page


def test_damaged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged rows are counted and passed over; a picture that can't be read is named; of a last row that was cut off
    nothing is said.
    """
    with (run / "log.jsonl").open("a") as file:
        file.write('{"images_seen": 3')
    page = write_page(str(run), "--out", str(tmp_path / "page.html"))
    capsys.readouterr()
    broken = [b"{half\n", b"7\n", b"\xff\n", b"[" * 10**5 + b"\n", b"null\n"]
    for name in ("log", "performance", "evaluation", "metrics", "sessions"):
        file = run / f"{name}.jsonl"
        whole = file.read_bytes().rpartition(b"\n")[0] + b"\n" if file.exists() else b""
        file.write_bytes(b"".join(broken) + whole)
    assert write_page(str(run), "--out", str(tmp_path / "page.html")) == page
    assert capsys.readouterr().out.count("5 damaged rows are passed over") == 5
    odd = [{}, {"started": 3, "packages": [], "command": "a 'b"}, {"images_seen": "many", "metrics": 3}]
    odd += [
        {"images_seen": 32, "metrics": {"fd_digits": "low", "kid_digits": 1.0}, "protocol": 7, "which": 1, "session": 2}
    ]
    odd += [{"images_seen": 40, "loss/D": "low", "loss/G": None, "health/diversity": 1.0, "speed/images_per_s": [1]}]
    for name in ("log", "performance", "evaluation", "metrics", "sessions"):
        for row in odd:
            append_row(run / f"{name}.jsonl", row)
    write_page(str(run), "--out", str(tmp_path / "page.html"))
    assert cli.main(["doctor", str(run)]) in (0, 1)
    assert cli.main(["sample", str(run), "--seeds", "0", "--out", str(tmp_path)]) == 0
    (run / "log.jsonl").unlink()
    (run / "grids" / "000000000000.png").write_bytes(b"half")
    assert cli.main(["report", str(run)]) == 2 and "error: cannot read" in capsys.readouterr().err


def test_no_room(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page that can't be written is one line."""
    (tmp_path / "file").write_text("")
    assert "give another --out" in complaint(capsys, str(run), "--out", str(tmp_path / "file" / "page.html"))


# Curves


def test_thinned() -> None:
    """A long course keeps its ends and every extreme; what isn't finite is left out."""
    points = [(float(k), float(k % 7)) for k in range(10_000)]
    points[4567] = (4567.0, 100.0)
    points[7000] = (7000.0, float("nan"))
    kept = charts.thinned(points)
    assert len(kept) <= charts.MAX_POINTS + 4
    assert kept[0] == points[0] and kept[-1] == points[-1] and (4567.0, 100.0) in kept
    assert kept == sorted(kept) and charts.thinned(points[:50]) == points[:50]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-3.0, 5.0], [1e-5, 1e3], [0.98, 1.0], [5.0, 5.0], [1e9, 1.1e9], [-1e-9, 1e-9]]
)
def test_axes(values: list[float]) -> None:
    """Whatever the values, each point lies in the frame, and so do at least two ticks."""
    line = Line("a", [(float(k), value) for k, value in enumerate(values)], 0)
    plot = Plot("title", [line], len(values))
    assert all(0 <= plot.y(value) <= 1 for value in values)
    assert len(plot.y_ticks) >= 2 and all(-1e-6 <= tick.place <= 100 + 1e-6 for tick in plot.y_ticks)
    assert len({tick.label for tick in plot.y_ticks}) == len(plot.y_ticks)
    assert re.fullmatch(r"M[-\d.]+ [-\d.]+(h0|(L[-\d.]+ [-\d.]+)+)", plot.path(line))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (9999, "9999"), (250_000, "250k"), (1.5e6, "1.5M"), (-20_000, "-20k")]
)
def test_short(value: float, text: str) -> None:
    """Numbers on axes are short."""
    assert charts.short(value) == text


def test_layout() -> None:
    """Each figure that a run has is on one chart, losses together, logits together."""
    names = ["loss/G", "loss/D", "logits/real", "logits/fake", "penalty/r1", "penalty/share", "grad_norm/D"]
    names += [f"metrics/{name}" for name in ("fd_digits", "fid_inception", "kid_digits", "precision_digits", "modes")]
    names += ["health/diversity", "health/new", "speed/images_per_s", "speed/grid_s", "speed/checkpoint_pause_ms"]
    names += ["speed/checkpoint_write_s", "augment/p", "metrics/kl", "metrics/confident_digits"]
    found = [on_it for parts in chart_groups.groups_of(names).values() for _, on_it in parts]
    assert sorted(name for on_it in found for name in on_it) == sorted(names)
    assert ["loss/G", "loss/D"] in found and ["logits/real", "logits/fake"] in found


# Words


@pytest.mark.parametrize(
    ("recorded", "typed"),
    [
        ("fastgan/train.py --preset debug", "accelerate launch fastgan/train.py --preset debug"),
        ("/opt/bin/fastgan train --data 'my photos'", "fastgan train --data 'my photos'"),
        ("something else", "something else"),
    ],
)
def test_command(recorded: str, typed: str) -> None:
    """The recorded command is shown as it is typed again."""
    assert record.as_typed(recorded) == typed


@pytest.mark.parametrize(
    "recorded", ["fastgan train", "fastgan train --run-dir old/place --seed 0", "fastgan train --run-dir=old --seed 0"]
)
def test_command_of_a_run_that_has_moved(recorded: str, run: Path, tmp_path: Path) -> None:
    """To train on, the page names the folder where the run is, not where it was."""
    session = json.loads((run / "sessions.jsonl").read_text().splitlines()[-1]) | {"command": recorded}
    (run / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    page = html.unescape(write_page(str(run), "--out", str(tmp_path / "page.html")))
    seed = " --seed 0" if "seed" in recorded else ""
    assert f"fastgan train --run-dir {shlex.quote(str(run))}{seed}" in page


def test_preset_that_is_gone(run: Path, tmp_path: Path) -> None:
    """A run of a preset that this version doesn't have has a page."""
    config = json.loads((run / "config.json").read_text()) | {"preset": "old"}
    (run / "config.json").write_text(json.dumps(config))
    assert "old" not in presets.PRESETS
    parsed(write_page(str(run), "--out", str(tmp_path / "page.html")))


def test_pictures_fit(tmp_path: Path) -> None:
    """Pictures are made smaller, then fewer, until they fit; where nothing fits there are none."""
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (200, 200, 3), np.uint8)).save(paths[-1])
    alts = [path.stem for path in paths]
    sizes = [sum(len(one.src) for one in embed.fitting(paths, alts, budget)) for budget in (10**7, 300_000)]
    assert sizes[0] > sizes[1] > 0 and sizes[1] <= 300_000
    assert embed.fitting(paths, alts, 10) == [] and embed.frames(paths, lambda path: path.stem, 10) == []
    few = embed.frames(paths, lambda path: path.stem, 200_000)
    assert 0 < len(few) <= 8 and few[0].alt == "0" and few[-1].alt == "7"
    assert embed.gif(tmp_path / "none.gif", [], "", 10**6) is None
    assert embed.gif(tmp_path / "none.gif", paths, "", 10) is None


# In a browser


@needs_browser
def test_page_in_a_browser(run: Path, debug_run: Path, tmp_path: Path) -> None:
    """A page of one run, and of two, shows all images at each size, asks for nothing and says nothing on the console;
    its script shows values and frames."""
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    write_page(str(run), "--out", str(one))
    write_page(str(run), str(debug_run), "--out", str(two))
    with browser.Browser(tmp_path / "profile") as page:
        for path in (one, two):
            for size in (browser.DESKTOP, browser.PHONE):
                page.open(path.as_uri(), size, dark=size == browser.PHONE)
                assert page.ask("document.images.length") > 4 and page.ask(browser.BROKEN_IMAGES) == []
                assert page.ask("document.documentElement.scrollWidth") <= size[0]
                if path == one:  # without a move of the table
                    assert page.ask("document.querySelector('.headline td').getBoundingClientRect().right") <= size[0]
                assert all(address.startswith(("file:", "data:")) for address in page.requests)
        page.open(one.as_uri())
        shown = "document.querySelector('.frames .shown figcaption').textContent"
        assert page.ask(shown) == "3,100 images seen"
        page.ask(
            "{ const r = document.querySelector('.slider input'); r.value = 0; r.dispatchEvent(new Event('input')) }"
        )
        assert page.ask(shown) == "0 images seen"
        page.ask(
            "{ const f = document.querySelector('.frame'), b = f.getBoundingClientRect();"
            " f.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width / 2, clientY: b.top + 5})) }"
        )
        assert "images seen" in page.ask("document.querySelector('.tip').textContent")
        assert page.complaints == page.warnings == []


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    with subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < until, "TensorBoard didn't come up"
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


# All elements of a page, those in shadow roots too.
DEEP = """(() => {
  const found = [];
  const walk = root => root.querySelectorAll('*').forEach(one => {
    found.push(one);
    if (one.shadowRoot) walk(one.shadowRoot);
  });
  walk(document);
  return found;
})()"""


@needs_browser
def test_tensorboard_in_a_browser(debug_run: Path, tmp_path: Path) -> None:
    """TensorBoard shows the custom layout, the pictures and the settings, without an error on its console."""
    with tensorboard(debug_run / "tensorboard") as address, browser.Browser(tmp_path / "profile") as page:
        for tab, text in (("custom_scalars", "losses of G and D"), ("hparams", "batch_size")):
            page.open(f"{address}#{tab}")
            page.wait_for(f"{DEEP}.some(one => one.shadowRoot ? false : one.textContent.includes('{text}'))", 60)
            page.open("about:blank")
        page.open(f"{address}#images")
        images = f"{DEEP}.filter(one => one.tagName === 'IMG' && one.naturalWidth > 50).length"
        page.wait_for(f"{images} >= 1", 60)
        assert page.complaints == []
