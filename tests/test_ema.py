import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DEVICE, EAGER, refusal
from torch import Tensor, nn

from fastgan import cli, networks, presets
from fastgan.commands import train
from fastgan.config import OptimizerConfig
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.evaluation.sampling import CheckpointSelector, open_run
from fastgan.runs import ema_profiles
from fastgan.runs.ema_snapshots import EmaSnapshots, read
from fastgan.runs.rows import read_rows
from fastgan.training import schedules
from fastgan.training.ema import Ema
from fastgan.training.trainer import Trainer
from fastgan.utils import files

STDS = (0.05, 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 640 images with two half-lives and two power-function averages, a snapshot every 64 images.

    Tests may add to its averages/ what `fastgan ema` makes.
    """
    folder = tmp_path_factory.mktemp("ema") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        assert train.main(options(folder, 640)) == 0
    return folder


def options(folder: Path, images: int) -> list[str]:
    return [
        *("--preset", "debug", "--images", str(images), "--run-dir", str(folder), "--checkpoint-every", "320"),
        *EAGER,
        *("--ema-half-lives", "500", "10", "--ema-stds", "0.05", "0.10", "--ema-snapshot-every", "64"),
    ]


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on standard error with which the command ends; its exit code is 2."""
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    return shown.err


class Walk:
    """A small network whose weights wander at random, and the averages of `stds` that follow it."""

    def __init__(self, stds: tuple[float, ...], seed: int = 0) -> None:
        self.net = nn.Sequential(nn.Linear(20, 50), nn.BatchNorm1d(50))
        self.stds, self.ema = stds, Ema(self.net, len(stds))
        self.images_seen = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.past: list[tuple[int, int, Tensor]] = []  # from, to, weights

    @torch.no_grad()
    def step(self, batch_size: int) -> None:
        for parameter in self.net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=self.generator), alpha=0.05)
        self.net[1].running_mean += 1
        betas = tuple(ema_profiles.beta(self.images_seen, batch_size, std) for std in self.stds)
        self.past.append((self.images_seen, self.images_seen + batch_size, flat(self.net)))
        self.images_seen += batch_size
        self.ema.update(self.net, betas)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


