"""The plan: work counted by hand, memory against what is really allocated, ZeRO's shares, messages, words."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import engines_worker
import pytest
import torch
import torch.distributed as dist
from conftest import DEVICE, refusal
from forks import ForkServer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

from fastgan import cli, networks, presets
from fastgan.commands import train
from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, OptimizerConfig
from fastgan.data.images import ArrayDataset, to_unit_range
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.distributed.engines import Engine, ddp_engine
from fastgan.planning import hardware, op_counter
from fastgan.planning.forecast import FLOAT, ROOM, Forecast, forecast, in_parts
from fastgan.planning.hardware import GPUS, Cluster, EngineName, all_reduce_bytes, num_messages
from fastgan.training.objectives import DiscriminatorObjective
from fastgan.training.trainer import Trainer
from fastgan.utils import rng
from fastgan.utils.memory import peak_memory_gib
from fastgan.utils.rng import RngStream

TINY = Config(
    data=DataConfig(data="toy", image_size=(8, 8), channels=3, batch_size=8),
    networks=NetworkConfig(network="dcgan", z_dim=5, stages=(6,)),
    objective=ObjectiveConfig(reuse_fakes=True),
)
SMALL = Config(
    data=DataConfig(data="toy", image_size=(16, 16), channels=3, batch_size=8),
    networks=NetworkConfig(network="r3gan", z_dim=8, stages=(32, 32, 16)),
    objective=ObjectiveConfig(loss="relativistic", penalty="r1+r2"),
    optimizer=OptimizerConfig(ema_half_lives=(500.0, 1000.0), ema_stds=(0.1,)),
)


def plan(*args: str) -> str:
    """The UserError's text that these options of `fastgan plan` lead to."""
    from fastgan.planning import plan

    return refusal(lambda: plan.main(args))


# Work


def test_flops_of_a_step_by_hand() -> None:
    """A step of a network with two layers a player: each product counted forward, to its input, to its weights."""
    work = op_counter.count(TINY, 4)
    z, width, channels, places, taps = 5, 6, 3, 16, 16
    g_dense, d_dense = 2 * z * places * width, 2 * places * width
    convolution = 2 * places * width * channels * taps  # G's, and D's, its mirror image
    d_phase = (2 + 2) * convolution + (2 + 4) * d_dense  # reals and fakes; no gradient goes to the pixels
    g_phase = 2 * g_dense + 3 * convolution + 2 * convolution + 2 * d_dense
    assert work.total_flops == 4 * (d_phase + g_phase)
    assert work.flops == {"float32": 4 * (2 * g_dense + 8 * d_dense), "tf32": 4 * 9 * convolution}


