"""`fastgan export`: a folder that stands for the run, and programs that make the same images without fastgan."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import refusal
from PIL import Image

import fastgan
from fastgan import cli, networks
from fastgan.commands.export import ExportOptions, export
from fastgan.data.record import DatasetRecord
from fastgan.evaluation import model_folder, programs
from fastgan.evaluation.fidelity import latents
from fastgan.evaluation.model_card import escape
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.exported import FILES, portable
from fastgan.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")

HOSTILE = ["a|b: *c*\n# d", "<script>alert(1)</script>", "`x` [y](http://z) ![i](j)"]
FAMILIES = {
    "keras28": {"network": "dcgan28"},
    "keras128": {"network": "dcgan128", "image_size": (128, 128), "width": 0.1},
    "dcgan": {"network": "dcgan", "width": 1, "stages": (8, 8), "num_classes": 3, "smooth_image": True},
    "r3gan": {
        "network": "r3gan",
        "image_size": (6, 6),
        "width": 1,
        "stages": (16, 8),
        "group_width": 8,
        "condition": "vector",
        "vector_dim": 2,
        "precision": "bfloat16",
    },
    "stem": {"network": "r3gan", "image_size": (12, 12), "width": 1, "stages": (16, 8), "stem": 2, "num_classes": 2},
}


def make_run(path: Path, classes: list[str] | None = None, **settings: object) -> fastgan.Config:
    """A run that wasn't trained; G has weights that show in its images."""
    config = fastgan.configure("debug", run_dir=path, data="/home/me/secret/photos", **settings)
    record = DatasetRecord("/home/me/secret/photos", 9, "1234", None, classes)
    folder = RunFolder(path)
    folder.open(config, record.to_json())
    G, _ = networks.build(config)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in G.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    Checkpoints(folder.checkpoints).save({config.optimizer.ema_names[0]: G.state_dict()}, {"images_seen": 7})
    folder.close()
    return config


def labels_for(config: fastgan.Config, count: int) -> torch.Tensor | None:
    """Classes in turn, or vectors."""
    if config.networks.condition == "vector":
        return torch.linspace(-1, 1, 2 * count).view(count, 2)
    return networks.example_labels(config.networks, torch.arange(count))


# The folder


@pytest.fixture(scope="module")
def exported(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug run's export; tests must leave it as it is."""
    return export(ExportOptions(debug_run, out=tmp_path_factory.mktemp("export") / "model"))


def test_folder_is_the_run(debug_run: Path, exported: Path, tmp_path: Path) -> None:
    """An export makes the run's images, by the API and by the commands, and is the settings but for paths."""
    assert {path.name for path in exported.iterdir()} == {*FILES}
    ours, theirs = fastgan.load(debug_run), fastgan.load(exported)
    assert np.array_equal(ours.sample(range(5)), theirs.sample(range(5)))
    assert theirs.images_seen == 64 and theirs.config == portable(ours.config)
    assert cli.main(["sample", str(exported), "--seeds", "0-3", "--grid", "--out", str(tmp_path)]) == 0
    assert cli.main(["walk", str(exported), "--seeds", "0-1", "--frames", "2", "--out", str(tmp_path / "w.gif")]) == 0
    with Image.open(exported / "samples.png") as image:
        assert image.size == (240, 240)


def test_folder_names_no_path(tmp_path: Path) -> None:
    """No file of an export says where the run, its data or another run lay."""
    elsewhere = {"transfer": tmp_path / "other", "labels": "/home/me/secret/labels.csv"}
    make_run(tmp_path / "run", **elsewhere, tracker_project="my-secret")
    folder = export(ExportOptions(tmp_path / "run"))
    assert folder == tmp_path / "run" / "export" / "model"
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"secret" not in content and str(tmp_path).encode() not in content
    assert b"photos" in content and b"labels.csv" in content


def test_hostile_names(tmp_path: Path) -> None:
    """Names of classes come back as they were, and are plain text in the card; they choose classes in `sample`."""
    make_run(tmp_path / "run", HOSTILE, network="dcgan", stages=(8, 8), num_classes=3)
    folder = export(ExportOptions(tmp_path / "run", license="cc-by-4.0"))
    assert fastgan.load(folder).classes == HOSTILE
    assert cli.main(["sample", str(folder), "--class", HOSTILE[1], "--seeds", "0", "--out", str(tmp_path / "s")]) == 0
    card = (folder / "README.md").read_text()
    assert all(escape(name) in card for name in HOSTILE)
    assert "<" not in card and "\n# d" not in card and "](http" not in card and card.count("---\n") == 2
    assert escape("a|b\n<i>") == r"a\|b &lt;i&gt;"


def test_only_these_weights_metrics(debug_run: Path, tmp_path: Path) -> None:
    """Metrics are the last of each protocol, of the very weights: of other images seen and averages none."""
    run = tmp_path / "run"
    shutil.copytree(debug_run, run)

    def row(fid: float, seen: int = 64, fakes: int = 10, which: dict[str, object] | None = None) -> str:
        protocol = {"num_fakes": fakes, "data": "/home/me/secret/photos"}
        return json.dumps(
            {
                "images_seen": seen,
                "metrics": {"fid": fid},
                "protocol": protocol,
                "which": which or {},
                "session": "/home",
            }
        )

    rows = [
        row(9, fakes=5),
        row(1),
        row(2),
        row(3, seen=32),
        row(4, which={"average": 1}),
        row(5, which={"length": 0.1}),
    ]
    (run / "evaluation.jsonl").write_text("".join(f"{line}\n" for line in rows))
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in (row(6, seen=32), row(7, fakes=20))))
    folder = export(ExportOptions(run))
    found = json.loads((folder / "metrics.json").read_text())
    assert [(row["metrics"]["fid"], row["protocol"]) for row in found] == [
        (7, {"num_fakes": 20, "data": "photos"}),  # in training
        (9, {"num_fakes": 5, "data": "photos"}),
        (2, {"num_fakes": 10, "data": "photos"}),
    ]
    assert "| fid | 2 |" in (folder / "README.md").read_text() and "/home" not in str(found)
    (run / "evaluation.jsonl").write_text("{}\n")
    assert "evaluation.jsonl or metrics.jsonl is damaged" in refusal(lambda: export(ExportOptions(run)))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", lambda data: data[:1000], "model.safetensors is damaged"),
        ("model.safetensors", lambda data: safetensors.torch.save({"a": torch.zeros(1)}), "no export of fastgan's"),
        ("config.json", lambda data: data[:100], "config.json"),
        ("config.json", lambda data: data.replace(b'"z_dim": 100', b'"z_dim": 99'), "no weights of its networks"),
        ("config.json", None, "config.json"),
    ],
)
def test_damaged(
    exported: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None, words: str
) -> None:
    """An export of which something is missing, damaged, or another's is refused in one line."""
    shutil.copytree(exported, tmp_path / "model")
    path = tmp_path / "model" / name
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    assert words in refusal(lambda: fastgan.load(tmp_path / "model"))


