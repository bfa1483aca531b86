"""What each process of tests/test_engines.py does: train small players by several engines, and keep their states."""

import json
import math
from pathlib import Path

import torch

from fastgan import networks
from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, OptimizerConfig
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.distributed.processes import Processes
from fastgan.runs.checkpoint import Checkpoints
from fastgan.training.trainer import Trainer

CPU = torch.device("cpu")


def config(split_g: bool = False, wide: bool = False, precision: str = "float32") -> Config:
    """All that could differ: BatchNorm in G, exact R1 and R2, adaptive augmentation, two averages, 13 images a batch,
    reals and changes of its own in each phase.

    Where G is to be split it is R3GAN's, without BatchNorm. `wide` makes both networks larger than DDP's first bucket;
    float16 leaves out penalties, which overflow. Adam's epsilon keeps it from turning the rounding of gradients that
    are 0 but for it into steps of full size.
    """
    convolutions = NetworkConfig(network="dcgan", z_dim=8, stages=(8, 4))
    blocks = NetworkConfig(
        network="r3gan", z_dim=8, stages=(96 if wide else 8, 8, 8), blocks=1, group_width=0, precision=precision
    )
    penalty = {} if precision == "float16" else {"penalty": "r1+r2", "gamma": 0.1}
    return Config(
        data=DataConfig(data="toy", image_size=(28, 28), channels=1, batch_size=13, keep_partial_batch=False),
        networks=blocks if split_g else convolutions,
        objective=ObjectiveConfig(
            loss="relativistic",
            **penalty,
            augment="ada",
            augment_p=0.2,
            augment_target=0.6,
            augment_pairs=False,
            reuse_reals=False,
        ),
        optimizer=OptimizerConfig(
            g_lr=1e-3, d_lr=1e-3, betas=(0.0, 0.99), eps=1e-4, ema_half_lives=(100,), ema_stds=(0.1,)
        ),
    )


def let_zero_compute_in_float64() -> None:
    """DeepSpeed keeps weights and exchanges gradients in float32, whose rounding a leaky ReLU's bend may magnify."""
    import deepspeed
    from deepspeed.runtime.base_optimizer import ZeROOptimizer
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Init

    initialize = deepspeed.initialize

    def without_reduce_scatter(config: dict, **others: object) -> object:
        config["zero_optimization"]["reduce_scatter"] = False  # it knows no float64
        return initialize(config=config, **others)

    deepspeed.initialize = without_reduce_scatter
    ZeROOptimizer._configure_master_weights = lambda *_, **__: torch.get_default_dtype()
    DeepSpeedEngine.communication_data_type = property(lambda _: torch.get_default_dtype())
    Init._set_dtype = lambda self, *_: setattr(self, "dtype", torch.float)


def build(processes: Processes, case: dict) -> Trainer:
    torch.set_default_dtype(torch.float64 if case.get("double") else torch.float32)
    chosen = config(case.get("split_g", False), case.get("wide", False), case.get("precision", "float32"))
    loader = build_loader(chosen, named.load("toy"), CPU, processes.rank, processes.world_size)
    processes.engine_name, processes.offload = case["engine"], case.get("offload", False)
    nets = networks.build(chosen)
    trainer = Trainer(chosen, nets, loader, processes.make_engine, processes.world_size, case.get("micro_batch"))
    if case.get("compile"):  # but for the code that inductor would make of the graphs, which takes minutes
        for part in (trainer.G.net, trainer.d_objective, trainer.g_objective):
            part.compile(fullgraph=True, backend="aot_eager")
    if (step := case.get("overflow_in")) is not None and processes.rank == processes.world_size - 1:
        overflow_in(step, trainer)
    return trainer


def overflow_in(step: int, trainer: Trainer) -> None:
    """Let a gradient of D, of this process alone, be larger than its type holds in that step, counted from 0."""
    first = next(trainer.D.net.parameters())
    at = step * trainer.config.data.batch_size
    first.register_hook(lambda grad: grad * math.inf if trainer.images_seen == at else grad)


def train(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step(trainer.loader.batch(trainer.images_seen))


def run(processes: Processes, case: dict, folder: Path) -> None:
    """The state after `steps` more steps, kept by the case's name; where `resume` is set, of one resumed half-way.

    With `every_rank` each process keeps its own, by name and rank.
    """
    trainer = build(processes, case)
    if (start := case.get("start")) is not None:
        snapshot = Checkpoints(folder / start).latest()
        trainer.load_state(snapshot.tensors, snapshot.state)
    if case.get("resume"):
        train(trainer, case["steps"] // 2)
        state = trainer.state()
        trainer = build(processes, case)
        trainer.load_state(*state)
        train(trainer, case["steps"] - case["steps"] // 2)
    else:
        train(trainer, case["steps"])
    tensors, state = trainer.state()
    if processes.is_main or case.get("every_rank"):
        name = f"{case['name']}-{processes.rank}" if case.get("every_rank") else case["name"]
        Checkpoints(folder / name).save(tensors, state)
    processes.barrier()


def say_memory(engine: str) -> None:
    """Print how many bytes this process holds of states, of weights, and of ZeRO's own copy of these, after a step."""
    processes = Processes(threads=1)
    trainer = build(processes, {"engine": engine})
    train(trainer, 1)
    held = {"states": 0, "weights": 0, "copy": 0}
    for player in (trainer.G, trainer.D):
        states = player.optimizer.state.values()
        held["states"] += sum(value.nbytes for state in states for value in state.values() if value.dim())
        tensors = [*player.net.parameters(), *player.net.buffers()]
        held["weights"] += sum(getattr(tensor, "ds_tensor", tensor).nbytes for tensor in tensors)
        zero = player._deepspeed.optimizer
        parts = zero.single_partition_of_fp32_groups if player.stage < 3 else zero.fp32_partitioned_groups_flat
        held["copy"] += sum(part.nbytes for part in parts)
    processes.close()
    print(json.dumps(held))


def main(cases: list[dict], folder: Path) -> None:
    processes = Processes(threads=1)
    if processes.world_size > 1:
        let_zero_compute_in_float64()
    for case in cases:
        run(processes, case, folder)
    processes.close()
