"""`fastgan push`, and runs of the hub, against a small hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import refusal
from fake_hub import TOKEN, Hub, running_hub
from huggingface_hub import constants

import fastgan
from fastgan import cli
from fastgan.runs.exported import FILES

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which one is logged in; what it downloads is in a cache of its own."""
    with running_hub() as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    assert cli.main([*args]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("fastgan: error: ") and shown.count("\n") == 1
    return shown


def test_there_and_back(debug_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """What was pushed makes the run's images by its name, in Python and on the command line; the token isn't shown."""
    assert cli.main(["push", str(debug_run), "me/digits", "--license", "mit"]) == 0
    shown = "".join(capsys.readouterr())
    assert f"{hub.url}/me/digits" in shown and TOKEN not in shown
    assert {*hub.files["me/digits"]} == {*FILES} and b"license: mit" in hub.files["me/digits"]["README.md"]
    assert b'fastgan.load("me/digits")' in hub.files["me/digits"]["README.md"]
    ours = fastgan.load(debug_run).sample([3, 4])
    assert np.array_equal(fastgan.load("me/digits").sample([3, 4]), ours)
    assert np.array_equal(fastgan.load("me/digits@v1").sample([3, 4]), ours)
    assert cli.main(["sample", "me/digits", "--seeds", "3", "--out", "samples"]) == 0
    assert Path("samples/seed-000003.png").is_file()


def test_only_the_export_is_downloaded(debug_run: Path, hub: Hub) -> None:
    """Of a model on the hub no file is got that isn't an export's, a pickle least of all."""
    assert cli.main(["push", str(debug_run), "me/digits"]) == 0
    hub.files["me/digits"] |= {"pytorch_model.bin": b"cos\nsystem", "model.pkl": b"cos\nsystem", "code.py": b""}
    hub.requests.clear()
    fastgan.load("me/digits")
    got = {request.rsplit("/", 1)[-1] for request in hub.requests if "/resolve/" in request}
    assert got == {*FILES}


def test_dry_run(debug_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run shows files and card, and asks the hub nothing."""
    assert cli.main(["push", str(debug_run), "me/digits", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in FILES) and "pipeline_tag: unconditional-image-generation" in shown
    assert hub.requests == []


def test_edited_card(debug_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """An export goes as it is, with a card that was edited; --license can't change that."""
    assert cli.main(["export", str(debug_run), "--out", "mine"]) == 0
    Path("mine/README.md").write_text("mine")
    Path("mine/diary.txt").write_text("private")
    assert cli.main(["push", "mine", "me/digits"]) == 0
    assert hub.files["me/digits"]["README.md"] == b"mine" and "diary.txt" not in hub.files["me/digits"]
    assert "edit that" in complaint(capsys, "push", "mine", "me/digits", "--license", "mit")


def test_private(debug_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A new model is private where that is asked for; nothing goes to one that is public already."""
    assert cli.main(["push", str(debug_run), "me/secret", "--private"]) == 0
    assert hub.private == {"me/secret": True}
    hub.files["me/open"] = {}
    assert "public" in complaint(capsys, "push", str(debug_run), "me/open", "--private")
    assert hub.files["me/open"] == {}


def test_refused(
    debug_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right token a push is one line that says how to log in; so is a name that is none."""
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    text = complaint(capsys, "push", str(debug_run), "me/digits")
    assert "hf auth login" in text and "hf_wrong" not in text and hub.files == {}
    assert "give OWNER/NAME" in complaint(capsys, "push", str(debug_run), "digits")
    assert "give OWNER/NAME" in complaint(capsys, "push", str(debug_run), "me/digits@v1")
    assert "license is 'MIT License'" in complaint(capsys, "push", str(debug_run), "me/x", "--license", "MIT License")


def test_missing_on_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the hub doesn't know, a foreign model, and a hub that can't be reached, are one line each."""
    assert "me/nothing is no folder here" in refusal(lambda: fastgan.load("me/nothing"))
    hub.files["me/bert"] = {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"x"}
    assert "no export of fastgan's" in refusal(lambda: fastgan.load("me/bert"))
    assert "is no folder here" in refusal(lambda: fastgan.load("me/bert@v2"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "me/other is no folder here" in refusal(lambda: fastgan.load("me/other"))


def test_folders_come_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is there, a run's name with a slip isn't asked for on the hub."""
    Path("runs").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert "runs/digts is no run folder" in refusal(lambda: fastgan.load("runs/digts"))
    assert hub.requests == []
