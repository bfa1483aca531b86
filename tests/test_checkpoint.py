import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastgan import presets
from fastgan.commands import train
from fastgan.data import named
from fastgan.distributed import collectives
from fastgan.distributed.consistency import ConsistencyCheck
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from fastgan.runs.checkpoint import Checkpoint, Checkpoints, CorruptCheckpoint, read
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.files import write_synced

FILES = ("G.safetensors", "D.safetensors", "optimizers.safetensors", "state.json")


def tensors(number: float = 0.0) -> dict[str, dict[str, Tensor]]:
    """Three small files of tensors, whose values depend on `number`."""
    return {
        "G": {"dense.weight": torch.arange(6.0).view(2, 3) + number, "norm.count": torch.tensor(7)},
        "D": {"conv.weight": torch.linspace(-1, 1, 16).view(2, 2, 2, 2) * (1 + number)},
        "optimizers": {"G/0/step": torch.tensor(number), "G/0/exp_avg": torch.full((2, 3), number)},
    }


def save(checkpoints: Checkpoints, images_seen: int) -> Path:
    state = {"images_seen": images_seen, "meter": {"sums": {"loss/G": 0.1 + images_seen}, "count": 3}}
    return checkpoints.save(tensors(float(images_seen)), state)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, type and every bit, whatever the values mean."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


def flip(path: Path, offset: int) -> None:
    """One bit of the byte at the offset is another."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(tmp_path: Path) -> None:
    """What was saved is read bit for bit, for every kind of tensor, with its file, name, shape and type."""
    kinds = {
        "float32": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "float64": torch.tensor([0.1, -0.0, 1e-310], dtype=torch.float64),
        "bfloat16": torch.tensor([0.1, 3.0], dtype=torch.bfloat16),
        "not finite": torch.tensor([torch.nan, torch.inf, -torch.inf]),
        "int64": torch.tensor([-(2**63), 2**63 - 1, 0]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([[True, False], [False, True]]),
        "no dimension": torch.tensor(5.0),
        "no dimension, int64": torch.tensor(12),
        "empty": torch.zeros(0, 3),
        "channels last": torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "part of another": torch.arange(10.0)[3:7:2],
        "with a gradient": torch.ones(2, requires_grad=True),
    }
    state = {"images_seen": 64, "meter": {"sums": {"loss/G": 0.1 + 0.2}, "count": 2}, "none": None, "list": [1, "a"]}
    path = Checkpoints(tmp_path).save({"kinds": kinds, "others": {"one": torch.ones(1)}}, state)
    snapshot = read(path)
    assert snapshot.path == path and snapshot.state == state
    assert set(snapshot.tensors) == {"kinds", "others"} and set(snapshot.tensors["kinds"]) == set(kinds)
    for name, tensor in kinds.items():
        assert same_bits(snapshot.tensors["kinds"][name], tensor), name


def test_saving_leaves_the_tensors(tmp_path: Path) -> None:
    """The tensors that are saved keep their values, their place in memory and their gradients' history."""
    tensor = torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    before = tensor.detach().clone()
    Checkpoints(tmp_path).save({"G": {"weight": tensor}}, {"images_seen": 1})
    assert tensor.equal(before) and tensor.requires_grad
    assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_no_pickles(tmp_path: Path) -> None:
    """A checkpoint is safetensors files, whose header is JSON, and one JSON file: nothing that could run code."""
    path = save(Checkpoints(tmp_path), 64)
    assert {file.name for file in path.iterdir()} == set(FILES)
    for file in path.glob("*.safetensors"):
        data = file.read_bytes()
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    json.loads((path / "state.json").read_text())