def file_weights(path: Path, net: nn.Module) -> Tensor:
    tensors = read(path)
    return torch.cat([tensors[name].double().flatten() for name, _ in net.named_parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def profile(tau: np.ndarray, t: float, std: float) -> np.ndarray:
    gamma = ema_profiles.gamma_of(std)
    return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


def test_averages_by_hand() -> None:
    """Each average is its beta of itself and the rest of G; buffers are G's own; G stays as it was."""
    G = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    G[0].weight.data.fill_(4.0)
    averages = Ema(G, 2)
    G[0].weight.data.fill_(8.0)
    G[1].running_mean.fill_(3.0)
    averages.update(G, (0.75, 0.0))
    assert [net[0].weight.item() for net in averages.nets] == [5.0, 8.0]
    averages.update(G, (0.5, 1.0))
    assert [net[0].weight.item() for net in averages.nets] == [6.5, 8.0]
    assert [net[1].running_mean.item() for net in averages.nets] == [3.0, 3.0]
    assert averages.net is averages.nets[0] and G[0].weight.item() == 8.0 and G[0].weight.requires_grad


def test_average_without_followers() -> None:
    """No averages cost nothing and complain of nothing."""
    averages = Ema(nn.Linear(1, 1), 0)
    averages.update(nn.Linear(1, 1), ())
    assert averages.nets == []


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_width_and_exponent(std: float) -> None:
    """gamma_of inverts the formula of sigma_rel, and that is the standard deviation of the profile, by summing."""
    gamma = ema_profiles.gamma_of(std)
    assert np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(std, rel=1e-10)
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000
    shares = profile(tau, 1.0, std) / len(tau)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert np.sqrt(shares @ tau**2 - (shares @ tau) ** 2) == pytest.approx(std, rel=1e-4)


def test_exponents_of_the_paper() -> None:
    """The paper's two averages have the exponents that it names."""
    assert [round(ema_profiles.gamma_of(std), 2) for std in STDS] == [16.97, 6.94]


def test_first_batch_is_the_average() -> None:
    """After the first batch nothing is left of the random first weights; then beta is (1 - B / t) ** (gamma + 1)."""
    config = presets.get("debug")
    config = replace(config, optimizer=replace(config.optimizer, ema_stds=STDS))
    assert schedules.evaluate(config, 0, 32, 0).power_betas == (0.0, 0.0)
    wanted = [(1 - 32 / 672) ** (ema_profiles.gamma_of(std) + 1) for std in STDS]
    assert schedules.evaluate(config, 640, 32, 20).power_betas == pytest.approx(wanted, rel=1e-12)
    assert schedules.evaluate(presets.get("debug"), 640, 32, 20).power_betas == ()


@pytest.mark.parametrize("std", [0.05, 0.25])
def test_average_in_closed_form(std: float) -> None:
    """An average holds of each step's weights the profile's integral over that step, whatever the batches' sizes."""
    walk = Walk((std,))
    for number in range(300):
        walk.step(1 + number * 37 % 64)
    power, t = ema_profiles.gamma_of(std) + 1, walk.images_seen
    wanted = sum(((stop / t) ** power - (start / t) ** power) * weights for start, stop, weights in walk.past)
    assert distance(flat(walk.ema.net), wanted) < 1e-6 * wanted.square().mean().sqrt()


def test_inner_products() -> None:
    """The closed form is the integral, found by summing, of the product of two profiles; it is symmetric."""
    tau = (np.arange(400_000) + 0.5) / 400_000
    for t, std, other_t, other_std in [(1.0, 0.05, 1.0, 0.1), (0.5, 0.05, 1.0, 0.1), (0.9, 0.2, 0.3, 0.01)]:
        a = (np.array(t), np.array(ema_profiles.gamma_of(std)))
        b = (np.array(other_t), np.array(ema_profiles.gamma_of(other_std)))
        wanted = (profile(tau, t, std) * profile(tau, other_t, other_std)).mean()
        assert ema_profiles.inner_product(*a, *b) == pytest.approx(wanted, rel=1e-3)
        assert ema_profiles.inner_product(*b, *a) == pytest.approx(float(ema_profiles.inner_product(*a, *b)))


@pytest.mark.parametrize(("num_times", "length"), [(2, 0.08), (8, 0.2), (20, 0.12), (20, 0.03)])
def test_fit(num_times: int, length: float) -> None:
    """Coefficients sum to 1; the error told is what remains, found by summing; no other such sum comes nearer."""
    stored = [(1000 * n, std) for n in range(1, num_times + 1) for std in STDS]
    at = 1000 * num_times
    coefficients, error = ema_profiles.fit(stored, at, length)
    assert coefficients.sum() == pytest.approx(1, abs=1e-9)
    tau = (np.arange(100_000) + 0.5) / 100_000
    profiles = np.stack([profile(tau, t / at, std) for t, std in stored])
    wanted = profile(tau, 1.0, length)

    def rest(coefficients: np.ndarray) -> float:
        return float(np.sqrt(((wanted - coefficients @ profiles) ** 2).mean() / (wanted**2).mean()))

    assert rest(coefficients) == pytest.approx(error, rel=0.02)
    random = np.random.default_rng(0)
    for _ in range(20):
        move = random.normal(size=len(stored))
        assert rest(coefficients + 0.01 * (move - move.mean())) > rest(coefficients)


def test_fit_of_what_is_stored() -> None:
    """A stored average is itself, also among a thousand that are nearly alike."""
    stored = [(10_000 + n, std) for n in range(500) for std in STDS]
    coefficients, error = ema_profiles.fit(stored, 10_499, 0.1)
    assert error == 0 and np.flatnonzero(coefficients).tolist() == [999] and coefficients[999] == 1
    assert np.abs(ema_profiles.fit(stored, 10_499, 0.08).coefficients).sum() < 20


def test_other_lengths_of_a_random_walk(tmp_path: Path) -> None:
    """Lengths that weren't stored come out of 20 snapshots of two that were as if they had been tracked."""
    lengths = (0.07, 0.08, 0.12, 0.15)
    walk = Walk(STDS + lengths)
    averages = EmaSnapshots(tmp_path, STDS)
    for number in range(1, 1001):
        walk.step(32)
        if number % 50 == 0:
            averages.save(walk.ema.nets[:2], walk.images_seen)
    assert len(averages.stored()) == 40
    tracked = [flat(net) for net in walk.ema.nets]
    for length, truth in zip(lengths, tracked[2:], strict=True):
        made = averages.reconstruct(length)
        nearest = min(distance(stored, truth) for stored in tracked[:2])
        assert distance(file_weights(made.path, walk.net), truth) < 0.03 * nearest
        assert made.error < 0.02 and made.num_snapshots == 40


def test_stored_length_bit_for_bit(tmp_path: Path) -> None:
    """A stored length comes out as it was stored, at the newest snapshot and at an earlier one; buffers too."""
    walk, averages, then = Walk(STDS), EmaSnapshots(tmp_path, STDS), []
    for _ in range(5):
        walk.step(32)
        averages.save(walk.ema.nets, walk.images_seen)
        then.append({name: value.clone() for name, value in walk.ema.nets[1].state_dict().items()})
    for number, made in ((4, averages.reconstruct(0.1)), (1, averages.reconstruct(0.1, at=64))):
        tensors = read(made.path)
        assert set(tensors) == set(then[number]) and made.images_seen == 32 * (number + 1) and made.error == 0
        assert all(torch.equal(tensors[name], value) for name, value in then[number].items())


def test_buffers_of_the_newest_snapshot(tmp_path: Path) -> None:
    """Buffers of any length, whole numbers too, are those of the snapshot at that place, not a mix."""
    walk, averages = Walk(STDS), EmaSnapshots(tmp_path, STDS)
    for _ in range(4):
        walk.step(32)
        walk.net[1].num_batches_tracked += 1
        averages.save(walk.ema.nets, walk.images_seen)
    tensors = read(averages.reconstruct(0.07, say=lambda _: None).path)
    assert torch.equal(tensors["1.running_mean"], torch.full((50,), 4.0))
    assert tensors["1.num_batches_tracked"].item() == 3


def test_weights_that_never_moved(tmp_path: Path) -> None:
    """Weights that stay come out as they are, however bad the fit: it is reported, and what would help."""
    walk, averages, said = Walk(STDS), EmaSnapshots(tmp_path, STDS), list[str]()
    for images_seen in (32, 64):
        averages.save([walk.net, walk.net], images_seen)
    made = averages.reconstruct(0.25, say=said.append)
    torch.testing.assert_close(file_weights(made.path, walk.net), flat(walk.net), rtol=1e-6, atol=1e-7)
    assert made.error > 0.5 and len(said) == 1 and "0.25" in said[0] and "--ema-snapshot-every" in said[0]
    said.clear()
    averages.reconstruct(0.055, say=said.append)
    assert said == []


def test_made_once(tmp_path: Path) -> None:
    """The same length of the same snapshots isn't made again; once there are more snapshots it is, and differs."""
    walk, averages = Walk(STDS), EmaSnapshots(tmp_path, STDS)
    for images_seen in (32, 64, 96):
        walk.step(32)
        averages.save(walk.ema.nets, images_seen)
    made = averages.reconstruct(0.08)
    before = made.path.stat().st_mtime_ns, made.path.read_bytes()
    assert averages.reconstruct(0.08) == made
    assert (made.path.stat().st_mtime_ns, made.path.read_bytes()) == before
    walk.step(32)
    averages.save(walk.ema.nets, 128)
    newer = averages.reconstruct(0.08)
    assert newer.path == made.path and newer.images_seen == 128 and newer.path.read_bytes() != before[1]
    made.path.write_bytes(b"damaged")
    assert averages.reconstruct(0.08) == newer and read(newer.path)


def test_names_of_lengths(tmp_path: Path) -> None:
    """Lengths that differ, however little, are files that differ."""
    averages = EmaSnapshots(tmp_path, STDS)
    averages.save([nn.Linear(2, 2)] * 2, 32)
    names = [averages.reconstruct(length).path.name for length in (0.08, 0.0801, 0.1, 1 / 12)]
    assert names[:3] == ["length-0.080.safetensors", "length-0.0801.safetensors", "length-0.100.safetensors"]
    assert len(set(names)) == 4


def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process left half-written is never read, and is cleared away when asked."""
    walk, averages = Walk(STDS), EmaSnapshots(tmp_path, STDS)
    walk.step(32)
    averages.save(walk.ema.nets, 32)

    def dies(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(files, "write_synced", dies)
        dying.setattr(Path, "unlink", lambda *_, **__: None)  # a kill leaves no time to tidy up
        averages.save(walk.ema.nets, 64)
    assert len(list(tmp_path.iterdir())) == 3
    assert [one.images_seen for one in averages.stored()] == [32, 32]
    assert averages.reconstruct(0.08).images_seen == 32
    averages.remove_partial()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("000000032-0.050.safetensors", "000000032-0.100.safetensors", "length-0.080.safetensors")
    ]


def test_killed_between_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only some averages have the newest snapshot the others' older ones serve."""
    walk, averages = Walk(STDS), EmaSnapshots(tmp_path, STDS)
    for images_seen in (32, 64, 96):
        walk.step(32)
        averages.save(walk.ema.nets, images_seen)
    (tmp_path / "000000096-0.050.safetensors").unlink()
    made = averages.reconstruct(0.1)
    assert made.images_seen == 96 and made.num_snapshots == 5
    assert torch.equal(read(made.path)["0.weight"], walk.ema.nets[1].state_dict()["0.weight"])


def test_damaged_snapshot(tmp_path: Path) -> None:
    """A snapshot that was cut short is named in one line."""
    averages = EmaSnapshots(tmp_path, STDS)
    for images_seen in (32, 64):
        averages.save([nn.Linear(2, 2)] * 2, images_seen)
    path = tmp_path / "000000032-0.100.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    text = refusal(lambda: averages.reconstruct(0.08))
    assert str(path) in text and "damaged" in text


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reconstruction can't be written nothing partial is left, and one line says what to do."""
    averages = EmaSnapshots(tmp_path, STDS)
    averages.save([nn.Linear(2, 2)] * 2, 32)
    before = sorted(tmp_path.iterdir())

    def fails(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_synced", fails)
    assert "No space left on device" in refusal(lambda: averages.reconstruct(0.08, say=lambda _: None))
    assert sorted(tmp_path.iterdir()) == before


def test_averages_on_resume() -> None:
    """A trainer that takes up another's state goes on with all its averages bit for bit."""
    config = presets.get("debug")
    config = replace(config, optimizer=replace(config.optimizer, ema_half_lives=(500, 50), ema_stds=STDS))
    loader = build_loader(config, named.load("toy"), DEVICE)
    first, second = (Trainer(config, networks.build(config, DEVICE), loader) for _ in range(2))

    def steps(trainer: Trainer) -> None:
        for _ in range(3):
            trainer.train_step(trainer.loader.batch(trainer.images_seen))

    steps(first)
    tensors, state = first.state()
    copies = {file: {name: value.clone() for name, value in group.items()} for file, group in tensors.items()}
    second.load_state(copies, json.loads(json.dumps(state)))
    for trainer in (first, second):
        steps(trainer)
    for name in ("G_ema", "G_ema1", "G_power0", "G_power1"):
        mine, others = first.state()[0][name], second.state()[0][name]
        assert all(torch.equal(mine[key], others[key]) for key in mine), name
    assert not torch.equal(*(flat(net) for net in first.power.nets))


def test_snapshots_of_a_resumed_run(run: Path, tmp_path: Path, keep_signal_handlers: None) -> None:
    """A run that ended and went on has the same snapshots, byte for byte, as one that never did; a leftover is gone."""
    folder = tmp_path / "run"
    assert train.main(options(folder, 320)) == 0
    (folder / "averages" / ".000000384-0.050.safetensors.x").write_bytes(b"half")
    assert train.main(options(folder, 640)) == 0
    wanted = sorted(run.glob("averages/0*"))
    assert [path.name for path in sorted(folder.glob("averages/*"))] == [path.name for path in wanted]
    assert len(wanted) == 20 and not list(folder.glob("averages/.*"))
    assert all((folder / "averages" / path.name).read_bytes() == path.read_bytes() for path in wanted)


def test_snapshots_are_the_checkpoints_averages(run: Path) -> None:
    """The last snapshots are the averages in the last checkpoint."""
    tensors = open_run(run)[2].tensors
    for number, std in enumerate(("0.050", "0.100")):
        stored = read(run / "averages" / f"000000640-{std}.safetensors")
        assert all(torch.equal(stored[name], value) for name, value in tensors[f"G_power{number}"].items())


def test_nothing_without_stds(debug_run: Path) -> None:
    """A run without ema_stds keeps no such averages and makes no folder for them."""
    assert not (debug_run / "averages").exists()
    assert not any(name.startswith("G_power") for name in open_run(debug_run)[2].tensors)


def test_number_of_an_average(run: Path) -> None:
    """Each half-life's average is had by its number, the first without one."""
    tensors = open_run(run)[2].tensors
    for which, name in (
        (CheckpointSelector(), "G_ema"),
        (CheckpointSelector(average=0), "G_ema"),
        (CheckpointSelector(average=1), "G_ema1"),
    ):
        G = open_run(run, which)[3]
        assert not G.training
        assert all(torch.equal(value, tensors[name][key]) for key, value in G.state_dict().items())
    assert any(not torch.equal(value, tensors["G_ema1"][key]) for key, value in tensors["G_ema"].items())


def test_road(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trained run, two lengths made of it, and images: those of the length asked for, also where it wasn't made."""
    assert cli.main(["ema", str(run), "--length", "0.08", "0.05"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 2 and shown.err == ""
    assert f"length 0.08 at 640 images, of 20 snapshots, error 0.72%: {run / 'averages' / 'length-0.080'}" in shown.out
    metadata = safetensors.safe_open(run / "averages" / "length-0.080.safetensors", "pt").metadata()
    about = json.loads(metadata["average"])
    assert (about["length"], about["at"], len(about["snapshots"])) == (0.08, 640, 20)
    assert about["error"] == pytest.approx(0.0072, abs=1e-4)
    pictures = {}
    for number, flags in enumerate((["0.08"], ["0.05"], ["0.06"], ["0.08", "--at", "320"])):
        out = tmp_path / str(number)
        assert cli.main(["sample", str(run), "--length", *flags, "--seeds", "0-3", "--grid", "--out", str(out)]) == 0
        pictures[number] = (out / "grid.png").read_bytes()
        assert f"after {320 if '--at' in flags else 640} images seen" in capsys.readouterr().out
    assert len(set(pictures.values())) == 4
    assert (run / "averages" / "length-0.060.safetensors").exists()
    assert (run / "averages" / "length-0.080-000000320.safetensors").exists()
    G = open_run(run, CheckpointSelector(length=0.05))[3]
    stored = read(run / "averages" / "000000640-0.050.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in G.state_dict().items())


def test_table_of_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--evaluate` each length is measured, kept with its name in evaluation.jsonl, and a row of a table."""
    command = ["ema", str(run), "--length", "0.07", "0.1", "--evaluate", "--images", "50"]
    assert cli.main(command) == 0
    rows = read_rows(run / "evaluation.jsonl")[-2:]
    assert [row["which"] for row in rows] == [
        {"best": False, "average": None, "length": n, "at": None} for n in (0.07, 0.1)
    ]
    heads, *table = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert heads == ["length", *rows[0]["metrics"]] and [line[0] for line in table] == ["0.07", "0.1"]
    for line, row in zip(table, rows, strict=True):
        assert [float(value) for value in line[1:]] == pytest.approx(list(row["metrics"].values()), abs=1e-4)
    assert cli.main(["evaluate", str(run), "--average", "1", "--images", "50"]) == 0
    assert read_rows(run / "evaluation.jsonl")[-1]["which"]["average"] == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ema", "RUN"], ["--length"]),
        (["ema", "RUN", "--length"], ["length", "--length 0.05 0.10"]),
        (["ema", "RUN", "--length", "0.3"], ["length is 0.3", "0.25"]),
        (["ema", "RUN", "--length", "0.1", "0"], ["length is 0.0", "from 0.001"]),
        (["ema", "RUN", "--length", "-0.1"], ["length"]),
        (["ema", "RUN", "--length", "nan"], ["length is nan"]),
        (["ema", "RUN", "--length", "0.1", "--at", "333"], ["at is 333", "320 and 384"]),
        (["ema", "nowhere", "--length", "0.1"], ["nowhere is no run folder"]),
        (["sample", "RUN", "--length", "0.3"], ["length is 0.3"]),
        (["sample", "RUN", "--average", "2"], ["average is 2", "has 2", "from 0 to 1"]),
        (["sample", "RUN", "--average", "-1"], ["average is -1", "has 2"]),
        (["sample", "RUN", "--average", "1", "--length", "0.1"], ["average is 1", "--length"]),
        (["evaluate", "RUN", "--at", "320"], ["at is 320", "--length"]),
        (["evaluate", "RUN", "--average", "7"], ["average is 7", "has 2"]),
    ],
)
def test_refusals(args: list[str], words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be made is refused in one line that names the value and what would be right."""
    text = complaint(capsys, *(str(run) if arg == "RUN" else arg for arg in args))
    assert all(word in text for word in words), text


def test_run_without_snapshots(debug_run: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that tracked none names the option that would have; one that has none yet is to train on."""
    assert "--ema-stds 0.05 0.10" in complaint(capsys, "ema", str(debug_run), "--length", "0.1")
    assert "has 1 of them, give 0" in complaint(capsys, "sample", str(debug_run), "--average", "1")
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert "train on" in complaint(capsys, "sample", str(tmp_path), "--length", "0.1")


@pytest.mark.parametrize("stds", [(0.0,), (0.3,), (-0.1,), (0.05, 0.05), (float("nan"),)])
def test_refused_stds(stds: tuple[float, ...]) -> None:
    """Widths outside (0, 0.25], or twice the same, are refused in one line."""
    assert "ema_stds is" in refusal(lambda: OptimizerConfig(ema_stds=stds))
