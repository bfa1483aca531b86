import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from fastgan import cli
from fastgan.data.preparation import kaggle
from fastgan.errors import UserError


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class HTTPError(OSError):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status} error\nfor the address")
        self.response = Answer(status)


class UnauthenticatedError(Exception):
    """Bears the name of the client's own error."""


def client(monkeypatch: pytest.MonkeyPatch, download: Callable[[str], str]) -> None:
    module = types.ModuleType("kagglehub")
    module.dataset_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        kaggle.get(name)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan data get kaggle:OWNER/NAME` asks the client for OWNER/NAME and prints the folder that it gives."""
    asked: list[str] = []
    client(monkeypatch, lambda handle: asked.append(handle) or str(tmp_path))  # type: ignore[func-returns-value]
    assert cli.main(["data", "get", "kaggle:some-one/faces_2.0"]) == 0
    assert asked == ["some-one/faces_2.0"]
    assert capsys.readouterr().out == f"kaggle:some-one/faces_2.0: {tmp_path}\n"


@pytest.mark.parametrize(
    "name", ["kaggle:", "kaggle:faces", "kaggle:a/b/c", "kaggle:../x", "kaggle:a/b c", "kaggle:a/"]
)
def test_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that isn't OWNER/NAME is refused before anything is asked."""
    client(monkeypatch, pytest.fail)
    assert repr(name) in refusal(name) and "kaggle:OWNER/NAME" in refusal(name)


def test_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client the line says what to install."""
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install 'fastgan[kaggle]'" in refusal("kaggle:a/b")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (HTTPError(401), "KAGGLE_USERNAME"),
        (HTTPError(403), "accept its rules"),
        (UnauthenticatedError("log in"), "KAGGLE_USERNAME"),
        (HTTPError(404), "owner and name"),
        (ConnectionError("no route\nto host"), "check the network"),
        (TimeoutError(), "check the network"),
        (ValueError("x" * 9999), "by hand"),
    ],
)
def test_failures(error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing credentials, a wrong name, no network and all else are a line each, with the remedy."""

    def download(handle: str) -> str:
        raise error

    client(monkeypatch, download)
    text = refusal("kaggle:a/b")
    assert remedy in text and type(error).__name__ in text and len(text) < 500