def test_last_few_are_kept(tmp_path: Path) -> None:
    """The last K checkpoints are there, oldest first, all readable; the older ones are gone."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for images_seen in (64, 999, 1000, 20_000, 100_000):
        save(checkpoints, images_seen)
    assert [path.name for path in checkpoints.paths()] == ["000000020000", "000000100000"]
    assert [read(path).state["images_seen"] for path in checkpoints.paths()] == [20_000, 100_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000020000", "000000100000"]


def test_latest(tmp_path: Path) -> None:
    """The newest one is read, in silence."""
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    for images_seen in (9, 10, 8):
        save(checkpoints, images_seen)
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.state["images_seen"] == 10 and said == []
    assert same_bits(snapshot.tensors["optimizers"]["G/0/step"], torch.tensor(10.0))


def test_none_yet(tmp_path: Path) -> None:
    """Where nothing was saved, also where there is no folder, there is no latest one and nothing is made."""
    assert Checkpoints(tmp_path).latest() is None
    assert Checkpoints(tmp_path / "none").latest() is None
    assert not (tmp_path / "none").exists()


def test_saved_again(tmp_path: Path) -> None:
    """A checkpoint that is saved again at the same place stands for the older one."""
    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 64)
    flip(path / "G.safetensors", 100)
    (path / "stray").write_text("left over")
    assert save(checkpoints, 64) == path
    assert read(path).state["images_seen"] == 64 and {file.name for file in path.iterdir()} == set(FILES)


@pytest.mark.parametrize("place", [0, 8, 0.3, 0.5, 0.7, -1])
@pytest.mark.parametrize("file", FILES)
def test_flipped_byte(tmp_path: Path, file: str, place: float) -> None:
    """A flipped byte anywhere in a file is noticed; the one before is taken, and the damaged one is reported."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 64)
    path = save(checkpoints, 128)
    size = (path / file).stat().st_size
    flip(path / file, int(place * size) if 0 < place < 1 else int(place))
    with pytest.raises(CorruptCheckpoint):
        read(path)
    said: list[str] = []
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.state["images_seen"] == 64
    assert len(said) == 1 and str(path) in said[0] and "damaged" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("file", FILES)
def test_each_flipped_byte(tmp_path: Path, file: str) -> None:
    """There is no byte in any file that could change unnoticed."""
    path = save(Checkpoints(tmp_path), 64)
    whole = (path / file).read_bytes()
    for offset in range(len(whole)):
        (path / file).write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(CorruptCheckpoint):
            read(path)
    (path / file).write_bytes(whole)
    assert read(path).state["images_seen"] == 64


def test_only_the_main_process_checks_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At resume the others read the checkpoint that it names, none where they don't see it; they hash no tensors."""
    monkeypatch.setattr("fastgan.runs.resume_state.fault", lambda found, config: None)  # of a trainer's state
    folder, hashed, toy = RunFolder(tmp_path), list[int](), named.load("toy")
    path = save(Checkpoints(folder.checkpoints), 64)
    whole = read(path)
    monkeypatch.setattr(checkpoint, "sha256", lambda data=b"": (hashed.append(len(data)), hashlib.sha256(data))[1])

    def opened(is_main: bool, newest: int) -> checkpoint.Checkpoint | None:
        monkeypatch.setattr(collectives, "from_main", lambda number: newest)
        alone, process = ConsistencyCheck(), SimpleNamespace(is_main=is_main, print=print)
        return train._open_folder(presets.debug(), toy, process, folder, alone, False)  # type: ignore[arg-type]

    other = opened(False, 64)
    assert other is not None and other.state == whole.state and len(hashed) == 1  # the state's own
    for file, group in whole.tensors.items():
        assert all(same_bits(value, other.tensors[file][name]) for name, value in group.items())
    assert opened(False, -1) is None and opened(False, 65) is None and not folder.config.exists()
    assert opened(True, 64) is not None and len(hashed) == 1 + len(FILES)
    folder.close()


HARMS: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
    "of another": lambda path: path.write_bytes(path.parent.with_name("000000000064").joinpath(path.name).read_bytes()),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "null": lambda path: path.write_bytes(b"null"),
    "list": lambda path: path.write_bytes(b"[]"),
    "object": lambda path: path.write_bytes(b"{}"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize(
    ("file", "harm"),
    # The state of another checkpoint is whole by itself: it has a test of its own.
    [(file, harm) for file in FILES for harm in HARMS if (file, harm) != ("state.json", "of another")],
)
def test_harmed_file(tmp_path: Path, file: str, harm: str) -> None:
    """A file that is missing, cut, longer, or not what it was, makes `latest` fall back and say which and why."""
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 64)
    path = save(checkpoints, 128)
    HARMS[harm](path / file)
    said: list[str] = []
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.state["images_seen"] == 64
    assert len(said) == 1 and str(path) in said[0]
    if harm == "missing":
        assert f"{file} is missing" in said[0]


def test_mixed_checkpoints(tmp_path: Path) -> None:
    """The state of one checkpoint beside the tensors of another is noticed."""
    checkpoints = Checkpoints(tmp_path)
    older, newer = save(checkpoints, 64), save(checkpoints, 128)
    (newer / "state.json").write_bytes((older / "state.json").read_bytes())
    with pytest.raises(CorruptCheckpoint, match="images_seen 64"):
        read(newer)


