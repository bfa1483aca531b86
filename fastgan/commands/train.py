"""Training, from the command line to the run folder: what `accelerate launch` runs."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastgan.config import Config
from fastgan.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_LOST,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    Diverged,
    Lost,
    Stopped,
    UserError,
    first_line,
    machine_error,
)
from fastgan.planning.preset_choice import ADA, FEW_IMAGES, with_preset
from fastgan.presets import parse_config
from fastgan.utils.exit_status import report
from fastgan.utils.stop import StopRequest, die_with_parent

if TYPE_CHECKING:  # torch is imported when training begins, not for a mistake on the command line
    import torch

    from fastgan.data.images import ImageDataset
    from fastgan.distributed.consistency import ConsistencyCheck
    from fastgan.distributed.heartbeat import Watchdog
    from fastgan.distributed.processes import Processes
    from fastgan.monitor.hooks import Hooks
    from fastgan.runs.checkpoint import Checkpoint
    from fastgan.runs.run_folder import RunFolder
    from fastgan.training.trainer import Trainer


def _hint(config: Config, num_images: int) -> str | None:
    """What helps where float16 meets penalties, or where a user's images are few and D would see them as they are."""
    from fastgan.data.names import NAMES

    if config.networks.precision == "float16" and config.objective.penalty != "none":
        return "gradient penalties may overflow float16 (R3GAN, appendix); where the GPU has it, --precision bfloat16"
    if num_images >= FEW_IMAGES or config.data.data in NAMES or config.objective.augment != "none":
        return None
    remedy = f"--preset fewshot, or {' '.join(ADA)}"
    return f"{num_images:,} images are few: D will memorise them; {remedy}"


def _check_unchanged(config: Config, folder: "RunFolder", dataset: "ImageDataset", say: Callable[[str], None]) -> None:
    """The set is the one that the run was trained on. Raises UserError where it isn't and may not be another."""
    from fastgan.data.record import DatasetRecord, find_change, read_record

    place, is_conditional = config.data.data, config.networks.is_conditional
    last = read_record(folder.data) if is_conditional else None
    if last is not None and (change := last.class_change(DatasetRecord.of(dataset))) is not None:
        raise UserError(
            f"the classes of {place} aren't those of the run {folder.path} ({change}): "
            "name them as they were, or give another --run-dir"
        )
    if (text := find_change(folder.data, dataset, place, is_conditional, say)) is None:
        return
    if config.run.data_changed != "ok":
        raise UserError(f"{text}: give that set as --data, another --run-dir, or --data-changed ok to go on with this")
    say(f"{text}: going on with it")


def _sharers(device: "torch.device") -> int:
    """How many processes take of the device's memory; 0 where another process of this machine judges for all of them,
    which it does before any of them takes some.
    """
    if device.type != "cpu":
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if os.environ.get("LOCAL_RANK", "0") == "0" else 0


def _trainer(
    config: Config, processes: "Processes", folder: "RunFolder", agreement: "ConsistencyCheck", watchdog: "Watchdog"
) -> "tuple[Trainer, ImageDataset]":
    """The run's trainer, where its last session left it or at its start, and its images; the folder is the run's.

    Raises UserError, before there is a folder where it can.
    """
    from fastgan import networks
    from fastgan.data import loaders
    from fastgan.data.loaders import build_loader, open_dataset
    from fastgan.distributed.consistency import data_fingerprint
    from fastgan.planning.room import require_room
    from fastgan.runs.checkpoint import Checkpoints
    from fastgan.training import micro_batch, schedules, warm_start
    from fastgan.training.trainer import Trainer

    checkpoints = Checkpoints(folder.checkpoints)
    start = None if checkpoints.paths() else warm_start.open_start(config)
    device, sharers = processes.device, _sharers(processes.device)
    room = device, processes.world_size, processes.zero_stage, sharers
    agreement.run_on_all("memory", lambda: require_room(config, *room) if sharers else None)
    nets = networks.build(config, device)
    taken = None if start is None else warm_start.compare(config, nets, start)

    def open_images() -> "tuple[Config, ImageDataset]":
        found = loaders.locate(config, folder.read_config().data.data if folder.config.exists() else "")
        opened = open_dataset(found)
        if processes.is_main and checkpoints.paths():
            folder.check(found)  # other settings may be why the images are others
            _check_unchanged(found, folder, opened, processes.print)
        loaders.check(found, opened, processes.world_size)
        return found, opened

    config, dataset = agreement.run_on_all(  # one process gets a known set
        "data set", open_images, lambda opened: data_fingerprint(opened[1]), main_first=True
    )
    keep = "images in memory"
    agreement.run_on_all(keep, lambda: loaders.require_room(config, dataset, device, sharers) if sharers else None)
    checkpoint = _open_folder(config, dataset, processes, folder, agreement, fresh=start is not None)
    loader = build_loader(config, dataset, device, processes.rank, processes.world_size, processes.print)
    note = functools.partial(micro_batch.note_shortage, config, folder, processes)
    trainer = Trainer(config, nets, loader, processes.make_engine, processes.world_size, None, watchdog.set_phase, note)
    if checkpoint is not None:
        trainer.load_state(checkpoint.tensors, checkpoint.state)
        processes.print(f"resuming {folder.path} at {trainer.images_seen:,} of {trainer.total_images:,} images")
    else:
        for hint in (_hint(config, len(dataset)), schedules.preset_gamma_note(config)):
            if hint is not None:
                processes.print(hint)
    if start is not None and taken is not None:
        warm_start.load_matching(trainer, start, taken)
        processes.print(str(taken))
        if processes.is_main:
            taken.save(folder.transfer)
    micro_batch.settle(trainer, folder, processes)
    return trainer, dataset


