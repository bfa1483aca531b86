"""Runs that start from another run's weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, refusal

from fastgan import networks, presets
from fastgan.commands import train
from fastgan.config import Config
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.networks.r3gan import R3Discriminator, R3Generator, Shape
from fastgan.runs.checkpoint import Checkpoint, Checkpoints
from fastgan.runs.run_folder import RunFolder
from fastgan.training import schedules
from fastgan.training.trainer import Trainer
from fastgan.training.warm_start import compare, load_matching

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")


def config_of(half_lives: tuple[float, ...] = (10_000.0,), **nets: object) -> Config:
    """The preset `debug` that starts from RUN, with other networks and averages."""
    base = presets.debug()
    return replace(
        base,
        transfer=Path("RUN"),
        networks=replace(base.networks, **nets),
        optimizer=replace(base.optimizer, ema_half_lives=half_lives),
    )


def trainer_of(config: Config) -> Trainer:
    return Trainer(config, networks.build(config, DEVICE), build_loader(config, named.load("toy"), DEVICE))


def step(trainer: Trainer) -> None:
    trainer.train_step(trainer.loader.batch(trainer.images_seen))


@pytest.fixture(scope="module")
def start() -> Checkpoint:
    """The state after two steps of `debug` with another seed, of which the averages aren't G."""
    trainer = trainer_of(replace(config_of((500.0, 50.0)), seed=7))
    step(trainer)
    trainer.warm_started = True
    step(trainer)
    tensors, state = trainer.state()
    return Checkpoint(
        Path("RUN"), {file: {name: value.clone() for name, value in group.items()} for file, group in tensors.items()},
        state,
    )  # fmt: skip


def begun(start: Checkpoint, **nets: object) -> Trainer:
    trainer = trainer_of(config_of(**nets))
    load_matching(trainer, start, compare(trainer.config, (trainer.G.net, trainer.D.net), start))
    return trainer


