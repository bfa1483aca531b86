"""`fastgan import`: R3GAN's own snapshots are the same networks here, and nothing that a file says is executed."""

import builtins
import os
import pickle
import shlex
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fastgan import cli, networks, presets
from fastgan.commands.import_run import Weights, _config, import_run
from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.presets import as_flags, parse_config
from fastgan.runs.checkpoint import Checkpoints
from fastgan.utils.pickles import Inert, read_pickle

SNAPSHOTS = Path(__file__).with_name("data") / "r3gan-snapshots"
FLOAT32 = ("--precision", "float32")  # as the expected images were made


@pytest.mark.parametrize("name", ["ten-classes-16", "unconditional-32"])
def test_a_snapshot_makes_the_images_and_logits_of_its_own_program(name: str, tmp_path: Path) -> None:
    config = import_run(str(SNAPSHOTS / f"{name}.pkl"), tmp_path / "run", FLOAT32)
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    wanted = load_file(SNAPSHOTS / f"{name}-expected.safetensors")
    assert checkpoint is not None
    G, D = networks.build(config)
    labels = wanted.get("labels")
    with torch.no_grad():
        for net in ("G", "G_ema"):
            G.load_state_dict(checkpoint.tensors[net])
            assert torch.allclose(G(wanted["z"], labels), wanted[f"images_{net}"], rtol=0, atol=1e-5)
        D.load_state_dict(checkpoint.tensors["D"])
        logits = D(wanted["images_G"], labels)
    assert torch.allclose(logits, wanted["logits_D_of_images_G"], rtol=0, atol=1e-5)
    assert checkpoint.state["images_seen"] == 1_234_567 and not checkpoint.state["warm"]


def test_the_run_has_what_its_file_says_of_itself(tmp_path: Path) -> None:
    """Size, classes, widths, precision by stage, mirrored images; flags of train come after."""
    config = import_run(str(SNAPSHOTS / "ten-classes-16.pkl"), tmp_path / "run", ["--batch-size", "7"])
    assert (config.data.image_size, config.data.channels, config.data.batch_size) == ((16, 16), 3, 7)
    assert config.data.mirror
    found = config.networks
    assert (found.stages, found.num_classes, found.z_dim, found.blocks) == ((32, 32, 16), 10, 64, 2)
    assert (found.precision, found.float32_stages) == ("bfloat16", 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(20):
        path = tmp_path / "photos" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 10, 0, 255 - number * 10)).save(path)
    return tmp_path / "photos"


