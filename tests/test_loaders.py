"""Three loaders, one contract: the same batches, wherever and on however many processes they begin."""

import io
import json
import multiprocessing
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan import presets
from fastgan.config import ObjectiveConfig
from fastgan.data import dali
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader, check, choose_loader, open_dataset
from fastgan.data.prepared import PreparedDataset
from fastgan.errors import UserError

CPU = torch.device("cpu")  # beside which one test here puts a GPU
NUM, SIZE, BATCH = 45, (10, 14), 16  # batches of 16, 16, 13
needs_dali = pytest.mark.skipif(not dali.is_installed(), reason="DALI isn't installed")
LOADERS = ("in_memory", "torch", pytest.param("dali", marks=needs_dali))
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def write_prepared(folder: Path, channels: int, encoding: str, labelled: bool = True) -> list[np.ndarray]:
    """A prepared set of smooth random images in two shards, written by hand; its decoded images."""
    random, decoded, places = np.random.default_rng(channels), [], []
    folder.mkdir()
    shards = [folder / "shard-000000.tar", folder / "shard-000001.tar"]
    for number, shard in enumerate(shards):
        with tarfile.open(shard, "w") as archive:
            for item in range(NUM)[number * 25 : number * 25 + 25]:
                coarse = random.integers(0, 256, (3, 4, channels), np.uint8)
                layers = [Image.fromarray(coarse[:, :, c]).resize(SIZE[::-1]) for c in range(channels)]
                image = np.dstack([np.asarray(layer) for layer in layers])
                buffer = io.BytesIO()
                Image.fromarray(image.squeeze()).save(buffer, format=encoding, quality=95)
                member = tarfile.TarInfo(f"{item:09d}.{encoding}")
                member.size = buffer.tell()
                place = archive.offset + 512
                archive.addfile(member, io.BytesIO(buffer.getvalue()))
                places.append((number, place, member.size, item % 7))
                decoded.append(np.asarray(Image.open(buffer)).reshape(*SIZE, channels))
    columns = torch.tensor(places).unbind(1)
    names = ("shard", "offset", "length", "label")[: 4 if labelled else 3]
    members = {name: column.contiguous() for name, column in zip(names, columns, strict=False)}
    (folder / "members.safetensors").write_bytes(safetensors.torch.save(members))
    index = {"format": 1, "num_images": NUM, "image_size": SIZE, "channels": channels, "encoding": encoding}
    index |= {"content_hash": "0123456789abcdef", "shards": [{"name": shard.name} for shard in shards]}
    (folder / "index.json").write_text(json.dumps(index))
    return decoded


def config_for(
    loader: str,
    channels: int = 3,
    mirror: bool = False,
    keep_partial: bool = True,
    workers: int = 0,
    reuse_reals: bool = True,
):
    config = presets.get("debug")
    return replace(
        config,
        data=replace(
            config.data,
            image_size=SIZE,
            channels=channels,
            batch_size=BATCH,
            mirror=mirror,
            keep_partial_batch=keep_partial,
        ),
        objective=ObjectiveConfig(loss="relativistic", reuse_reals=reuse_reals),
        run=replace(config.run, loader=loader, workers=workers),
    )


def batches(config, source, start: int, count: int, rank: int = 0, num_processes: int = 1):
    """`count` batches from `start` on, and where they begin."""
    loader = build_loader(config, source, CPU, rank, num_processes)
    found, seen = [], start
    for _ in range(count):
        found.append(loader.batch(seen))
        seen += found[-1].global_size
    return found


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Prepared sets by (channels, encoding), each with its decoded images."""
    folder, made = tmp_path_factory.mktemp("sets"), {}
    for channels, encoding in ((1, "png"), (3, "png"), (4, "png"), (3, "jpeg"), (1, "jpeg")):
        path = folder / f"{channels}-{encoding}"
        images = write_prepared(path, channels, encoding)
        made[channels, encoding] = (PreparedDataset(path), images)
    return made


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("channels", "encoding"), [(1, "png"), (3, "png"), (4, "png"), (3, "jpeg"), (1, "jpeg")])
def test_pixels_are_those_of_the_files(sets, loader, channels, encoding):
    """Over two epochs each image has its label and its file's pixels, channels last: PNG's exactly, JPEG's nearly."""
    source, images = sets[channels, encoding]
    order = batches(config_for("in_memory", channels), source, 0, 8)
    for batch, wanted in zip(batches(config_for(loader, channels), source, 0, 8), order, strict=True):
        assert all(image.permute(1, 2, 0).is_contiguous() for image in batch.pixels)
        found = batch.pixels.int()
        items = [
            min(range(NUM), key=lambda n: np.abs(images[n].astype(int) - pixels.permute(1, 2, 0).numpy()).sum())
            for pixels in found
        ]
        right = torch.from_numpy(np.stack([images[item] for item in items])).permute(0, 3, 1, 2)
        assert (found - right.int()).abs().max() <= (0 if encoding == "png" else 2)
        assert batch.labels.tolist() == [item % 7 for item in items]
        assert torch.equal(batch.sample_ids, wanted.sample_ids) and batch.labels.tolist() == wanted.labels.tolist()
        assert batch.global_size == wanted.global_size


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("keep_partial", [True, False])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_and_resume_points_see_one_sequence(sets, loader, keep_partial, num_processes):
    """The shares of 1, 2 and 3 processes, from the start and from any later batch, are the one sequence of batches."""
    source, _ = sets[3, "png"]
    whole = batches(config_for("in_memory", keep_partial=keep_partial, reuse_reals=False), source, 0, 7)
    config = config_for(loader, keep_partial=keep_partial, reuse_reals=False)
    for first in (0, 2, 4):
        start = sum(batch.global_size for batch in whole[:first])
        shares = [batches(config, source, start, 3, rank, num_processes) for rank in range(num_processes)]
        for number in range(3):
            found = [share[number] for share in shares]
            for parts, wanted in (
                (found, whole[first + number]),
                ([part.for_g for part in found], whole[first + number].for_g),
            ):
                for name in ("pixels", "labels", "sample_ids"):
                    assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(wanted, name))