def tensors_of(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    return trainer.state()[0]


def test_everything_is_taken_over(start: Checkpoint) -> None:
    """From equal networks come all weights of G, D and, of the first average, the average; optimizers are new."""
    trainer = begun(start)
    ours = tensors_of(trainer)
    for file in ("G", "D", "G_ema"):
        assert ours[file].keys() == start.tensors[file].keys()
        assert all(torch.equal(value, start.tensors[file][name]) for name, value in ours[file].items())
    assert ours["optimizers"] == {} and start.tensors["optimizers"] and trainer.images_seen == 0
    assert not torch.equal(ours["G"]["dense.weight"], ours["G_ema"]["dense.weight"])


def test_only_equal_shapes_are_taken_over(start: Checkpoint) -> None:
    """Where shapes differ a tensor is as the seed makes it, in the averages too; it is named with both shapes."""
    trainer = begun(start, z_dim=50)
    ours, fresh = tensors_of(trainer), tensors_of(trainer_of(config_of(z_dim=50)))
    for file in ("G", "G_ema"):
        for name, value in ours[file].items():
            wanted = fresh[file] if name == "dense.weight" else start.tensors[file]
            assert torch.equal(value, wanted[name]), name
    found = compare(trainer.config, networks.build(trainer.config, DEVICE), start)
    units = ours["G"]["dense.weight"].shape[0]
    assert found.G.from_scratch == {"dense.weight": f"{units}x50, not {units}x100"} and found.D.from_scratch == {}
    dense, total = ours["G"]["dense.weight"].numel(), networks.num_parameters(trainer.G.net)
    assert found.G.share == pytest.approx(1 - dense / total) and found.D.share == 1
    assert f"from scratch: G.dense.weight ({units}x50, not {units}x100)" in str(found)
    assert f"G {len(ours['G']) - 1} of {len(ours['G'])} tensors ({100 * found.G.share:.3g}% " in str(found)


def test_averages_are_kept_with_all_of_g(start: Checkpoint) -> None:
    """After a step with all of G taken over the average is nearly RUN's; where a part is anew it has forgotten it."""
    for trainer, kept in ((begun(start), True), (begun(start, z_dim=50), False)):
        step(trainer)
        ours, name = tensors_of(trainer), "conv7.weight"
        assert trainer.warm_started == kept and torch.equal(ours["G_ema"][name], ours["G"][name]) != kept
        near, far = (ours["G_ema"][name] - start.tensors["G_ema"][name], ours["G"][name] - ours["G_ema"][name])
        assert not kept or near.norm() < 0.01 * far.norm()


def test_whole_half_lives() -> None:
    """Warm half-lives are whole at 0 images; cold ones are what the ramp makes of them."""
    warm, cold = (schedules.evaluate(config_of((640.0,)), 0, 32, 0, warm).ema_betas for warm in (True, False))
    assert warm == pytest.approx((0.5**0.05,)) and cold == (0.0,)
    assert schedules.evaluate(config_of(()), 0, 32, 0, warm_started=True).ema_betas == (0.0,)


def test_names_across_resolutions() -> None:
    """R3GAN's stages have the same names and shapes, from the base up, at every resolution, in G and in D."""
    for make in (lambda shape: R3Generator(5, 3, shape), lambda shape: R3Discriminator(3, shape)):
        low, high = (make(Shape(stages, blocks=2, group_width=4)).state_dict() for stages in ((8, 6), (8, 6, 4)))
        shapes = {name: value.shape for name, value in high.items()}
        ends = {"input.weight", "output.weight"}  # between the pixels and the highest stage
        assert all(shapes[name] == value.shape for name, value in low.items() if name not in ends)
        assert {name.split(".")[1] for name in high.keys() - low.keys()} == {
            *("stage2_match", "stage2_block0", "stage2_block1")
        }


def test_higher_resolution_of_r3gan() -> None:
    """A run at twice the resolution takes over all lower stages of both players; its new stage starts from scratch."""
    low = config_of(network="r3gan", stages=(32, 32), width=0.5, group_width=0)
    low = replace(low, data=replace(low.data, image_size=(14, 14)))
    high = replace(low, data=replace(low.data, image_size=(28, 28)), networks=replace(low.networks, stages=(32,) * 3))
    G, D = networks.build(low, DEVICE)
    start = Checkpoint(Path("RUN"), {"G": G.state_dict(), "D": D.state_dict()}, {"images_seen": 5})
    found = compare(high, networks.build(high, DEVICE), start)
    for side in (found.G, found.D):
        assert len(side.loaded) == len(G.state_dict()) and side.from_scratch
        assert all(name.startswith("trunk.stage2_") and why == "not there" for name, why in side.from_scratch.items())


def options(folder: Path, run: Path, *more: str) -> list[str]:
    return ["--preset", "debug", "--run-dir", str(folder), "--transfer", str(run), "--images", "96", *more]


def test_road(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run says what the run then says; later sessions do without RUN, and end as one that never stopped."""
    run, folder = tmp_path / "other", tmp_path / "run"
    shutil.copytree(debug_run, run)
    assert train.main([*options(folder, run, "--z-dim", "50"), "--dry-run"]) == 0
    (planned,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("transfer from"))
    assert f"transfer from {run} at 64 images: G " in planned and "from scratch: G.dense.weight" in planned
    assert not folder.exists()
    assert train.main(options(folder, run, "--z-dim", "50", "--checkpoint-every", "64")) == 0
    assert planned in capsys.readouterr().out.splitlines()
    listed = json.loads((folder / "transfer.json").read_text())
    assert (
        listed["run"] == str(run)
        and listed["images_seen"] == 64
        and list(listed["G"]["from_scratch"]) == ["dense.weight"]
    )
    wanted = Checkpoints(folder / "checkpoints").latest().tensors
    names = [path.name for path in Checkpoints(folder / "checkpoints").paths()]
    assert names == ["000000000000", "000000000064", "000000000096"]
    shutil.rmtree(run)
    for name in names[1:]:  # as if the process had been killed before its first step
        shutil.rmtree(folder / "checkpoints" / name)
    assert train.main(options(folder, run, "--z-dim", "50", "--dry-run")) == 0
    assert "transfer from" not in capsys.readouterr().out
    assert train.main(options(folder, run, "--z-dim", "50", "--checkpoint-every", "64")) == 0
    shown = capsys.readouterr().out
    assert "at 0 of 96 images" in shown and "transfer from" not in shown
    found = Checkpoints(folder / "checkpoints").latest().tensors
    assert all(torch.equal(value, wanted[file][name]) for file in wanted for name, value in found[file].items())


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        ("nothing", [], ["there is no run"]),
        ("no checkpoint", [], ["no checkpoint yet"]),
        ("run", ["--network", "dcgan", "--stages", "8", "8"], ["dcgan28, not dcgan", "--network dcgan28"]),
        ("alien run", [], ["no tensor of G and D has the same name and shape"]),
    ],
)
def test_refusals(
    make: str, more: list[str], words: list[str], debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be taken over is refused in one line, by the dry run as well, and no folder is made."""
    run = tmp_path / "other"
    if make != "nothing":
        run.mkdir()
        shutil.copy(debug_run / "config.json", run)
    if make == "run":
        shutil.copytree(debug_run / "checkpoints", run / "checkpoints")
    if make == "alien run":
        nothing = {"G": {"a": torch.zeros(3)}, "D": {"a": torch.zeros(3)}}
        Checkpoints(run / "checkpoints").save(nothing, {"images_seen": 5})
    for dry_run in ([], ["--dry-run"]):
        assert train.main([*options(tmp_path / "run", run, *more), *dry_run]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        assert shown.err.startswith(f"fastgan: error: transfer is {str(run)!r}: ")
        assert all(word in shown.err for word in words)
    assert not (tmp_path / "run").exists()


def test_another_start_is_another_run(debug_run: Path, tmp_path: Path) -> None:
    """A run folder that was begun without a transfer refuses one."""
    shutil.copytree(debug_run, tmp_path / "run")
    config = presets.parse_config(options(tmp_path / "run", debug_run))
    text = refusal(lambda: RunFolder(tmp_path / "run").check(config))
    assert f"transfer: {debug_run}, not None" in text


def test_hint_where_images_are_few() -> None:
    """A user's set of under 2,000 images without augmentation gets a hint; a named, larger or augmented one doesn't."""
    config = presets.get("ffhq64")
    plain = replace(config, objective=replace(config.objective, augment="none", augment_p=0.0))
    assert train._hint(plain, 1234) == (
        "1,234 images are few: D will memorise them; --preset fewshot, or --augment ada --augment-target 0.6"
    )
    assert train._hint(plain, 2000) is None and train._hint(config, 10) is None
    assert train._hint(presets.get("fewshot"), 10) is None and train._hint(presets.debug(), 1000) is None