@pytest.mark.parametrize("groups", [1, 4])
def test_flops_of_a_penalty_by_hand(groups: int) -> None:
    """The double backward pass of a convolution, grouped or not, is five times its forward pass."""
    with torch.device("meta"), op_counter.OpCounter() as ledger:
        layer = torch.nn.Conv2d(32, 16, 3, padding=1, groups=groups)
        images = torch.zeros(2, 32, 8, 8)
        slopes = torch.func.grad(lambda x: layer(x).square().sum())(images)
        slopes.square().sum().backward()
    forward = 2 * 2 * 64 * 16 * (32 // groups) * 9
    assert ledger.flops["tf32"] == 5 * forward


@pytest.mark.parametrize("config", [TINY, SMALL], ids=["dcgan", "r3gan"])
def test_work_is_linear_in_images(config: Config) -> None:
    """Twice the images are twice the arithmetic, by as many operations; memory at the peak grows by as much each."""
    two, four, eight = (op_counter.count(config, images) for images in (2, 4, 8))
    assert four.total_flops == 2 * two.total_flops and eight.total_flops == 2 * four.total_flops
    assert two.operations == four.operations
    for first, second in pairwise((two, four, eight)):
        an_image = (second.fullest.peak - first.fullest.peak) / (second.images - first.images)
        assert an_image == pytest.approx((four.fullest.peak - two.fullest.peak) / 2, rel=0.01)


def test_lazy_penalties_count_their_share() -> None:
    """A penalty every fourth step adds a fourth of its work, and all of its memory."""
    config = replace(TINY, objective=replace(TINY.objective, penalty="r1"))
    lazy = op_counter.count(replace(config, objective=replace(config.objective, penalty_every=4)), 4)
    always, never = op_counter.count(config, 4), op_counter.count(TINY, 4)
    assert lazy.total_flops == pytest.approx(0.25 * always.total_flops + 0.75 * never.total_flops)
    assert never.total_flops < lazy.total_flops < always.total_flops
    assert lazy.d_phase == always.d_phase


def test_bfloat16_is_counted_apart() -> None:
    """Arithmetic is counted by what computes it: bfloat16 in the high stages, float32 in the low one."""
    half = replace(SMALL, networks=replace(SMALL.networks, precision="bfloat16"))
    mixed, full = op_counter.count(half, 2), op_counter.count(SMALL, 2)
    assert "bfloat16" not in full.flops and mixed.flops["bfloat16"] > mixed.flops["tf32"] > 0
    assert mixed.total_flops == full.total_flops
    assert mixed.d_phase.kept < full.d_phase.kept


def test_passes() -> None:
    """G passes forward twice and back once; D forward once, back in each of two ways, then 1 + 2 for G."""
    work = op_counter.count(SMALL, 2)
    assert (work.g_passes, work.d_passes) == (3, 6)


@pytest.mark.parametrize("preset", ["mnist28", "mnist28-fast", "faces128-fast", "imagenet32"])
def test_presets_are_counted(preset: str) -> None:
    """A preset's step can be counted, and its parameters are those of the networks."""
    config = presets.get(preset)
    work = op_counter.count(config, 1)
    assert networks.sizes(config) == (work.sizes.G, work.sizes.D) and work.total_flops > 0


@pytest.mark.parametrize("changes", [{"spectral_norm": True}, {"num_classes": 10}])
def test_other_networks_are_counted(changes: dict[str, object]) -> None:
    """Spectral norms and classes don't stand in the way of a count."""
    config = replace(SMALL, networks=replace(SMALL.networks, **changes))  # type: ignore[arg-type]
    assert op_counter.count(config, 2).total_flops >= op_counter.count(SMALL, 2).total_flops


# Memory


def gradient_bytes(nets: tuple[torch.nn.Module, ...]) -> int:
    return sum(p.grad.nbytes for net in nets for p in net.parameters() if p.grad is not None)


def test_lasting_memory_is_what_is_allocated() -> None:
    """Weights, gradients, optimizer states and averages take the bytes that a trainer's tensors take."""
    config = replace(SMALL, data=replace(SMALL.data, channels=1, image_size=(28, 28)))
    loader = build_loader(config, open_dataset(config), DEVICE)
    trainer = Trainer(config, networks.build(config, DEVICE), loader)
    nets, gradients = (trainer.G.net, trainer.D.net), []
    for player in (trainer.G, trainer.D):
        player.optimizer.register_step_pre_hook(lambda *_: gradients.append(gradient_bytes(nets)))
    trainer.train_step(loader.batch(0))

    def bytes_of(found: list[torch.nn.Module]) -> int:
        return sum(tensor.nbytes for net in found for tensor in (*net.parameters(), *net.buffers()))

    memory = forecast(config, Cluster(), 2_000).memory
    assert memory["weights"] == bytes_of([*nets])
    assert memory["gradients of one player"] == max(gradients)
    states = [state for player in (trainer.G, trainer.D) for state in player.optimizer.state.values()]
    assert memory["adam's states"] == sum(v.nbytes for state in states for k, v in state.items() if k != "step")
    assert memory["averages of G (3)"] == bytes_of([*trainer.ema.nets, *trainer.power.nets])


def kept_really(config: Config, images: int) -> int:
    """Bytes that the allocator holds for D's phase when its backward pass begins."""
    (height, width), channels = config.data.image_size, config.data.channels
    G, D = (net.train() for net in networks.build(config))
    objective = DiscriminatorObjective(D, config)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        pixels = torch.zeros(images, channels, height, width, dtype=torch.uint8)
        pixels, index = pixels.to(memory_format=torch.channels_last), torch.arange(images)
        with torch.no_grad():
            fakes = G(rng.normal(rng.keys(0, RngStream.LATENTS_D, index), config.networks.z_dim), None)
        reals = to_unit_range(pixels)
        loss, _ = objective(reals, fakes, None, index, 1.0, 0.0)
        with record_function("the end of the forward pass"):
            assert loss.requires_grad
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = watched.profiler.kineto_results.events()
    (end,) = (event.start_ns() for event in events if event.name() == "the end of the forward pass")
    return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.start_ns() < end)