def test_one_average(exported: Path) -> None:
    """An export has one average, so that no other can be asked for; and it is an export already."""
    assert "leave --best" in refusal(lambda: fastgan.load(exported, which="best"))
    assert "is an export already" in refusal(lambda: export(ExportOptions(exported)))


# Where to


def test_whole_or_not_there(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes an earlier one's place; where it fails that one stays, and nothing is left beside it."""
    out = tmp_path / "model"
    export(ExportOptions(debug_run, out=out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(model_folder, "card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(ExportOptions(debug_run, out=out, license="mit"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and [*tmp_path.iterdir()] == [out]
    monkeypatch.undo()
    export(ExportOptions(debug_run, out=out, license="mit"))
    assert "license: mit" in (out / "README.md").read_text() and [*tmp_path.iterdir()] == [out]


def test_others_stay(debug_run: Path, tmp_path: Path) -> None:
    """What is no export isn't overwritten: a run, a file, an export with something beside it."""
    (tmp_path / "file").write_text("mine")
    for out in (debug_run, tmp_path / "file", tmp_path):
        assert "not an export alone" in refusal(lambda out=out: export(ExportOptions(debug_run, out=out)))
        assert "not an export alone" in refusal(lambda out=out: export(ExportOptions(debug_run, "torch", out=out)))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to", "torch", "--opset", "18"], "opset is 18: it is for --to onnx"),
        (["--output", "uint8"], "output is uint8: it is for --to onnx or torch"),
        (["--to", "onnx", "--license", "mit"], "license is mit: it is for --to safetensors"),
        (["--to", "onnx", "--opset", "9"], "opset is 9: give 18 to 23"),
        (["--license", "My own: license"], "license is"),
        (["--to", "pickle"], "pickle"),
        (["--average", "3"], "average is 3"),
    ],
)
def test_mistakes(debug_run: Path, args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that are wrong, or of another format, are one line, and nothing is written."""
    assert cli.main(["export", str(debug_run), *args]) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and not (debug_run / "export").exists()


def test_what_differs_is_refused(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose images aren't G's isn't kept."""
    monkeypatch.setattr(programs, "trace", lambda module, config: None)
    monkeypatch.setattr(programs, "write_torch", lambda path, program, about: path.write_bytes(b"wrong"))
    monkeypatch.setattr(programs, "open_torch", lambda path: lambda z, label: torch.zeros(len(z), 1, 28, 28))
    text = refusal(lambda: export(ExportOptions(debug_run, "torch", out=tmp_path / "g.pt2")))
    assert "nothing is exported" in text and [*tmp_path.iterdir()] == []


# Programs


def test_torch_program(tmp_path: Path) -> None:
    """A .pt2 file makes G's images of any number of latents and classes, and says what it is, but no path."""
    config = make_run(tmp_path / "run", ["x", "y", "z"], **FAMILIES["dcgan"])
    path = export(ExportOptions(tmp_path / "run", "torch"))
    program, G = programs.open_torch(path), fastgan.load(tmp_path / "run").to("cpu")
    for count in (1, 4):
        z, label = latents(torch.arange(count), 100), labels_for(config, count)
        assert torch.allclose(program(z, label), G(z, label), atol=1e-5)
    about = {programs.ABOUT: ""}
    torch.export.load(path, extra_files=about)
    assert json.loads(about[programs.ABOUT])["classes"] == '["x", "y", "z"]'
    content = path.read_bytes()
    assert str(Path(fastgan.__file__).parent).encode() not in content and str(tmp_path).encode() not in content


@pytest.mark.slow
def test_torch_bytes(debug_run: Path, tmp_path: Path) -> None:
    """With uint8 it makes the pixels of `fastgan sample`."""
    path = export(ExportOptions(debug_run, "torch", tmp_path / "g.pt2", "uint8"))
    G = fastgan.load(debug_run).to("cpu")
    made = programs.open_torch(path)(latents(torch.arange(3), 100), None)
    assert made.dtype == torch.uint8 and np.abs(made.numpy().astype(int) - G.sample(range(3))).max() <= 1


WITHOUT_FASTGAN = """\
import sys, torch
sys.modules["fastgan"] = None  # importing it fails
for folder in sys.argv[1:]:
    program = torch.export.load(f"{folder}/run/export/model.pt2").module()
    inputs = torch.load(f"{folder}/inputs.pt", weights_only=True)
    torch.save(program(*inputs), f"{folder}/images.pt")
"""


@pytest.mark.slow
def test_torch_without_fastgan(tmp_path: Path) -> None:
    """Every family's .pt2 file runs where fastgan can't be imported, and makes G's images."""
    wanted = {}
    for name, settings in FAMILIES.items():
        config = make_run(tmp_path / name / "run", **settings)
        export(ExportOptions(tmp_path / name / "run", "torch"))
        z, label = latents(torch.arange(3), 100), labels_for(config, 3)
        torch.save((z,) if label is None else (z, label), tmp_path / name / "inputs.pt")
        module = programs.module_of(config, fastgan.load(tmp_path / name / "run").to("cpu").module, as_bytes=False)
        wanted[name] = module(z, label)
    folders = [str(tmp_path / name) for name in FAMILIES]
    subprocess.run([sys.executable, "-c", WITHOUT_FASTGAN, *folders], check=True, cwd=tmp_path)
    for name, images in wanted.items():
        found = torch.load(tmp_path / name / "images.pt", weights_only=True)
        assert torch.allclose(found, images, atol=1e-5) and images.std() > 0.01, name


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx(tmp_path: Path, name: str) -> None:
    """onnxruntime makes each family's images, of any number of latents; the file says what it is, but no path."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = make_run(tmp_path / "run", ["x", "y", "z"][: FAMILIES[name].get("num_classes", 0)], **FAMILIES[name])
    output = "uint8" if name == "stem" else "float32"
    path = export(ExportOptions(tmp_path / "run", "onnx", output=output, opset=20 if name == "dcgan" else None))
    session = onnxruntime.InferenceSession(path)
    module = programs.module_of(config, fastgan.load(tmp_path / "run").to("cpu").module, output == "uint8")
    kinds = {given.name: given.type for given in session.get_inputs()}
    of_labels = {
        "dcgan": {"label": "tensor(int64)"},
        "stem": {"label": "tensor(int64)"},
        "r3gan": {"vector": "tensor(float)"},
    }
    assert kinds == {"z": "tensor(float)"} | of_labels.get(name, {})
    for count in (1, 4):
        z, label = latents(torch.arange(count), 100), labels_for(config, count)
        given = dict(zip(kinds, (z.numpy(), None if label is None else label.numpy()), strict=False))
        (images,) = session.run(["images"], given)
        wanted = module(z, label).numpy()
        assert images.shape == wanted.shape and images.dtype == wanted.dtype and wanted.std() > 0.01
        assert np.abs(images.astype(float) - wanted).max() <= (1 if output == "uint8" else 1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert said["images_seen"] == "7" and said["fastgan_version"] == fastgan.__version__
    assert ("classes" in said) == (config.networks.num_classes > 0)
    content = path.read_bytes()
    assert str(Path(fastgan.__file__).parent).encode() not in content and str(tmp_path).encode() not in content


def test_onnx_is_an_extra(debug_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its packages the format is refused in one line that says what to install."""
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda package: None)
    assert "pip install 'fastgan[onnx]'" in refusal(lambda: export(ExportOptions(debug_run, "onnx")))
