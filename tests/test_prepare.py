import gc
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refusal
from forks import ForkServer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pool_worker import WaitsForItsThreads, collect, dies_on_5_and_6, encode_or_die, whoami
from safetensors.numpy import load

import fastgan
from fastgan import cli
from fastgan.data import archives, labels, named
from fastgan.data.class_folders import by_folder
from fastgan.data.pixels import BadImage, decode, digest
from fastgan.data.preparation import inputs, pool, prepare, shard_writer
from fastgan.data.preparation.prepare import PrepareOptions
from fastgan.utils import workers as worker_processes


def noise(seed: int, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(out, "PNG")
    return out.getvalue()


FILES = {
    f"{kind}/{number}.png": png(noise(10 * place + number)) for place, kind in enumerate("ab") for number in range(5)
}


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zip_of(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def tar_of(path: Path, contents: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make(source: Path | str, dest: Path, size: str = "16", **options: Any) -> dict[str, Any]:
    """The index of a set prepared by one process."""
    return prepare.prepare(PrepareOptions(str(source), dest, size, **({"workers": 1} | options)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(folder: Path) -> list[tuple[np.ndarray, int | None]]:
    """Pixels and label of every image, by the offsets in members.safetensors."""
    index = json.loads((folder / "index.json").read_bytes())
    members = load((folder / "members.safetensors").read_bytes())
    images = []
    for number in range(index["num_images"]):
        shard = (folder / index["shards"][members["shard"][number]]["name"]).read_bytes()
        start = members["offset"][number]
        pixels = decode(shard[start : start + members["length"][number]], None, "crop", index["channels"])
        images.append((pixels, int(members["label"][number]) if "label" in members else None))
    return images


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "MAX_IMAGES", 4)
    monkeypatch.setattr(prepare, "BATCH_IMAGES", 3)


# The format


def test_format(tmp_path: Path, small_shards: None) -> None:
    """Shards are plain tars of numbered images and labels; the index and the offsets agree with what lies in them."""
    index = make(put(tmp_path / "in", FILES), tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        *(f"shard-00000{number}.tar" for number in range(3)),
        "members.safetensors",
        "index.json",
        ".prepare.json",
    }
    assert json.loads((tmp_path / "out" / "index.json").read_bytes()) == index
    assert [shard["num_images"] for shard in index["shards"]] == [4, 4, 2]
    names = []
    for shard in index["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert sha256(data).hexdigest() == shard["sha256"] and len(data) % 10240 == 0
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.mode, member.uname) == (0, 0, 0, 0o644, "")
                assert member.isreg() and not member.pax_headers
                names.append(member.name)
    assert names == [f"{number:09d}.{ending}" for number in range(10) for ending in ("png", "cls")]
    wanted = [decode(FILES[name], None, "crop", 3) for name in sorted(FILES)]
    assert all(np.array_equal(got, want) for (got, _), want in zip(stored(tmp_path / "out"), wanted, strict=True))
    assert [label for _, label in stored(tmp_path / "out")] == [0] * 5 + [1] * 5
    hashed = sha256(b"".join(digest(want) for want in wanted)).hexdigest()[:16]
    assert index == {
        "format": 1,
        "num_images": 10,
        "content_hash": hashed,
        "image_size": [16, 16],
        "channels": 3,
        "background": "#000000",
        "range": None,
        "encoding": "png",
        "labels": ["a", "b"],
        "label_counts": [5, 5],
        "fit": "crop",
        "source": str(tmp_path / "in"),
        "fastgan": fastgan.__version__,
        "skipped": [],
        "left_out": [],
        "shards": index["shards"],
    }
    members = load((tmp_path / "out" / "members.safetensors").read_bytes())
    assert {name: values.dtype for name, values in members.items()} == dict.fromkeys(
        ("shard", "offset", "length", "label"), np.int64
    )


def test_sidecar_labels_are_the_members_labels(tmp_path: Path) -> None:
    """The .cls of an image says the same as the tensor of labels."""
    make(put(tmp_path / "in", FILES), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        said = [int(archive.extractfile(name).read()) for name in archive.getnames() if name.endswith(".cls")]
    assert said == load((tmp_path / "out" / "members.safetensors").read_bytes())["label"].tolist()


def test_shards_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard ends before it grows above its size, unless its only image does."""
    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", 6000)
    index = make(put(tmp_path / "in", {"z.png": png(noise(0, 64, 64)), **FILES}), tmp_path / "out", "64", labels="none")
    assert len(index["shards"]) == 11 and sum(shard["num_images"] for shard in index["shards"]) == 11
    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", 10**6)
    assert len(make(tmp_path / "in", tmp_path / "one", "64", labels="none")["shards"]) == 1


@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg(tmp_path: Path, quality: int) -> None:
    """JPEGs are named .jpg and smaller with less quality; the content hash is of the pixels that come out of them."""
    smooth = {
        f"{n}.png": png(np.full((16, 16, 3), 40 * n, np.uint8) + np.arange(16, dtype=np.uint8)[:, None])
        for n in range(4)
    }
    index = make(put(tmp_path / "in", smooth), tmp_path / "out", format="jpeg", quality=quality)
    images = stored(tmp_path / "out")
    assert index["content_hash"] == sha256(b"".join(digest(pixels) for pixels, _ in images)).hexdigest()[:16]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        assert archive.getnames() == [f"{number:09d}.jpg" for number in range(4)]
    assert index["encoding"] == "jpeg" and index["labels"] is None
    for (pixels, label), data in zip(images, smooth.values(), strict=True):
        assert label is None and abs(pixels.astype(int) - decode(data, None, "crop", 3)).max() < 16


def test_wide_sizes(tmp_path: Path) -> None:
    """The size is height x width, one number for a square."""
    assert make(put(tmp_path / "in", FILES), tmp_path / "out", "9x20", fit="pad")["image_size"] == [9, 20]
    assert {pixels.shape for pixels, _ in stored(tmp_path / "out")} == {(9, 20, 3)}
    assert prepare.parse_size("128") == (128, 128)


# The same bytes


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers(tmp_path: Path, small_shards: None, workers: int) -> None:
    """One, two and three processes give the same bytes, with files to skip between."""
    files = {f"{number:03d}.png": png(noise(number)) for number in range(40)}
    files |= {f"{number:03d}.jpg": b"broken" for number in range(0, 40, 7)}
    put(tmp_path / "in", files)
    first = make(tmp_path / "in", tmp_path / "one")
    assert make(tmp_path / "in", tmp_path / "more", workers=workers) == first
    assert contents(tmp_path / "more") == contents(tmp_path / "one")
    assert first["num_images"] == 40 and len(first["skipped"]) == 6


def test_spawned_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are started afresh, not forked, give the same bytes."""
    put(tmp_path / "in", FILES)
    first = make(tmp_path / "in", tmp_path / "forked")
    monkeypatch.setattr(worker_processes, "START_METHOD", "spawn")
    assert worker_processes.worker_context("fastgan.data.pixels").get_start_method() == "spawn"
    assert make(tmp_path / "in", tmp_path / "spawned") == first
    assert contents(tmp_path / "spawned") == contents(tmp_path / "forked")


def test_any_container(tmp_path: Path) -> None:
    """A folder, a zip and tars of the same files give the same images in the same order, whatever order they lie in."""
    backwards = dict(reversed(FILES.items()))
    made = [make(put(tmp_path / "folder", FILES), tmp_path / "from-folder")]
    made.append(make(zip_of(tmp_path / "a.zip", backwards), tmp_path / "from-zip"))
    for mode, ending in (("w", "tar"), ("w:gz", "tar.gz"), ("w:xz", "tar.xz"), ("w:bz2", "tbz")):
        path = tar_of(tmp_path / f"a.{ending}", backwards, mode)
        made.append(make(path, tmp_path / f"from-{ending}"))
        assert (tmp_path / f"from-{ending}" / "shard-000000.tar").read_bytes() == (
            tmp_path / "from-folder" / "shard-000000.tar"
        ).read_bytes()
    assert len({index["content_hash"] for index in made}) == 1
    assert all(index["labels"] == ["a", "b"] for index in made)


@settings(max_examples=25)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_odd_names(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Files of any name are taken, from a folder as from a tar, in the order of their names' bytes."""
    folder = tmp_path_factory.mktemp("names")
    files = {f"_{name}.png": png(noise(seed, 4, 4)) for seed, name in enumerate(names)}
    made = [
        make(put(folder / "in", files), folder / "out", "4"),
        make(tar_of(folder / "a.tar", files), folder / "out2", "4"),
    ]
    wanted = [files[name] for name in sorted(files, key=str.encode)]
    for index, dest in zip(made, ("out", "out2"), strict=True):
        assert index["num_images"] == len(files) and index["skipped"] == []
        for (pixels, _), data in zip(stored(folder / dest), wanted, strict=True):
            assert np.array_equal(pixels, decode(data, None, "crop", 3))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name that is no UTF-8 is no obstacle, and is told as what it is."""
    (tmp_path / "in").mkdir()
    for name, data in ((b"\xff\xfe.png", FILES["a/0.png"]), (b"bad\xff\n.png", b"")):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(data)
    index = make(tmp_path / "in", tmp_path / "out")
    assert index["num_images"] == 1
    assert [os.fsencode(one["file"]) for one in index["skipped"]] == [b"bad\xff\n.png"]


# Going on


def prepare_until(moment: str, prefix: str, source: Path, dest: Path) -> None:
    """Prepare small shards, and die before or after the rename of a file whose name begins so."""
    replace = Path.replace

    def deadly(self: Path, target: Path) -> Path:
        hit = Path(target).name.startswith(prefix)
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(self, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.replace = deadly  # type: ignore[method-assign]
    shard_writer.MAX_IMAGES, prepare.BATCH_IMAGES = 4, 3
    make(source, dest, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "kept"),
    [
        ("after .prepare.json", 0),
        ("before shard-000000.tar", 0),
        ("after shard-000000.tar", 0),
        ("after .shard-000001.json", 2),
        ("before shard-000002.tar", 2),
        ("before members.safetensors", 5),
        ("before index.json", 5),
        ("after index.json", 5),
    ],
)
def test_going_on_after_a_kill(
    tmp_path: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    fork_server: ForkServer,
    at: str,
    kept: int,
) -> None:
    """A killed run leaves no set that looks whole; the same command keeps its shards and ends at the same bytes."""
    files = {f"{number:03d}.png": png(noise(number)) for number in range(18)}
    files |= {f"{number:03d}.jpg": b"broken" for number in (0, 3, 4, 9, 17)}
    put(tmp_path / "in", files)
    whole = make(tmp_path / "in", tmp_path / "whole")
    moment, prefix = at.split()
    process = fork_server.start(prepare_until, moment, prefix, tmp_path / "in", tmp_path / "out")
    assert process.poll(60) == -signal.SIGKILL
    assert (tmp_path / "out" / "index.json").exists() == (at == "after index.json")
    seen = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert all(path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes() for path in seen)
    made = []
    add = shard_writer.ShardWriter.add
    monkeypatch.setattr(shard_writer.ShardWriter, "add", lambda self, *args: made.append(args) or add(self, *args))
    assert make(tmp_path / "in", tmp_path / "out") == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(made) == (0 if at == "after index.json" else 18 - min(18, 4 * kept))


def die_with_workers() -> None:
    with pool.Pool(2) as two:
        print(*(batch[0] for batch in two.map(whoami, [[0]] * 8, -1)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_their_parent(fork_server: ForkServer) -> None:
    """The workers of a killed process don't stay."""
    process = fork_server.start(die_with_workers)
    assert process.poll(60) == -signal.SIGKILL
    found = {int(pid) for pid in process.log.read_text().split()}
    assert found and process.pid not in found
    for _ in range(100):
        if not any(alive(pid) for pid in found):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {found}")


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split(") ")[1][0] != "Z"


def prepare_beside_garbage() -> int:
    gc.disable()
    WaitsForItsThreads()
    with pool.Pool(1) as one:
        return 0 if [*one.map(collect, [[1]], -1)] == [[1]] else 1


def test_workers_inherit_nothing(fork_server: ForkServer) -> None:
    """What lies about in the process isn't the workers' to clear away: its threads aren't there."""
    assert fork_server.start(prepare_beside_garbage).poll(60) == 0


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """Workers don't run the user's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pool_worker import dies_on_5_and_6\nfrom fastgan.data.preparation.pool import Pool\n"
        "with Pool(2) as two:\n    print(*two.map(dies_on_5_and_6, [[1], [2]], -1))\n"
    )
    paths = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[1] [2]\n", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies(workers: int) -> None:
    """An item on which a worker dies is told apart from the others of its batch, and all the rest comes in order."""
    batches = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(6)]
    with pool.Pool(workers) as workers_pool:
        results = [*workers_pool.map(dies_on_5_and_6, batches, -1)]
        assert [*workers_pool.map(dies_on_5_and_6, [[1, 2]], -1)] == [[1, 2]]
    assert results == [[-1 if item in (5, 6) else item for item in batch] for batch in batches]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": "8"}, "size 16x16, not 8x8"),
        ({"fit": "pad"}, "fit crop, not pad"),
        ({"channels": "1"}, "channels auto, not 1"),
        ({"format": "jpeg"}, "format png, not jpeg"),
        ({"labels": "none"}, "labels auto, not none"),
        ({"source": "toy"}, "source "),
    ],
)
def test_another_command_in_the_same_folder(tmp_path: Path, change: dict[str, str], word: str) -> None:
    """Another SRC or other options are refused in a folder that has a set, by name; the set stays as it is."""
    put(tmp_path / "in", FILES)
    make(tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    arguments = {"source": str(tmp_path / "in"), "dest": tmp_path / "out", "size": "16"} | change
    text = refusal(lambda: prepare.prepare(PrepareOptions(**arguments)))
    assert word in text and "another DEST" in text
    assert contents(tmp_path / "out") == before


def test_changed_source(tmp_path: Path) -> None:
    """Where files came into SRC, left it or changed in size since, going on is refused."""
    put(tmp_path / "in", FILES)
    make(tmp_path / "in", tmp_path / "out")
    put(tmp_path / "in", {"a/new.png": FILES["a/0.png"]})
    assert "other files or labels in SRC" in refusal(lambda: make(tmp_path / "in", tmp_path / "out"))


def test_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again does nothing and says so, with any number of workers."""
    put(tmp_path / "in", FILES)
    make(tmp_path / "in", tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    make(tmp_path / "in", tmp_path / "out", workers=2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    assert "there already" in capsys.readouterr().out


def test_two_at_once(tmp_path: Path) -> None:
    """A second process in the same DEST is refused while the first is at work."""
    put(tmp_path / "in", FILES)
    make(tmp_path / "in", tmp_path / "out")
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()

    def child() -> None:
        with shard_writer.lock(tmp_path / "out"):
            ready.set()
            go.wait(30)

    process = context.Process(target=child)
    process.start()
    assert ready.wait(30)
    assert "another process" in refusal(lambda: make(tmp_path / "in", tmp_path / "out"))
    go.set()
    process.join()
    make(tmp_path / "in", tmp_path / "out")


# Folders that are refused


def test_dest(tmp_path: Path) -> None:
    """DEST must be new, empty or ours, and not SRC; a refused one keeps what it has."""
    put(tmp_path / "in", FILES)
    put(tmp_path / "full", {"thesis.txt": b"x"})
    (tmp_path / "file").write_bytes(b"x")
    assert "isn't empty" in refusal(lambda: make(tmp_path / "in", tmp_path / "full"))
    assert "is a file" in refusal(lambda: make(tmp_path / "in", tmp_path / "file"))
    assert "which is SRC" in refusal(lambda: make(tmp_path / "in", tmp_path / "in"))
    assert contents(tmp_path / "full") == {"thesis.txt": b"x"} and len(contents(tmp_path / "in")) == len(FILES)


def test_dest_inside_of_source(tmp_path: Path) -> None:
    """What lies in DEST is no part of SRC, though DEST lies in it."""
    put(tmp_path, FILES)
    index = make(tmp_path, tmp_path / "out")
    assert index["num_images"] == 10
    (tmp_path / "out" / "contact-sheet.png").write_bytes(FILES["a/0.png"])
    assert make(tmp_path, tmp_path / "out") == index


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "big"}, ["'big'", "128"]),
        ({"size": "0"}, ["'0'"]),
        ({"size": "12x"}, ["'12x'", "96x160"]),
        ({"size": "99999"}, ["'99999'", "8192"]),
        ({"quality": 0}, ["quality is 0"]),
        ({"quality": 101}, ["quality is 101"]),
        ({"workers": 0}, ["workers is 0"]),
        ({"source": "nowhere"}, ["'nowhere'", "mnist"]),
        ({"source": "part-{0..2}.tar"}, ["3 files", "part-0.tar"]),
        ({"format": "jpeg", "channels": "4"}, ["--format png"]),
        ({"labels": "none.csv"}, ["none.csv", "CSV or JSON"]),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    """A wrong value is one line with its name, the value and the remedy; DEST isn't made."""
    put(tmp_path / "in", FILES)
    arguments = {"source": str(tmp_path / "in"), "dest": tmp_path / "out", "size": "16"} | options
    text = refusal(lambda: prepare.prepare(PrepareOptions(**arguments)))
    assert all(word in text for word in words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["empty", "no image", "broken", "broken zip"])
def test_nothing_usable(tmp_path: Path, kind: str) -> None:
    """Where no image is left that is an error with the reasons, and DEST is gone again."""
    source = tmp_path / "in"
    source.mkdir()
    if kind == "no image":
        put(source, {"a.txt": b"x", ".hidden.png": FILES["a/0.png"]})
    elif kind == "broken":
        put(source, {"a.png": b"x", "b.png": b""})
    elif kind == "broken zip":
        source = put(tmp_path / "zip", {"a.zip": b"PK\3\4 and no more"}) / "a.zip"
    text = refusal(lambda: make(source, tmp_path / "out"))
    wanted = {
        "no image": "1 hidden or of a tool (.hidden.png); 1 of no known image format (a.txt)",
        "broken": "1 empty file (b.png)",
        "broken zip": "damaged archive",
    }.get(kind, "it has none")
    assert wanted in text and not (tmp_path / "out").exists()


def test_strict(tmp_path: Path) -> None:
    """With --strict a skipped file is an error and no set is made; without it the same folder then is one."""
    put(tmp_path / "in", FILES | {"a/bad.png": b"x"})
    text = refusal(lambda: make(tmp_path / "in", tmp_path / "out", strict=True))
    assert "1 no image of a known format (a/bad.png)" in text and not (tmp_path / "out" / "index.json").exists()
    assert make(tmp_path / "in", tmp_path / "out")["num_images"] == 10
    assert "--strict" in refusal(lambda: make(tmp_path / "in", tmp_path / "out", strict=True))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is one line; the same command resumes when there is room."""
    put(tmp_path / "in", FILES)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left" in refusal(lambda: make(tmp_path / "in", tmp_path / "out"))
    assert make(tmp_path / "in", tmp_path / "out")["num_images"] == 10


# Where images come from


def test_named_set(tmp_path: Path) -> None:
    """A named set gives its images, exactly where they have the size, and its labels."""
    toy = named.load("toy")
    index = make("toy", tmp_path / "out", "28")
    assert index["num_images"] == 1000 and index["channels"] == 1 and index["labels"] == ["0", "1"]
    images = stored(tmp_path / "out")
    assert np.array_equal(np.stack([pixels for pixels, _ in images]), toy.images.permute(0, 2, 3, 1).numpy())
    assert [label for _, label in images] == toy.labels.tolist()


SHARDS = {
    "part-000.tar": {
        "y.jpg.png": b"ignored",
        "k1.png": FILES["a/0.png"],
        "k1.cls": b"7",
        "k2.png": FILES["a/1.png"],
        "k2.cls": b"3\n",
    },
    "part-001.tar": {"k1.png": FILES["a/2.png"], "k1.json": b'{"label": 7}', "k1.txt": b"a caption", "x.cls": b"5"},
}


@pytest.mark.parametrize("how", ["folder", "braces", "compressed"])
def test_webdataset(tmp_path: Path, how: str) -> None:
    """Shards give their images in order, labelled by the .cls or .json of the same key; those without are skipped."""
    mode = "w:gz" if how == "compressed" else "w"
    for name, members in SHARDS.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        tar_of(tmp_path / "in" / name, members, mode)
    source = tmp_path / "in" / "part-{000..001}.tar" if how == "braces" else tmp_path / "in"
    index = make(source, tmp_path / "out")
    assert index["labels"] == ["3", "7"]
    assert index["skipped"] == [{"file": "part-000.tar/y.jpg.png", "reason": "no label"}]
    images = stored(tmp_path / "out")
    assert [label for _, label in images] == [1, 0, 1]
    for (pixels, _), name in zip(images, ("a/0.png", "a/1.png", "a/2.png"), strict=True):
        assert np.array_equal(pixels, decode(FILES[name], None, "crop", 3))


def test_prepared_again(tmp_path: Path) -> None:
    """A prepared set is a source like any other: pixels, labels and their names come through."""
    first = make(put(tmp_path / "in", FILES), tmp_path / "out")
    (tmp_path / "out" / "contact-sheet.png").write_bytes(FILES["a/0.png"])
    second = make(tmp_path / "out", tmp_path / "again")
    assert second["content_hash"] == first["content_hash"] and second["labels"] == ["a", "b"]
    assert [label for _, label in stored(tmp_path / "again")] == [0] * 5 + [1] * 5


@pytest.mark.parametrize("how", ["zip", "folder"])
def test_dataset_json(tmp_path: Path, how: str) -> None:
    """dataset.json says the labels of the images beside it; null means none, though there are folders."""
    pairs = [[name, 4 - place // 5] for place, name in enumerate(FILES)]
    for number, (value, wanted) in enumerate(((pairs, [1] * 5 + [0] * 5), (None, [None] * 10))):
        files = FILES | {"dataset.json": json.dumps({"labels": value}).encode()}
        source = put(tmp_path / f"{number}", files) if how == "folder" else zip_of(tmp_path / f"{number}.zip", files)
        index = make(source, tmp_path / f"out{number}")
        assert index["labels"] == (["3", "4"] if value else None)
        assert [label for _, label in stored(tmp_path / f"out{number}")] == wanted


def test_parquet(tmp_path: Path) -> None:
    """The rows of parquet files give their images in order, with the labels' names that the file knows."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in" / "data").mkdir(parents=True)
    features = {"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}}
    for part in (0, 1):
        images = [{"bytes": FILES[f"{'ab'[part]}/{number}.png"], "path": None} for number in range(5)]
        images += [{"bytes": b"broken", "path": "x"}, {"bytes": None, "path": "elsewhere.png"}]
        table = arrow.table({"image": images, "label": [0, 1, 1, 0, 1, 0, 0]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(table, tmp_path / "in" / "data" / f"train-{part}.parquet", row_group_size=3)
    index = make(tmp_path / "in", tmp_path / "out")
    assert index["labels"] == ["zebra", "ant"] and index["num_images"] == 10
    assert [one["file"] for one in index["skipped"]] == [f"train-{p}.parquet/{r:09d}" for p in (0, 1) for r in (5, 6)]
    assert [label for _, label in stored(tmp_path / "out")] == [0, 1, 1, 0, 1] * 2
    for (pixels, _), name in zip(stored(tmp_path / "out"), FILES, strict=True):
        assert np.array_equal(pixels, decode(FILES[name], None, "crop", 3))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow a parquet file is one line that says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    put(tmp_path / "in", {"train.parquet": b"PAR1"})
    assert "pip install 'fastgan[parquet]'" in refusal(lambda: make(tmp_path / "in", tmp_path / "out"))


def test_braces() -> None:
    """Braces stand for a range of numbers, zeros kept, or a list; without braces a name is itself."""
    assert inputs.braces("a-{008..011}.tar") == [f"a-{number}.tar" for number in ("008", "009", "010", "011")]
    assert inputs.braces("{x,y}{0..1}") == ["x0", "x1", "y0", "y1"]
    assert inputs.braces("plain.tar") == ["plain.tar"]


# Channels


@pytest.mark.parametrize(
    ("kinds", "wanted"), [((1, 1), 1), ((1, 3), 3), ((3, 3), 3), ((1, 4), 4), ((3, 4, 1), 4)], ids=str
)
def test_channels_of_a_set(tmp_path: Path, kinds: tuple[int, ...], wanted: int) -> None:
    """A set is grey where all its images are, has transparency where any has, and else colours; or as it is told."""
    put(tmp_path / "in", {f"{n}.png": png(noise(n, channels=channels)) for n, channels in enumerate(kinds)})
    assert make(tmp_path / "in", tmp_path / "out")["channels"] == wanted
    assert {pixels.shape for pixels, _ in stored(tmp_path / "out")} == {(16, 16, wanted)}
    for told in (1, 3, 4):
        assert make(tmp_path / "in", tmp_path / f"out{told}", channels=str(told))["channels"] == told


def test_jpeg_of_a_transparent_set(tmp_path: Path) -> None:
    """JPEG for a set with transparency is refused, with what to choose between."""
    put(tmp_path / "in", {"a.png": png(noise(0, channels=4))})
    assert "--channels 3" in refusal(lambda: make(tmp_path / "in", tmp_path / "out", format="jpeg"))
    assert not (tmp_path / "out").exists()
    assert make(tmp_path / "in", tmp_path / "out", format="jpeg", channels="3")["channels"] == 3


# Labels


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a/1.png", "b/1.png"], ["a", "b"]),
        (["set/a/1.png", "set/b/x/1.png"], ["a", "b"]),
        (["a/1.png", "2.png"], []),
        (["1.png", "2.png"], []),
        (["a/1.png", "a/2.png"], []),
        ([], []),
    ],
)
def test_class_folders(names: list[str], wanted: list[str]) -> None:
    """Folders are classes where every image lies in one and there are several, below folders that all share."""
    assert by_folder(names).labels == wanted


@settings(max_examples=50)
@given(values=st.lists(st.one_of(st.integers(-5, 20), st.sampled_from(["cat", "Ärger", "7", "07", "z"])), min_size=1))
def test_class_numbers(values: list[int | str]) -> None:
    """Classes are numbered from 0 without gaps, equal labels equally; numbers by value, also of digits."""
    source = archives.ArchiveReader("test")
    source.entries = [archives.Entry(f"{n}.png", 0, bytes, value) for n, value in enumerate(values)]
    found = labels.label_entries(source, None)
    assert found.numbers is not None and found.classes is not None
    assert [found.classes[number] for number in found.numbers] == [str(value) for value in values]
    assert set(found.numbers) == set(range(len(found.classes)))
    if all(isinstance(value, int) for value in values):
        assert [int(name) for name in found.classes] == sorted({*values})


TABLES = {
    "plain.csv": "a/0.png,cat\na/1.png,dog\nb/0.png,cat\n",
    "header.csv": "label,filename,author\r\ncat,a/0.png,x\r\ndog,a/1.png,x\r\ncat,b/0.png,\r\n",
    "marked.csv": "\ufefffile,label\na/0.png,cat\na/1.png,dog\n\nb/0.png,cat\n",
    "stems.csv": "id,class\na/0,cat\n./a/1,dog\nb\\0.png,cat\n",
    "quoted.csv": '"a/0.png","cat"\n"a/1.png","dog"\n"b/0.png",cat\n',
    "tabs.tsv": "a/0.png\tcat\na/1.png\tdog\nb/0.png\tcat\n",
    "map.json": '{"a/0.png": "cat", "a/1.png": "dog", "b/0.png": "cat"}',
    "pairs.json": '[["a/0.png", "cat"], ["a/1.png", "dog"], ["b/0.png", "cat"]]',
    "edm.json": '{"labels": [["a/0.png", "cat"], ["a/1.png", "dog"], ["b/0.png", "cat"]]}',
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_label_files(tmp_path: Path, name: str) -> None:
    """A file of labels in any of its forms goes before the folders; images that it doesn't name are skipped."""
    table = put(tmp_path, {name: TABLES[name].encode()}) / name
    index = make(put(tmp_path / "in", FILES), tmp_path / "out", labels=str(table))
    assert index["labels"] == ["cat", "dog"] and index["num_images"] == 3
    assert [label for _, label in stored(tmp_path / "out")] == [0, 1, 0]
    assert len(index["skipped"]) == 7 and {one["reason"] for one in index["skipped"]} == {"no label"}


BAD_TABLES = {
    "empty.csv": (b"", "no labels"),
    "one.csv": (b"a/0.png,1\na/1.png\n", "row 2"),
    "blank.csv": (b"a/0.png,\n", "row 1"),
    "twice.csv": (b"a/0.png,1\na/0.png,2\n", "'a/0.png' the labels 1 and 2"),
    "others.csv": (b"x.png,1\n", "names none of the images, e.g. 'a/0.png'"),
    "binary.csv": (b"\xff\xfe\0", "UTF-8"),
    "bad.json": (b"{", "no JSON"),
    "float.json": (b'{"a/0.png": 0.5}', "--condition vector"),
    "list.json": (b'{"labels": [["a/0.png", [0, 1]]]}', "vectors: 2 numbers"),
    "number.json": (b"3", "3"),
    "deep.json": (b"[" * 100_000, "no JSON"),
}


@pytest.mark.parametrize("name", sorted(BAD_TABLES))
def test_bad_label_files(tmp_path: Path, name: str) -> None:
    """A file of labels that isn't right is one line with its name and what is wrong."""
    data, word = BAD_TABLES[name]
    table = put(tmp_path, {name: data}) / name
    put(tmp_path / "in", FILES)
    text = refusal(lambda: make(tmp_path / "in", tmp_path / "out", labels=str(table)))
    assert word in text and name in text and not (tmp_path / "out").exists()


def test_no_labels_on_request(tmp_path: Path) -> None:
    """With --labels none folders are no classes, and no .cls is written."""
    assert make(put(tmp_path / "in", FILES), tmp_path / "out", labels="none")["labels"] is None
    assert "label" not in load((tmp_path / "out" / "members.safetensors").read_bytes())
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        assert not any(name.endswith(".cls") for name in archive.getnames())


# The command


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan data prepare` makes the set, tells what was skipped, and ends with 0; with 2 where it can't."""
    put(tmp_path / "in", FILES | {"a/bad.png": b"x", "b/none.png": b""})
    assert (
        cli.main(["data", "prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "16", "--workers", "1"])
        == 0
    )
    shown = capsys.readouterr()
    assert "10 images of 16x16, 3 channels, 2 labels" in shown.out and shown.err == ""
    assert "skipped files: 2, which index.json lists: " in shown.out
    assert ": 1 no image of a known format (a/bad.png); 1 empty file (b/none.png)\n" in shown.out
    assert cli.main(["data", "prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "32"]) == 2
    assert capsys.readouterr().err.startswith("fastgan: error: ")
    shutil.rmtree(tmp_path / "out")
    assert cli.main(["data", "prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "8", "--strict"]) == 2


def test_crashed_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on which the decoder takes its process down is skipped; all others are there."""
    put(tmp_path / "in", FILES)
    monkeypatch.setattr(prepare, "encode", encode_or_die)
    index = make(tmp_path / "in", tmp_path / "out", workers=2)
    assert index["num_images"] == 9
    assert index["skipped"] == [{"file": "a/3.png", "reason": "its decoder crashed"}]
    assert isinstance(prepare.CRASHED, BadImage)