def _open_folder(
    config: Config,
    dataset: "ImageDataset",
    processes: "Processes",
    folder: "RunFolder",
    agreement: "ConsistencyCheck",
    fresh: bool,
) -> "Checkpoint | None":
    """The folder is the run's; its last whole checkpoint, which the main process has checked, None where `fresh`."""
    from fastgan.data.record import DatasetRecord
    from fastgan.distributed.collectives import from_main
    from fastgan.runs import resume_state
    from fastgan.runs.checkpoint import Checkpoints, read

    checkpoints = Checkpoints(folder.checkpoints)

    def find() -> "Checkpoint | None":
        if not processes.is_main:
            return None
        folder.open(config, DatasetRecord.of(dataset).to_json())
        checkpoints.remove_partial()
        fault = functools.partial(resume_state.fault, config=config)
        return None if fresh else checkpoints.latest(processes.print, fault)

    found = agreement.run_on_all("run folder", find)
    newest = from_main(-1 if found is None else int(found.path.name))
    path = folder.checkpoints / f"{newest:012d}"

    def read_same() -> "Checkpoint | None":
        return found if processes.is_main or not path.exists() else read(path, check=False)

    return agreement.run_on_all(
        "checkpoint", read_same, lambda same: {"run folder": {"checkpoint": same and same.path.name}}
    )


def train(config: Config, stop: StopRequest) -> None:
    """Train the run in its folder. An earlier session's run resumes from its last checkpoint.

    Raises UserError, Diverged, Lost, and Stopped (after a checkpoint) where `stop` was asked for.
    """
    from fastgan.distributed import consistency
    from fastgan.distributed.heartbeat import Watchdog
    from fastgan.runs.run_folder import RunFolder

    agreement = consistency.of_launch(min(consistency.LIMIT_S, max(30.0, config.run.timeout_s)))
    folder = RunFolder(config.run_dir)
    config = folder.settle(config)
    watchdog = Watchdog(agreement.store, agreement.rank, agreement.world_size, config.run.timeout_s).start()
    try:
        agreement.run_on_all("launch", lambda: consistency.launch_fingerprint(config), lambda facts: facts)
        _train(config, folder, stop, agreement, watchdog)
    except Exception as error:
        text = watchdog.diagnose(error)
        if text is not None:
            raise Lost(text) from error
        watchdog.report_exit(str(error) or type(error).__name__)
        raise
    finally:
        watchdog.close()
        folder.close()


