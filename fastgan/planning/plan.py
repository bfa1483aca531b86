"""What a run would be, need and take, before it is made: `--dry-run` for this machine, `fastgan plan` for others."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastgan import presets
from fastgan.config import BATCH_NORM_IN_D, Config
from fastgan.data.names import NAMES
from fastgan.errors import EXIT_DONE, UserError
from fastgan.planning.forecast import ROOM, Forecast, forecast, in_parts
from fastgan.planning.hardware import Cluster, EngineName
from fastgan.planning.preset_choice import with_preset
from fastgan.utils.arguments import parse


@dataclass(frozen=True)
class Options:
    """What a run would need and how long it would take, estimated. Takes all options of `fastgan train`, too."""

    cluster: Cluster = field(default_factory=Cluster)
    config: Config = field(default_factory=Config)


@dataclass(frozen=True)
class Length:
    """How long a run is: images, steps and images an epoch, None where the data set must be here to know."""

    total: int | None
    steps: int | None
    num_images: int | None
    data: str  # what is known of the data set
    text: str


def main(args: Sequence[str]) -> int:
    """Print what the run would need elsewhere: `fastgan plan`. Raises UserError."""
    args = with_preset(args, on_gpu=True)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", nargs="?")
    preset = presets.get(finder.parse_known_args(args)[0].preset or presets.DEFAULT)
    options = parse(Options, args, prog="fastgan plan", default=Options(config=preset))
    run = options.config.run
    engine: EngineName = "ddp" if run.engine == "auto" else run.engine
    print(on_cluster(options.config, replace(options.cluster, engine=engine)))
    return EXIT_DONE


def plan(config: Config) -> str:
    """Return what the run would be here.

    These are settings, networks' sizes, schedules' first and last values, steps, work and memory. A data set that its
    preset leaves to the user need not be here yet. Raises UserError as training would.
    """
    from fastgan import networks

    G_size, D_size = networks.sizes(config)
    first_weights, warm = _transfer(config)
    run = length(config)
    own = forecast(config, Cluster(), run.num_images)
    return "\n".join(
        (
            config.to_json(),
            f"G: {G_size:,} parameters",
            f"D: {D_size:,} parameters",
            *first_weights,
            *_schedule(config, run.total, run.steps, warm),
            f"data: {run.data}",
            *_summary(config, run),
            f"run: batches of {config.data.batch_size:,}, {run.text}into {config.run_dir}",
            f"work: {_work(own)}",
            f"memory of one process: {_in_one_line(own)}",
        )
    )


def _summary(config: Config, run: Length) -> list[str]:
    """What `train` says of the data set besides its images."""
    from fastgan.data import loaders

    is_here = run.num_images is not None and config.data.data not in NAMES
    return loaders.summary(config, loaders.open_dataset(config)) if is_here else []


def on_cluster(config: Config, cluster: Cluster) -> str:
    """Return what the run would need on those GPUs, and how long it would take, with all that is assumed."""
    from fastgan.training import schedules

    run = length(config)
    at_a_time = config.run.micro_batch if isinstance(config.run.micro_batch, int) else None
    found = forecast(config, cluster, run.num_images, at_a_time)
    smaller = None if found.fits else in_parts(found)
    sizes, batch_size = found.work.sizes, config.data.batch_size
    uneven = f", {found.share} on the busiest" if batch_size % cluster.gpus else ""
    where = f"{cluster.gpus} {cluster.gpu} ({cluster.nodes} node{'s' * (cluster.nodes > 1)}, {cluster.engine})"
    return "\n".join(
        (
            f"plan: {config.preset} on {where}: estimated, not measured",
            f"parameters: G {sizes.G:,}, D {sizes.D:,}",
            f"batch: {batch_size:,} images, {batch_size / cluster.gpus:g} a GPU{uneven}",
            f"work: {_work(found)}",
            *_memory_lines(found, smaller),
            f"wire: {_communication(found)}",
            *_time_lines(smaller or found, run),
            *([] if (kept := schedules.preset_gamma_note(config)) is None else [kept]),
            *_assumptions(found),
        )
    )


def length(config: Config) -> Length:
    """Return the run's length. Raises UserError where the data set that the user named isn't there."""
    from fastgan.data import sampler
    from fastgan.data.loaders import num_images as images_of

    total, steps, data = config.run.images, None, config.data
    num_images: int | None = None
    try:
        num_images = images_of(config)
    except UserError as error:
        if data.data != presets.get(config.preset).data.data:
            raise
        known, text = f"not here yet: {error}", "" if total else f"{config.run.epochs:g} epochs, "
        if total and not data.keep_partial_batch:
            steps = sampler.num_steps(total, total, data.batch_size, keep_partial=False)
    else:
        total = config.total_images(num_images)
        steps = sampler.num_steps(total, num_images, data.batch_size, data.keep_partial_batch)
        known, text = f"{num_images:,} images an epoch", f"{total / num_images:g} epochs, "
    text += (f"{total:,} images, " if total else "") + (f"{steps:,} steps, " if steps else "")
    return Length(total, steps, num_images, known, text)


def _work(found: Forecast) -> str:
    total = found.work.total_flops
    named = {
        "float16": "in float16",
        "bfloat16": "in bfloat16",
        "tf32": "float32 convolutions",
        "float32": "other float32 products",
    }
    shares = [
        f"{found.work.flops[kind] / total:.1%} {name}" for kind, name in named.items() if kind in found.work.flops
    ]
    an_image = total / found.work.images
    return (
        f"{_flops(an_image * found.config.data.batch_size)} a step, {_flops(an_image)} an image: {', '.join(shares)}\n"
        f"  a process and step: {found.operations:,.0f} operations, "
        f"{_short(found.bytes_accessed / 1e9)} GB of memory read and written"
    )


def _short(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _flops(flops: float) -> str:
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= size:
            return f"{flops / size:,.2f} {unit}"
    return f"{flops / 1e6:,.2f} MFLOP"


def _in_one_line(found: Forecast) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in found.memory.items() if size)
    return f"{found.needed / 1e9:.3g} GB with {found.work.images:,} images at a time: {parts}"


def _memory_lines(found: Forecast, smaller: Forecast | None) -> list[str]:
    lines = [f"memory of a GPU, {found.work.images:,} images at a time:"]
    lines += [f"  {name:<40} {size / 1e9:9,.3f} GB" for name, size in found.memory.items() if size]
    capacity = found.gpu.memory
    verdict = "fits" if found.fits else "is tight" if found.needed <= 1e9 * capacity else "doesn't fit"
    lines.append(f"  {'sum':<40} {found.needed / 1e9:9,.3f} GB of {capacity:g} GB: {verdict}")
    if not found.fits:
        lines.append(f"  {_remedy(found, smaller)}")
    if found.data_is_unknown:
        lines.append("  the data set isn't here yet: where --loader keeps its pixels on the GPU, they come on top")
    lines.append("  not counted: the CUDA context, cuDNN's workspaces, fragmentation, the engine's message buffers")
    return lines


def _remedy(found: Forecast, smaller: Forecast | None) -> str:
    room = f"with {1 - ROOM:.0%} left for what isn't counted"
    if smaller is not None:
        return (
            f"--micro-batch {smaller.work.images} fits {room}; the batch stays {found.config.data.batch_size:,} images"
        )
    if found.config.networks.network in BATCH_NORM_IN_D:
        return "D's BatchNorm wants all images of a GPU at once: take more GPUs, a smaller --batch-size or --width"
    return f"no --micro-batch fits {room}: take larger GPUs, --engine zero3 or a smaller --width"


def _communication(found: Forecast) -> str:
    if found.cluster.gpus == 1:
        return "nothing, one GPU exchanges no gradients"
    what = "gradients and weights" if found.cluster.zero_stage == 3 else "gradients"
    return (
        f"{found.communication_bytes / 1e6:,.1f} MB of {what} sent by each GPU a step, in {found.messages:,} messages"
    )


def _time_lines(found: Forecast, run: Length) -> list[str]:
    step, batch_size, gpus = found.time, found.config.data.batch_size, found.cluster.gpus
    terms = {"arithmetic": step.arithmetic, "memory": step.memory, "launches": step.launches}
    slowest = ", ".join(f"{name} {1000 * seconds:,.1f} ms" for name, seconds in terms.items())
    rate = batch_size / step.total
    if run.total:
        seconds = (run.steps or -(-run.total // batch_size)) * step.total
        end = f"{run.text}{_duration(seconds)}, {_short(gpus * seconds / 3600)} GPU-hours"
    else:
        end = f"{run.text}{_duration(1e6 / rate)} for each 1,000,000 images (the data set isn't here yet)"
    return [
        f"step{f' in {found.parts} parts' if found.parts > 1 else ''}: {1000 * step.total:,.1f} ms: the slowest of "
        f"{slowest}; then exchange {1000 * step.exchange:,.1f} ms",
        f"speed: {_short(rate)} images/s, {_short(rate / gpus)} a GPU",
        f"to the end: {end}, without evaluations, checkpoints and waits for data",
    ]


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:,.1f} minutes" if seconds >= 120 else f"{seconds:,.1f} seconds"


def _assumptions(found: Forecast) -> list[str]:
    gpu, cluster, network = found.gpu, found.cluster, found.config.networks.network
    bfloat16 = "as float32 (no unit of its own)" if gpu.bfloat16 is None else f"{gpu.bfloat16:g}"
    tf32 = "as float32 (no unit of its own)" if gpu.tf32 is None else f"{gpu.tf32:g} in TF32, torch's default"
    basis = "R3GAN's published hours imply 0.07 to 0.13" if network == "r3gan" else "a guess"
    link = f"{gpu.link:g} GB/s each way in a node ({gpu.link_name})"
    if cluster.nodes > 1:
        link += f", {cluster.link_gbps:g} Gbit/s each way a GPU between nodes (--link-gbps)"
    if cluster.utilisation:
        basis = "given"
    return [
        "assumed, not measured:",
        f"  peaks of {cluster.gpu} in TFLOP/s, dense: float16 {gpu.float16:g}, bfloat16 {bfloat16}, float32 "
        f"convolutions {tf32}, other products {gpu.float32:g}",
        f"  utilisation of them {cluster.reached(network):g} ({basis}; --utilisation)",
        f"  memory at {gpu.memory_bandwidth:,g} GB/s; {cluster.launch_us:g} us from one operation's start to the "
        "next's, without torch.compile (--launch-us)",
        f"  links: {link}; {cluster.hop_us:g} us a hop (--hop-us), {cluster.hops} hops a message",
        "  gradients are exchanged after the work, not beside it",
    ]


def _transfer(config: Config) -> tuple[list[str], bool]:
    """What would be taken over from another run, and whether it is all of G; a run that resumes takes nothing over."""
    from fastgan import networks
    from fastgan.runs.checkpoint import Checkpoints
    from fastgan.runs.run_folder import RunFolder
    from fastgan.training import warm_start

    if config.transfer is None or Checkpoints(RunFolder(config.run_dir).checkpoints).paths():
        return [], False
    start = warm_start.open_start(config)
    assert start is not None
    found = warm_start.compare(config, networks.build(config), start)
    return [str(found)], not found.G.from_scratch


def _schedule(config: Config, total: int | None, steps: int | None, warm: bool) -> list[str]:
    """What moves: a line each, its value at the start and, where that is known, at the end of the run."""
    from fastgan.training import schedules

    objective, batch_size, every = config.objective, config.data.batch_size, config.objective.penalty_every
    ends = [schedules.evaluate(config, 0, batch_size, 0, warm)]
    if total:
        last = (steps or -(-total // batch_size)) - 1
        ends.append(schedules.evaluate(config, total, batch_size, last - last % every, warm))

    def line(name: str, values: list[float], note: str = "") -> str:
        shown = [f"{value:,.0f}" if value >= 1000 else f"{value:.6g}" for value in values]
        return f"{name}: {' -> '.join(dict.fromkeys(shown))}{note}"

    names = ("g_lr", "d_lr", *(["beta2"] if config.optimizer.optimizer == "adam" else []))
    lines = [line(name, [getattr(knobs, name) for knobs in ends]) for name in names]
    if objective.penalty != "none":
        note = "" if every == 1 else f", every {every} steps {every} times that"
        if objective.gamma is None:
            note += ", its own" if objective.penalty == "wgan-gp" else ", by the rule 0.0002 * pixels / batch size"
        lines.append(line(f"gamma of {objective.penalty}", [knobs.gamma / every for knobs in ends], note))
    if (kept := schedules.preset_gamma_note(config)) is not None:
        lines.append(kept)
    if objective.augment_target is not None:
        lines.append(f"augment_p of {objective.augment}: {objective.augment_p:g}, then as augment_target makes it")
    elif objective.augment != "none":
        lines.append(line(f"augment_p of {objective.augment}", [knobs.augment_p for knobs in ends]))
    for betas in list(zip(*(knobs.ema_betas for knobs in ends), strict=True))[: len(config.optimizer.ema_half_lives)]:
        half_lives = [-batch_size / math.log2(beta) if beta else 0.0 for beta in betas]
        lines.append(line("ema_half_life", half_lives, " images"))
    if config.optimizer.burn_in:
        lines.append(f"burn_in: {config.optimizer.burn_in:,} images")
    return lines
