"""Data sets of Kaggle by its real client, whose host is a server of this machine; its other errors by a stand-in."""

import io
import json
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import refusal

from fastgan import cli
from fastgan.data.preparation import kaggle


class Kaggle(ThreadingHTTPServer):
    """Answers as Kaggle does for one data set, some-one/faces_2.0 in its third version, or with a status."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("cats/0.png", b"a picture")
        self.archive = archive.getvalue()


class Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Kaggle)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, question = f"{request['ownerSlug']}/{request['datasetSlug']}", self.path.rsplit("/", 1)[-1]
        self.server.asked.append(question)
        status = 404 if name != "some-one/faces_2.0" else self.server.status
        kind, body = "application/json", json.dumps({"currentVersionNumber": 3}).encode()
        if question == "DownloadDataset":
            assert request["datasetVersionNumber"] == 3
            kind, body = "application/zip", self.server.archive
        self.send_response(status)
        self.send_header("Content-Type", kind if status == 200 else "text/plain")
        self.end_headers()
        self.wfile.write(body if status == 200 else b"no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """Where the client finds Kaggle, by a proxy, with an empty cache and without anybody's credentials."""
    pytest.importorskip("kagglehub")
    found = Kaggle()
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("no_proxy", "NO_PROXY", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{found.server_address[1]}")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    for name in ("KAGGLEHUB_CACHE", "KAGGLE_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield found
    found.shutdown()
    found.server_close()


def test_get(server: Kaggle, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan data get kaggle:OWNER/NAME` fetches the newest version, once, and prints the folder of its images."""
    for asked in (["GetDataset", "DownloadDataset"], ["GetDataset"]):
        assert cli.main(["data", "get", "kaggle:some-one/faces_2.0"]) == 0
        name, folder = capsys.readouterr().out.splitlines()[-1].split(": ")
        assert name == "kaggle:some-one/faces_2.0"
        assert (Path(folder) / "cats" / "0.png").read_bytes() == b"a picture"
        assert server.asked == asked
        server.asked.clear()


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "KAGGLE_USERNAME"), (403, "accept its rules"), (404, "owner and name"), (500, "by hand")],
)
def test_refusals_of_the_server(server: Kaggle, status: int, remedy: str) -> None:
    """Missing credentials, rules that weren't accepted, a wrong name and a fault of Kaggle's are a line each."""
    server.status = status
    text = refusal(lambda: kaggle.get("kaggle:some-one/faces_2.0"))
    assert remedy in text and len(text) < 500


def test_no_network(server: Kaggle) -> None:
    """Where nobody answers, the network is named."""
    server.shutdown()
    server.server_close()
    assert "check the network" in refusal(lambda: kaggle.get("kaggle:some-one/faces_2.0"))


def client(monkeypatch: pytest.MonkeyPatch, download: Callable[[str], str]) -> None:
    """Stand in for the client."""
    module = types.ModuleType("kagglehub")
    module.dataset_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)


@pytest.mark.parametrize(
    "name", ["kaggle:", "kaggle:faces", "kaggle:a/b/c", "kaggle:../x", "kaggle:a/b c", "kaggle:a/"]
)
def test_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that isn't OWNER/NAME is refused before anything is asked."""
    client(monkeypatch, pytest.fail)
    text = refusal(lambda: kaggle.get(name))
    assert repr(name) in text and "kaggle:OWNER/NAME" in text


def test_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client the line says what to install."""
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install 'fastgan[kaggle]'" in refusal(lambda: kaggle.get("kaggle:a/b"))


class UnauthenticatedError(Exception):
    """Bears the name of the client's own error."""


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (UnauthenticatedError("log in"), "KAGGLE_USERNAME"),
        (TimeoutError("no\nanswer"), "check the network"),
        (ValueError("x" * 9999), "by hand"),
    ],
)
def test_other_failures(error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else a client, here a stand-in, may raise is one short line with its remedy."""

    def download(handle: str) -> str:
        raise error

    client(monkeypatch, download)
    text = refusal(lambda: kaggle.get("kaggle:a/b"))
    assert remedy in text and type(error).__name__ in text and len(text) < 500