def _train(
    config: Config, folder: "RunFolder", stop: StopRequest, agreement: "ConsistencyCheck", watchdog: "Watchdog"
) -> None:
    import torch

    from fastgan.distributed.heartbeat import EVENT_S
    from fastgan.distributed.processes import Processes
    from fastgan.monitor import trackers
    from fastgan.monitor.hooks import Hooks
    from fastgan.monitor.pictures import are_pictures_missing, save_pictures
    from fastgan.training import compiling

    run = config.run
    torch.backends.cudnn.allow_tf32 = run.tf32
    processes = Processes(run.threads, run.engine, run.offload, agreement, run.timeout_s)
    agreement.run_on_all("trackers", lambda: trackers.check(run.tracker if processes.is_main else ()))
    trainer, dataset = _trainer(config, processes, folder, agreement, watchdog)
    if trainer.images_seen >= trainer.total_images:
        if processes.is_main and are_pictures_missing(folder):
            save_pictures(folder, trainer.config, trainer.images_seen, trainer.loader.num_images)
        processes.print(f"{folder.path} is complete: give more --epochs to train on")
        return
    if trainer.images_seen:
        watchdog.report_saved(trainer.images_seen)
    hooks = Hooks(trainer, folder, dataset, processes, watchdog.report_saved)
    compiling.settle(trainer, processes, hooks.say)
    stop.after(config.run.minutes)
    try:
        if trainer.images_seen == 0:
            hooks.grid(trainer)
            if config.transfer is not None:  # later sessions go on from here, without the other run
                hooks.saving.checkpoint(trainer)
        _run_steps(trainer, hooks, processes, folder, stop)
        trainer.set_phase("finishing", EVENT_S)
        hooks.finish(trainer)
    except Stopped:
        hooks.saving.checkpoint(trainer)
        raise
    finally:
        hooks.close(trainer, in_haste=stop.signalled)
    processes.barrier()  # a main process that dies while it finishes is started again with the others
    processes.print(f"done: {trainer.images_seen:,} images seen; everything is in {folder.path}")
    processes.close()


def _run_steps(
    trainer: "Trainer", hooks: "Hooks", processes: "Processes", folder: "RunFolder", stop: StopRequest
) -> None:
    """Training has come to its end. Raises Stopped where `stop` was asked for on any process."""

    def should_stop() -> bool:
        return stop.update(processes.delayed_max(stop.asked))

    if not (trainer.config.run.profile and processes.is_main):
        trainer.run(hooks.schedule(trainer), should_stop)
        return
    from fastgan.monitor.profiler import Profiler

    with Profiler(folder.profile, processes.device, hooks.say) as profiler:
        trainer.run([*profiler.schedule(), *hooks.schedule(trainer)], should_stop)


def main(args: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code, which FASTGAN_STATUS's file holds too."""
    die_with_parent()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces for a lost connection
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # nor words of the profiler's own
    report("start")
    code = _run(StopRequest(), sys.argv[1:] if args is None else args)
    report(f"exit {code}")
    if code != EXIT_DONE and "LOCAL_WORLD_SIZE" in os.environ:  # what is left of the group may be waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(stop: StopRequest, args: Sequence[str]) -> int:
    try:
        try:
            config = parse_config(with_preset(args))
        except UserError as error:
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                raise
            from fastgan.distributed.consistency import announce  # the others don't wait for this process

            raise announce(error) from None
        if config.run.dry_run:
            from fastgan.monitor import trackers
            from fastgan.planning.plan import plan

            trackers.check(config.run.tracker)
            print(plan(config))
        else:
            train(config, stop)
    except Exception as error:
        text, exit_code = _verdict(error, stop.signalled)
        print(f"fastgan: {text}", file=sys.stderr, flush=True)
        return exit_code
    return EXIT_DONE


def _verdict(error: Exception, was_stopped: bool) -> tuple[str, int]:
    """What to say of the error, and the exit code. Raises it where it is none that a user knows."""
    if isinstance(error, Stopped):
        text = f"{error}; a checkpoint is saved, and the same command resumes from it"
        return text, EXIT_STOPPED if was_stopped else EXIT_DONE
    if isinstance(error, UserError):
        return f"error: {error}", EXIT_USER_ERROR
    if isinstance(error, Diverged):
        return f"diverged: {error}", EXIT_DIVERGED
    if was_stopped:  # a stop that was asked for goes before what breaks while it is carried out
        return (
            f"stopped on request ({first_line(error)}); the same command resumes from the last checkpoint",
            EXIT_STOPPED,
        )
    if isinstance(error, Lost):
        return f"error: {error}", EXIT_LOST
    if (lacking := machine_error(error)) is not None:  # a full disk, say, outside the places that say more
        return f"error: {lacking}: fix it and run the same command again", EXIT_USER_ERROR
    raise error