def test_changed_state(tmp_path: Path) -> None:
    """A state that was edited by hand is noticed."""
    path = save(Checkpoints(tmp_path), 64)
    content = json.loads((path / "state.json").read_text())
    content["state"]["images_seen"] = 65
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(CorruptCheckpoint, match=r"state\.json has changed"):
        read(path)


def test_falls_back_more_than_once(tmp_path: Path) -> None:
    """Damaged ones are passed over one after the other, newest first."""
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    paths = [save(checkpoints, images_seen) for images_seen in (64, 128, 192)]
    for path in paths[1:]:
        flip(path / "D.safetensors", -1)
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.path == paths[0]
    assert [str(path) in line for path, line in zip(reversed(paths[1:]), said, strict=True)] == [True, True]


def test_all_damaged(tmp_path: Path) -> None:
    """Where every checkpoint is damaged nothing starts from scratch by itself: one line says so, not to delete it."""
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    for images_seen in (64, 128):
        flip(save(checkpoints, images_seen) / "G.safetensors", 20)
    with pytest.raises(UserError) as caught:
        checkpoints.latest(said.append)
    text = str(caught.value)
    assert str(tmp_path) in text and "delete" not in text and "\n" not in text
    assert said == []


@pytest.mark.parametrize("times", [1, 3])
def test_removed_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Where a run that keeps one checkpoint saves the next meanwhile, that is read, in silence."""
    checkpoints, said, reads = Checkpoints(tmp_path, keep=1), list[str](), list[Path]()
    save(checkpoints, 64)

    def read_late(path: Path) -> Checkpoint:
        reads.append(path)
        if len(reads) <= times:
            save(checkpoints, 64 + 64 * len(reads))
        return read(path)

    monkeypatch.setattr(checkpoint, "read", read_late)
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.state["images_seen"] == 64 + 64 * times and said == []


def test_removed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being read is read to its end, also when its run removes it, however often that is."""
    checkpoints, load = Checkpoints(tmp_path, keep=1), safetensors.torch.load
    save(checkpoints, 64)

    def load_slowly(data: bytes) -> dict[str, torch.Tensor]:
        save(checkpoints, 128)
        return load(data)

    monkeypatch.setattr(safetensors.torch, "load", load_slowly)
    snapshot = checkpoints.latest()
    assert snapshot is not None and snapshot.state["images_seen"] == 64 and set(snapshot.tensors) >= {"G", "D"}


def test_looked_at_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment in which the only checkpoint has no name isn't taken for none at all."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = save(checkpoints, 64)
    aside = path.rename(path.with_name(f".{path.name}.partial"))
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: aside.rename(path))
    snapshot = checkpoints.latest()
    assert snapshot is not None and snapshot.state["images_seen"] == 64


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where the disk is full at any of the files, the earlier checkpoints are as they were, nothing partial is left,
    and one line says what failed, what is kept and what to do."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    earlier = save(checkpoints, 64)
    before = listing(tmp_path)
    written: list[str] = []

    def fails(path: Path, data: Any) -> None:
        written.append(path.name)
        if len(written) == number:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_synced(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", fails)
    with pytest.raises(UserError) as caught:
        save(checkpoints, 128)
    text = str(caught.value)
    assert "No space left on device" in text and f"{earlier} is kept" in text and "free some space" in text
    assert "\n" not in text and len(written) == number
    assert listing(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == [earlier.name]
    assert read(earlier).state["images_seen"] == 64
    monkeypatch.undo()
    assert read(save(checkpoints, 128)).state["images_seen"] == 128


def test_full_disk_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first one can't be written the line says that there is none."""

    def fails(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", fails)
    with pytest.raises(UserError, match="there is no earlier one"):
        save(Checkpoints(tmp_path / "checkpoints"), 64)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_full_disk_where_one_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is saved again stays as it was where the new one can't be written."""
    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 64)

    def fails(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", fails)
    with pytest.raises(UserError):
        save(checkpoints, 64)
    assert read(path).state["images_seen"] == 64


def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process left half-written is never taken for a checkpoint, and is cleared away when asked."""
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    save(checkpoints, 64)

    def dies(path: Path, data: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(checkpoint, "write_synced", dies)
        save(checkpoints, 128)
    assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in checkpoints.paths()] == ["000000000064"]
    snapshot = checkpoints.latest(said.append)
    assert snapshot is not None and snapshot.state["images_seen"] == 64 and said == []
    checkpoints.remove_partial()
    assert [path.name for path in tmp_path.iterdir()] == ["000000000064"]
    assert read(save(checkpoints, 128)).state["images_seen"] == 128