def test_kept_activations_are_what_is_allocated() -> None:
    """What D's phase keeps for its backward pass, exact penalties included, is what the allocator really holds."""
    counted = op_counter.count(SMALL, 8).d_phase
    assert counted.kept == pytest.approx(kept_really(SMALL, 8), rel=1e-3)
    assert counted.peak >= counted.kept


def test_gs_own_reals_are_held_as_well() -> None:
    """Both phases hold the pixels of both where G has reals of its own: one byte a value more."""
    separate = op_counter.count(replace(SMALL, objective=replace(SMALL.objective, reuse_reals=False)), 8)
    pixels = 8 * 3 * 16 * 16
    for phase in ("d_phase", "g_phase"):
        found, before = getattr(separate, phase), getattr(op_counter.count(SMALL, 8), phase)
        assert (found.kept, found.peak) == (before.kept + pixels, before.peak + pixels)


def test_zero_divides() -> None:
    """ZeRO's stages divide states, then gradients, then weights among the GPUs; averages and activations stay."""
    learned = FLOAT * sum(networks.sizes(SMALL))
    engines: tuple[EngineName, ...] = ("ddp", "zero1", "zero2", "zero3")
    parts = {engine: forecast(SMALL, Cluster(4, engine=engine), 0).memory for engine in engines}
    buffers = parts["ddp"]["weights"] - learned
    shares = ((1, 1, 1), (1, 1, 4), (1, 4, 4), (4, 4, 4))
    for engine, (weights, gradients, states) in zip(engines, shares, strict=True):
        memory = parts[engine]
        assert memory["weights"] == pytest.approx(learned / weights + buffers)
        if engine != "ddp":
            assert memory["gradients of one player"] == pytest.approx(FLOAT * max(networks.sizes(SMALL)) / gradients)
        assert memory["adam's states"] == pytest.approx(2 * learned / states)
        assert memory["averages of G (3)"] == parts["ddp"]["averages of G (3)"]
        assert memory["ZeRO's own copy of the weights"] == (0 if engine == "ddp" else learned / 4)
        assert memory.get("gradients, in DDP's buckets", 0) == (learned if engine == "ddp" else 0)
        assert ("gradients of one player" in memory) != ("gradients, in DDP's buckets" in memory)  # never twice


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_divides_as_planned(engine: EngineName, fork_server: ForkServer) -> None:
    """What each of two processes really holds of states, weights and copies is the plan's, but for DeepSpeed's padding.

    The buffers of both networks, which nobody divides, count with the weights.
    """
    pytest.importorskip("deepspeed")
    memory = forecast(engines_worker.config(), Cluster(2, engine=engine), 0).memory
    wanted = [memory[name] for name in ("adam's states", "weights", "ZeRO's own copy of the weights")]
    for said in fork_server.launch(2, engines_worker.say_memory, engine):
        assert list(json.loads(said.splitlines()[-1]).values()) == pytest.approx(wanted, rel=0.01)


def test_rmsprop_has_one_state() -> None:
    """RMSprop keeps one number a parameter, Adam two."""
    config = replace(TINY, optimizer=OptimizerConfig(optimizer="rmsprop"))
    assert forecast(config, Cluster(), 0).memory["rmsprop's states"] == FLOAT * sum(networks.sizes(TINY))


def test_data_in_memory() -> None:
    """Pixels that are kept on the GPU count, an image in whole words of 8 bytes; those of too large a set don't."""
    config = replace(SMALL, data=replace(SMALL.data, image_size=(28, 28), channels=1))
    assert forecast(config, Cluster(), 60_000).memory["data set"] == 60_000 * 784
    odd = replace(TINY, data=replace(TINY.data, image_size=(12, 10), channels=3), networks=NetworkConfig("dcgan28"))
    assert refusal(lambda: forecast(odd, Cluster(), 60_000)).startswith("image_size is (12, 10)")
    small = replace(config, run=replace(config.run, in_memory_gib=0.01))
    assert forecast(small, Cluster(), 60_000).memory["data set"] == 0
    assert forecast(config, Cluster(), None).data_is_unknown


def test_micro_batch_is_the_largest_that_fits() -> None:
    """Where a share doesn't fit, the remedy is a power of two that fits, and twice as many wouldn't."""
    config = replace(SMALL, data=replace(SMALL.data, batch_size=2**17))
    found = forecast(config, Cluster(gpu="t4"), 0)
    assert not found.fits
    smaller = in_parts(found)
    assert smaller is not None and smaller.fits and smaller.work.images.bit_count() == 1
    assert not forecast(config, Cluster(gpu="t4"), 0, 2 * smaller.work.images).fits
    assert smaller.parts * smaller.work.images == 2**17
    assert smaller.needed <= ROOM * 16e9 < found.needed