def test_it_resumes_samples_and_serves_transfer(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], keep_signal_handlers: None
) -> None:
    """By the command that the import prints; Adam's moments are those of the file."""
    run = tmp_path / "run"
    small = ["--data", str(photos), "--batch-size", "4", "--images", "1234571", "--eval-every", "0"]
    small += ["--grid-side", "2", "--log-every", "4", "--compile", "off"]
    assert cli.main(["import", str(SNAPSHOTS / "ten-classes-16.pkl"), str(run), *FLOAT32, *small]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("train on: fastgan ")
    start = Checkpoints(run / "checkpoints").latest()
    assert start is not None
    assert cli.main(shlex.split(command)) == 0
    end = Checkpoints(run / "checkpoints").latest()
    assert end is not None and end.state["images_seen"] == 1_234_571
    for side in "GD":
        key = f"{side}/0/exp_avg_sq"
        assert start.tensors["optimizers"][key].abs().sum() > 0
        assert torch.equal(
            end.tensors["optimizers"][f"{side}/0/step"], start.tensors["optimizers"][f"{side}/0/step"] + 1
        )
    assert cli.main(["sample", str(run), "--seeds", "0-3", "--class", "2", "--out", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    other = [*shlex.split(command)[1:], "--images", "4", "--run-dir", str(tmp_path / "other"), "--transfer", str(run)]
    assert cli.main(["train", *other]) == 0
    assert "(100% of the parameters)" in capsys.readouterr().out


def test_weights_of_g_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """State dicts by R3GAN's names or ours, and a snapshot's G_ema alone, make the same images."""
    whole = import_run(str(SNAPSHOTS / "unconditional-32.pkl"), tmp_path / "whole", FLOAT32)
    checkpoint = Checkpoints(tmp_path / "whole" / "checkpoints").latest()
    assert checkpoint is not None
    ours = {name: value.contiguous() for name, value in checkpoint.tensors["G_ema"].items()}
    theirs = _tensors(read_pickle(SNAPSHOTS / "unconditional-32.pkl")["G_ema"])
    save_file(ours, tmp_path / "ours.safetensors")
    save_file(theirs, tmp_path / "theirs.safetensors")
    torch.save(theirs, tmp_path / "theirs.pt")
    for number, name in enumerate(("ours.safetensors", "theirs.safetensors", "theirs.pt")):
        config = import_run(str(tmp_path / name), tmp_path / str(number), FLOAT32)
        found = Checkpoints(tmp_path / str(number) / "checkpoints").latest()
        assert config.networks == whole.networks and found is not None
        assert found.state["warm"]  # its averages are whole from the start
        assert all(torch.equal(found.tensors["G_ema"][key], value) for key, value in ours.items())
    assert "it has no D" in capsys.readouterr().out


def test_weights_of_a_recipes_networks_have_its_recipe() -> None:
    """All of it, down to the stages in float32, which weights alone don't tell; what a file does say goes first."""
    recipe = presets.get("ffhq256")
    found = Weights({"G_ema": dict(networks.build(recipe)[0].state_dict())})
    config = _config(found, [])
    assert replace(config, data=recipe.data, run=recipe.run) == recipe
    found.precisions, found.mirror = ("torch.float32",) * 7, False
    config = _config(found, [])
    assert config.networks.precision == "float32" and not config.data.mirror


def test_weights_of_other_networks_need_their_preset(tmp_path: Path) -> None:
    G, _ = networks.build(parse_config(["--preset", "mnist28-fast"]))
    save_file({name: value.contiguous() for name, value in G.state_dict().items()}, tmp_path / "G.safetensors")
    with pytest.raises(UserError, match="give the --preset"):
        import_run(str(tmp_path / "G.safetensors"), tmp_path / "run")
    import_run(str(tmp_path / "G.safetensors"), tmp_path / "run", ["--preset", "mnist28-fast"])
    with pytest.raises(UserError, match="its G isn't the network's"):
        import_run(str(tmp_path / "G.safetensors"), tmp_path / "other", ["--preset", "mnist28-fast", "--width", "2"])


def _tensors(module: Inert, prefix: str = "") -> dict[str, torch.Tensor]:
    found = {prefix + name: value for name, value in module.state["_parameters"].items() if value is not None}
    for name, child in module.state["_modules"].items():
        found |= _tensors(child, f"{prefix}{name}.")
    return found


class _Calls:
    """Pickled, a call of the function; `state` would be set on what it returns."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


class _Hides:
    """The bytes of a tensor's storage, with something else in them."""

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (pickle.dumps(_Calls(os.system, "touch executed")),)


def _text(text: str) -> bytes:
    return b"\x8c" + struct.pack("B", len(text)) + text.encode()


HOSTILE: dict[str, bytes] = {
    "a call": pickle.dumps(_Calls(os.system, "touch executed")),
    "a call deep inside": pickle.dumps({"G_ema": OrderedDict(a=[_Calls(os.system, "touch executed")])}),
    "a call by protocol 0": pickle.dumps(_Calls(os.system, "touch executed"), protocol=0),
    "a call by protocol 2": pickle.dumps(_Calls(os.system, "touch executed"), protocol=2),
    "eval": pickle.dumps(_Calls(builtins.eval, "open('executed', 'w')")),
    "getattr": pickle.dumps(_Calls(getattr, "a", "upper")),
    "an instance made by a call": b"(S'touch executed'\nios\nsystem\n.",
    "an object made by a call": b"(cos\nsystem\nS'touch executed'\no.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent name": b"\x80\x04\x8c\x01xQ.",
    "a storage": pickle.dumps({"G_ema": _Hides()}),
    "a new object of a function": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + _text("touch") + b"\x85\x81.",
    "a state of a function": b"\x80\x04" + _text("os") + _text("system") + b"\x93}b.",
    "a view outside its storage": pickle.dumps(
        _Calls(
            torch._utils._rebuild_tensor_v2, torch.zeros(2)._typed_storage(), 0, (10**10,), (1,), False, OrderedDict()
        )
    ),
    "no pickle": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
    "half a snapshot": (SNAPSHOTS / "ten-classes-16.pkl").read_bytes()[:100_000],
}


WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")


@pytest.fixture(scope="module")
def audited() -> list[str]:
    """What the process has done, since it was last cleared, that would tell of code from a file: a hook stays."""
    events: list[str] = []
    sys.addaudithook(lambda event, _: events.append(event) if event in WATCHED else None)
    return events


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_in_it_executed(
    kind: str,
    audited: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line; an audit hook sees no command, and no class or function that the file names is looked up."""
    monkeypatch.chdir(tmp_path)
    Path("bad.pkl").write_bytes(HOSTILE[kind])
    audited.clear()
    assert cli.main(["import", "bad.pkl", "run"]) == 2
    assert not audited
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("executed").exists() and not Path("run").exists()


def test_the_audit_hook_sees_pythons_own_unpickling(audited: list[str]) -> None:
    """So that its silence means something."""
    audited.clear()
    pickle.loads(HOSTILE["getattr"])
    assert audited == ["pickle.find_class"]


def test_classes_are_names(tmp_path: Path) -> None:
    """An object of any class is what the file says of it; the class isn't imported."""
    content = b"\x80\x04" + _text("no.such.module") + _text("Class") + b"\x93)\x81}" + _text("a") + b"K\x07sb."
    (tmp_path / "file.pkl").write_bytes(content)
    found = read_pickle(tmp_path / "file.pkl")
    assert isinstance(found, Inert) and str(found.kind) == "no.such.module.Class" and found.state == {"a": 7}
    assert "no.such.module" not in sys.modules


def test_tensors_share_what_they_shared(tmp_path: Path) -> None:
    """Views of one storage are views of one again, and as they were."""
    base = torch.arange(12.0)
    wanted = {"whole": base.view(3, 4), "turned": base.view(3, 4).T, "part": base[3:5]}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(wanted))
    found = read_pickle(tmp_path / "file.pkl")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        import_run(str(SNAPSHOTS / "ten-classes-16.pkl"), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_an_address_needs_a_hash(tmp_path: Path) -> None:
    for file, sha256 in (("https://example.org/a.pkl", None), ("http://example.org/a.pkl", "0" * 64)):
        with pytest.raises(UserError, match="https://, and its --sha256"):
            import_run(file, tmp_path / "run", sha256=sha256)


@pytest.mark.parametrize("flags", [[], ["--preset", "ffhq64", "--gamma", "3", "--no-mirror", "--betas", "0.5", "0.9"]])
def test_flags_of_a_config_make_it_again(flags: list[str]) -> None:
    config: Config = parse_config(flags)
    assert parse_config(as_flags(config)) == config
