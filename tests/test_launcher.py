"""What launch files ask for, as Accelerate hands it on, and what fastgan says of it."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import refusal

from fastgan.commands import train
from fastgan.distributed.launcher import read_wishes

BASE = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "main_process_port": 0}


def launch(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Set what `accelerate launch` would of a file with these settings."""
    Path("launch.yaml").write_text(yaml.safe_dump({**BASE, "mixed_precision": "no", **settings}))
    parsed = launch_command_parser().parse_args(["--config_file", "launch.yaml", "train.py"])
    asked, _, _ = _validate_launch_command(parsed)
    asked.deepspeed_fields_from_accelerate_config = ""  # which the launcher adds
    environment = prepare_deepspeed_cmd_env(asked)[1] if asked.use_deepspeed else prepare_multi_gpu_env(asked)
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_", "MEGATRON_", "PARALLELISM_")):
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distributed_type": "MULTI_GPU"}, []),
        ({"distributed_type": "MULTI_GPU", "mixed_precision": "bf16"}, ["mixed_precision is bf16", "--precision"]),
        (
            {"distributed_type": "MULTI_GPU", "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
            ["dynamo_backend is inductor", "--compile"],
        ),
        (
            {"distributed_type": "MULTI_GPU", "dynamo_config": {"dynamo_mode": "max-autotune"}},
            ["dynamo_mode is max-autotune", "--compile"],
        ),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, ["FSDP is on", "--engine zero3"]),
        ({"distributed_type": "MEGATRON_LM", "megatron_lm_config": {}}, ["Megatron-LM is on", "--engine zero3"]),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 1}}, []),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_clipping": 1.0}},
            ["gradient_clipping is 1.0", "fastgan clips no gradients"],
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_accumulation_steps": 4}},
            ["gradient_accumulation_steps is 4", "--micro-batch"],
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"}},
            ["zero_optimization.offload_param is cpu", "--offload"],
        ),
    ],
)
def test_wishes_of_a_launch_file(
    settings: dict[str, Any], said: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Accelerate's file asks for and doesn't get is named in one line with the remedy, and no plugin starts."""
    launch(monkeypatch, **settings)
    unused = read_wishes().unused
    assert len(unused) == bool(said) and all(word in line for line in unused for word in said), unused
    assert not {f"ACCELERATE_USE_{name}" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM")} & {*os.environ}


DEEPSPEED = {
    "train_batch_size": 256,
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": 1.0,
    "gradient_accumulation_steps": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-4}},
    "scheduler": {"type": "WarmupLR"},
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
    "steps_per_print": 10,
    "comms_logger": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}},
}


@pytest.mark.parametrize("form", ["file", "base64"])
def test_wishes_of_a_deepspeed_file(form: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stage and its place for states are taken over; everything else that it asks for is named, a line each."""
    text = json.dumps(DEEPSPEED)
    Path("ds.json").write_text(text)
    name = "ds.json" if form == "file" else base64.urlsafe_b64encode(text.encode()).decode()
    launch(monkeypatch, distributed_type="DEEPSPEED", deepspeed_config={"deepspeed_config_file": name})
    wishes = read_wishes()
    assert (wishes.engine, wishes.offload) == ("zero3", True)
    named = {line.split(" is ")[0].removeprefix("DeepSpeed's ") for line in wishes.unused}
    steps = {"gradient_clipping", "gradient_accumulation_steps"}
    assert named == steps | {"train_batch_size", "optimizer", "scheduler", "bf16", "comms_logger"}
    assert "DeepSpeed's optimizer is adamw: it isn't used, --optimizer, --g-lr" in "\n".join(wishes.unused)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"zero_optimization": 3}', '{"zero_optimization": {"stage": 7}}'])
def test_a_deepspeed_file_that_is_none(text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused in one line that names what is wrong."""
    Path("ds.json").write_text(text)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    assert "DeepSpeed's" in refusal(read_wishes)


@pytest.mark.usefixtures("keep_signal_handlers")
def test_training_names_them(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start of training, each once; it trains as without them."""
    launch(monkeypatch, distributed_type="FSDP", fsdp_config={}, mixed_precision="fp16")
    assert train.main(["--preset", "debug", "--images", "16", "--batch-size", "8", "--width", "0.02"]) == 0
    said = capsys.readouterr().out
    assert said.count("FSDP is on: it isn't used") == said.count("mixed_precision is fp16: it isn't used") == 1