def test_batch_norm_in_d_has_no_micro_batch() -> None:
    """No smaller part is offered where D must see all images of a GPU at once."""
    config = presets.faces128()
    found = forecast(replace(config, data=replace(config.data, batch_size=2**16)), Cluster(gpu="t4"), None)
    assert not found.fits and in_parts(found) is None


# Messages and time


def test_wire_bytes() -> None:
    """What two GPUs are to exchange in a step are the buckets that DDP really hands over in one."""
    sent: list[int] = []

    def note(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().nbytes)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def engine(net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
        shared = DistributedDataParallel(module, gradient_as_bucket_view=True)
        shared.register_comm_hook(None, note)
        return ddp_engine(shared, net, module, optimizer)

    images = ArrayDataset("noise", torch.randint(0, 256, (8, 3, 16, 16)).to(torch.uint8))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer = Trainer(SMALL, networks.build(SMALL), build_loader(SMALL, images, torch.device("cpu")), engine)
        sent.clear()
        trainer.train_step(trainer.loader.batch(0))
    finally:
        dist.destroy_process_group()
    found = {engine: forecast(SMALL, Cluster(2, engine=engine), 0) for engine in get_args(EngineName)}
    # In a ring of two each sends as much as there is: 2 (n - 1) / n of it.
    assert sum(sent) == found["ddp"].communication_bytes > 0 and len(sent) == found["ddp"].messages
    assert found["zero3"].communication_bytes > found["ddp"].communication_bytes
    assert forecast(SMALL, Cluster(1), 0).messages == 0


def test_messages() -> None:
    """Gradients travel in a first bucket of a megabyte and then in buckets of 25."""
    mib = hardware.MIB
    assert [num_messages(size) for size in (1, mib, mib + 1, 26 * mib, 26 * mib + 1)] == [1, 1, 2, 2, 3]


def test_ring() -> None:
    """Each of n in a ring sends 2 (n - 1) / n of the message."""
    assert (all_reduce_bytes(4, 1000), all_reduce_bytes(1, 1000)) == (1500, 0)


def test_links_and_hops() -> None:
    """Inside a node its own links count; between nodes the slower of both, and a tree's depth on top of the ring."""
    inside, across = Cluster(8), Cluster(64, link_gbps=100.0)
    assert (inside.nodes, inside.link, inside.hops) == (1, GPUS["h100"].link, 14)
    assert (across.nodes, across.link, across.hops) == (8, 12.5, 14 + 6)


def step_of(found: Forecast) -> tuple[float, float]:
    return found.time.arithmetic, found.time.exchange


def test_time_follows_its_assumptions() -> None:
    """Twice the utilisation halves the arithmetic, twice the GPUs too; one GPU exchanges nothing."""
    config = replace(SMALL, data=replace(SMALL.data, batch_size=16))
    arithmetic, exchange = step_of(forecast(config, Cluster(utilisation=0.1), 0))
    assert exchange == 0
    assert step_of(forecast(config, Cluster(utilisation=0.2), 0))[0] == pytest.approx(arithmetic / 2)
    assert step_of(forecast(config, Cluster(2, utilisation=0.1), 0))[0] == pytest.approx(arithmetic / 2)
    work = op_counter.count(config, 16)
    peak = {"tf32": 494.7e12, "float32": 66.9e12}
    assert arithmetic == pytest.approx(sum(flops / (0.1 * peak[kind]) for kind, flops in work.flops.items()))


def test_step_is_its_slowest_part() -> None:
    """Arithmetic, memory and launches overlap; what is exchanged comes after them."""
    time = forecast(SMALL, Cluster(2, launch_us=1e6), 0).time
    assert time.limit == "launches" and time.total == time.launches + time.exchange


@pytest.mark.parametrize("name", GPUS)
def test_gpus(name: str) -> None:
    """Each GPU has a peak for all arithmetic: float32's where it has no unit of its own, else a higher one."""
    gpu = GPUS[name]
    assert gpu.peak("bfloat16") >= gpu.peak("tf32") >= gpu.peak("float32") > 1e12
    assert 0 < gpu.link < gpu.memory_bandwidth and 8 <= gpu.memory <= 200


# The command


def test_plan_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A plan of R3GAN's largest faces has every part with its unit, in little memory, and says what isn't measured."""
    before = peak_memory_gib(torch.device("cpu"))
    assert cli.main(["plan", "--preset", "ffhq256", "--gpus", "8", "--gpu", "h100"]) == 0
    assert peak_memory_gib(torch.device("cpu")) - before < 0.25
    shown = capsys.readouterr().out
    G, D = networks.sizes(presets.ffhq256())
    wanted = (
        "ffhq256 on 8 h100 (1 node, ddp): estimated, not measured",
        f"parameters: G {G:,}, D {D:,}",
        "batch: 256 images, 32 a GPU",
        "TFLOP a step",
        "weights",
        "gradients",
        "adam's states",
        "averages of G (1)",
        "activations kept for the backward pass",
        "GB of 80 GB: fits",
        "not counted: the CUDA context",
        f"{2 * 7 / 8 * 4 * (G + D) / 1e6:,.1f} MB of gradients sent by each GPU a step",
        "images/s",
        "200,000,000 images, 781,250 steps",
        "days",
        "GPU-hours",
        "utilisation of them 0.1",
        "bfloat16 989.4",
        "450 GB/s each way",
        "--utilisation",
    )
    assert [text for text in wanted if text not in shown] == []


def test_plan_takes_train_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The options of `fastgan train` change what is planned; over two nodes the network between them is named."""
    args = ["--preset", "debug", "--batch-size", "64", "--images", "1280", "--gpus", "16", "--link-gbps", "100"]
    assert cli.main(["plan", *args, "--gpu", "t4", "--utilisation", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "batch: 64 images, 4 a GPU" in shown and "1,280 images, 21 steps" in shown
    assert "16 t4 (2 nodes, ddp)" in shown and "100 Gbit/s each way a GPU between nodes" in shown
    assert "no unit of its own" in shown and "0.3 (given" in shown and "MFLOP an image" in shown


def test_plan_of_a_share_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Where memory is short the plan names the micro-batch that fits, and times the step with it."""
    assert cli.main(["plan", "--preset", "fewshot", "--batch-size", "1024", "--gpu", "t4"]) == 0
    shown = capsys.readouterr().out
    assert "GB of 16 GB: doesn't fit" in shown and "--micro-batch 256 fits" in shown and "step in 4 parts" in shown


def test_plan_of_uneven_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """A number of GPUs that doesn't divide the batch is planned by the busiest one."""
    assert cli.main(["plan", "--preset", "debug", "--gpus", "3"]) == 0
    assert "batch: 32 images, 10.6667 a GPU, 11 on the busiest" in capsys.readouterr().out


def test_plan_without_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where epochs are asked for of a data set that isn't here, the time is that of a million images."""
    assert cli.main(["plan", "--preset", "faces128-fast", "--gpu", "rtx4090"]) == 0
    shown = capsys.readouterr().out
    assert "to the end: 20 epochs, " in shown and "for each 1,000,000 images" in shown
    assert "the data set isn't here yet" in shown and "nothing, one GPU exchanges no gradients" in shown


def test_plan_refuses() -> None:
    """A mistake is one line that names the field, the value and the remedy."""
    assert plan("--preset", "nosuch").startswith("unknown preset 'nosuch': choose from ")
    assert plan("--gpu", "h1000") == f"gpu is 'h1000': choose from {', '.join(GPUS)}"
    assert plan("--gpus", "0") == "gpus is 0: give a number of 1 or more"
    assert "leaves 32 without an image; give --gpus 32 or fewer" in plan("--preset", "debug", "--gpus", "64")
    assert plan("--utilisation", "1.5").startswith("utilisation is 1.5: give a share")
    assert plan("--link-gbps", "0").startswith("link_gbps is 0.0: give a number above 0")
    assert "did you mean --gpus" in plan("--gpu-s", "8")
    assert "data set 'nowhere'" in plan("--data", "nowhere")


@pytest.mark.usefixtures("keep_signal_handlers")
def test_dry_run_counts_too(capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` shows the work of a step and the memory of a process by part."""
    assert train.main(["--preset", "debug", "--dry-run"]) == 0
    *_, work, moved, memory = capsys.readouterr().out.splitlines()
    assert work.startswith("work: ") and "FLOP a step" in work and "operations" in moved
    assert memory.startswith("memory of one process: ") and "32 images at a time: weights " in memory