@pytest.mark.parametrize("loader", LOADERS)
def test_gs_phase_has_reals_of_its_own(sets, loader):
    """G's reals are each image once an epoch, in another order than D's, mirrored for themselves; D's stay the same."""
    source, _ = sets[3, "png"]
    plain, separate = (
        batches(config_for(loader, mirror=True, reuse_reals=reuse_reals), source, 0, 6) for reuse_reals in (True, False)
    )
    for one, other in zip(plain, separate, strict=True):
        assert one.for_g is one
        for name in ("pixels", "labels", "sample_ids", "mirror"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(other.sample_ids, other.for_g.sample_ids) and other.global_size == other.for_g.global_size
    item_of = {source.pixels(torch.tensor([item])).numpy().tobytes(): item for item in range(NUM)}
    orders, mirrors = [], []
    for batches_of in (separate, [batch.for_g for batch in separate]):
        images = torch.cat([batch.pixels for batch in batches_of])
        items = [item_of[image.contiguous().numpy().tobytes()] for image in images]
        assert sorted(items[:NUM]) == sorted(items[NUM:]) == list(range(NUM))
        assert torch.cat([batch.labels for batch in batches_of]).tolist() == [item % 7 for item in items]
        orders += [items[:NUM], items[NUM:]]
        mirrors.append(torch.cat([batch.mirror for batch in batches_of]))
    assert len({tuple(order) for order in orders}) == 4
    assert 0.3 < (mirrors[0] == mirrors[1]).float().mean() < 0.7


@pytest.mark.parametrize("loader", LOADERS)
def test_any_place_may_be_asked_for(sets, loader):
    """A loader that is asked for an earlier place, or jumps ahead, gives that place's batch."""
    source, _ = sets[3, "png"]
    wanted = build_loader(config_for("in_memory"), source, CPU)
    asked = build_loader(config_for(loader), source, CPU)
    for place in (0, 16, 0, 45 * 3, 32, 45):
        assert torch.equal(asked.batch(place).pixels, wanted.batch(place).pixels)


@pytest.mark.parametrize("loader", LOADERS)
def test_mirroring_is_decided_by_the_images_number(sets, loader):
    """About half of the images are mirrored, the same ones in every loader, others in another epoch."""
    source, _ = sets[3, "png"]
    plain = batches(config_for("in_memory", keep_partial=False), source, 0, 20)
    mirrored = batches(config_for(loader, mirror=True, keep_partial=False), source, 0, 20)
    flips = []
    for before, after in zip(plain, mirrored, strict=True):
        for image, other in zip(before.reals, after.reals, strict=True):
            flips.append(not torch.equal(image, other))
            assert torch.equal(other, image.flip(2) if flips[-1] else image)
    assert 0.4 < sum(flips) / len(flips) < 0.6
    again = batches(config_for("in_memory", mirror=True, keep_partial=False), source, 0, 20)
    assert all(torch.equal(a.reals, b.reals) for a, b in zip(mirrored, again, strict=True))
    parts = [mirrored[0].micro_batch(slice(start, start + 2)).reals for start in range(0, len(mirrored[0].pixels), 2)]
    assert torch.equal(torch.cat(parts), mirrored[0].reals)


class Devices(TorchDispatchMode):
    """Notes where the tensors are that operations take and make."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.seen |= {tensor.device.type for tensor in tensors}
        return result


@pytest.mark.parametrize("place", [0, 32, 45 * 5])
def test_batches_in_memory_are_made_on_the_device(sets, place):
    """No part of a batch in memory comes from the CPU, the first of an epoch and one across its end included."""
    source, _ = sets[3, "png"]
    config = config_for("in_memory", mirror=True, keep_partial=False, reuse_reals=False)
    loader = build_loader(config, source, torch.device("meta"))
    with Devices() as devices:
        batch = loader.batch(place)
    assert devices.seen == {"meta"}
    assert batch.labels.shape == batch.for_g.labels.shape == (BATCH,) and batch.for_g.pixels.shape == (BATCH, 3, *SIZE)


@pytest.mark.gpu
@pytest.mark.parametrize("loader", LOADERS)
def test_batches_on_a_gpu_are_those_of_the_cpu(sets, loader):
    """Every loader brings the CPU's batches to a GPU, after a jump as well, and none waits for it."""
    source, _ = sets[3, "png"]
    config = config_for(loader, mirror=True, reuse_reals=False)
    mine, others = (build_loader(config, source, torch.device(kind)) for kind in ("cuda", "cpu"))
    found = []
    for place in (0, 16, 32, 45, 16, 32, 45):
        torch.cuda.set_sync_debug_mode("error" if place else "default")  # at the start all is set up
        try:
            found.append((mine.batch(place), others.batch(place)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for batch, wanted in found:
        for part, other in ((batch, wanted), (batch.for_g, wanted.for_g)):
            for name in ("pixels", "labels", "sample_ids", "mirror"):
                assert torch.equal(getattr(part, name).cpu(), getattr(other, name))


def test_worker_processes_do_not_change_the_batches(sets):
    """Two worker processes give the batches of none."""
    source, _ = sets[1, "png"]
    found = [
        torch.cat([b.pixels for b in batches(config_for("torch", channels=1, workers=workers), source, 16, 6)])
        for workers in (0, 2)
    ]
    assert torch.equal(found[0], found[1])


def test_worker_processes_end_in_order():
    """Workers that a loader drops while they hand on batches end with exit code 0."""
    source = ArrayDataset("memory", torch.zeros(50, 3, 256, 256, dtype=torch.uint8))
    config = config_for("torch", workers=2)
    config = replace(config, data=replace(config.data, image_size=(256, 256)))
    workers, others = set(), set(multiprocessing.active_children())
    for _ in range(4):
        loader = build_loader(config, source, CPU)
        loader.batch(0)
        workers |= set(multiprocessing.active_children()) - others
    del loader
    assert len(workers) == 8 and {worker.exitcode for worker in workers} == {0}


@needs_dali
def test_choice_of_loader(sets, monkeypatch):
    """Small sets go into memory; larger ones to DALI where prepared and it is installed, else to torch."""
    source, _ = sets[3, "png"]
    auto = config_for("auto")
    assert choose_loader(auto, source)[0] == "in_memory"
    tight = replace(auto, run=replace(auto.run, in_memory_gib=1e-9))
    assert choose_loader(tight, source)[0] == "dali"
    in_memory = ArrayDataset("memory", torch.zeros(50, 3, *SIZE, dtype=torch.uint8))
    assert choose_loader(tight, in_memory)[0] == "torch"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name, reason = choose_loader(tight, source)
    assert name == "torch" and "DALI isn't installed" in reason


def test_unprepared_set_is_refused_by_dali():
    """`--loader dali` on a set that isn't prepared says what to do."""
    source = ArrayDataset("memory", torch.zeros(50, 3, *SIZE, dtype=torch.uint8))
    with pytest.raises(UserError, match="`fastgan data prepare` it first"):
        build_loader(config_for("dali"), source, CPU)


def test_batches_smaller_than_the_processes_are_refused(sets):
    """A last batch that can't give each process an image is refused before training."""
    source = ArrayDataset("memory", torch.zeros(33, 3, *SIZE, dtype=torch.uint8))
    check(config_for("auto"), source, num_processes=1)
    with pytest.raises(UserError, match="the smallest batch has 1 images for 2 processes"):
        check(config_for("auto"), source, num_processes=2)
    check(config_for("auto", keep_partial=False), source, num_processes=2)


def test_damaged_sets_are_refused(tmp_path):
    """A missing shard, an index of another format, members that don't fit: each is one line."""
    for number, (damage, said) in enumerate(
        (
            (lambda f: (f / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
            (lambda f: (f / "index.json").write_text("{"), "is no whole prepared data set"),
            (lambda f: (f / "members.safetensors").write_bytes(b"x"), "is no whole prepared data set"),
            (lambda f: (f / "index.json").write_text('{"format": 9}'), "has format 9"),
        )
    ):
        folder = tmp_path / str(number)
        write_prepared(folder, 3, "png")
        damage(folder)
        with pytest.raises(UserError, match=said):
            PreparedDataset(folder)


def test_changed_shard_is_noticed(tmp_path):
    """Pixels that can't be decoded any more are one line that names the set."""
    write_prepared(tmp_path / "set", 3, "png")
    source = PreparedDataset(tmp_path / "set")
    shard = tmp_path / "set" / "shard-000000.tar"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(UserError, match="is damaged"):
        PreparedDataset(tmp_path / "set").pixels(torch.arange(3))
    assert len(source) == NUM


def test_unknown_data_says_what_there_is():
    """Data that is neither a folder nor a known name is refused with both ways."""
    config = config_for("auto")
    with pytest.raises(UserError, match=r"no data set 'imagnet'.*fastgan data prepare.*mnist, fashion-mnist, toy"):
        open_dataset(replace(config, data=replace(config.data, data="imagnet")))
