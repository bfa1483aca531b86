"""The files in launch/: what Accelerate makes of them, the Slurm script with stand-ins for Slurm, and each command."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from fastgan.errors import EXIT_STOPPED
from fastgan.presets import parse_config
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.rows import read_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
# file -> processes of all machines, machines, how they are started
TOPOLOGIES = {
    "cpu2.yaml": (2, 1, "multi_gpu"),
    "1gpu.yaml": (1, 1, None),
    "ddp_8gpu.yaml": (8, 1, "multi_gpu"),
    "zero2_8gpu.yaml": (8, 1, "use_deepspeed"),
    "multinode.yaml": (16, 2, "multi_gpu"),
}


def launcher_settings(options: list[str]) -> argparse.Namespace:
    """What `accelerate launch` understands by the options, its configuration file included."""
    settings, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    return settings


def commands(text: str) -> list[list[str]]:
    """The words after each `accelerate launch` in a shell script or a page; a backslash goes on in the next line."""
    return [shlex.split(found) for found in re.findall(r"accelerate launch (--[^`\n]+)", text.replace("\\\n", " "))]


def training_flags(words: list[str]) -> list[str]:
    """What follows `fastgan/train.py`."""
    number = next(number for number, word in enumerate(words) if word.endswith("fastgan/train.py"))
    return words[number + 1 :]


def read_kubernetes() -> dict[str, dict]:
    documents = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def read_skypilot() -> dict:
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


# Accelerate's configuration files


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_accelerate_understands(name):
    """Each file starts the processes it promises, the way it promises, and picks a free port where it may."""
    processes, machines, way = TOPOLOGIES[name]
    settings = launcher_settings(["--config_file", str(LAUNCH / name), "fastgan/train.py"])
    assert (settings.num_processes, settings.num_machines) == (processes, machines)
    ways = [flag for flag in ("multi_gpu", "use_deepspeed", "use_fsdp", "tpu", "cpu") if getattr(settings, flag)]
    assert ways == ([way] if way else [])
    assert settings.mixed_precision == "no"
    assert settings.max_restarts == 0  # a stop with a checkpoint would count as a failure and start again
    if processes > 1:
        assert settings.main_process_port == (0 if machines == 1 else 29500)


def test_no_topology_is_missed():
    """The list above has all of Accelerate's files; the others aren't Accelerate's."""
    assert {path.name for path in LAUNCH.glob("*.yaml")} == {*TOPOLOGIES, "kubernetes.yaml", "skypilot.yaml"}


def test_zero_stage_reaches_training():
    """zero2_8gpu.yaml puts its stage where fastgan's `--engine auto` reads it, through torch's launcher, not pdsh's."""
    settings = launcher_settings(["--config_file", str(LAUNCH / "zero2_8gpu.yaml"), "fastgan/train.py"])
    settings.deepspeed_fields_from_accelerate_config = ""
    command, environment = prepare_deepspeed_cmd_env(settings)
    assert command is None  # torch's launcher is called, no other program
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"


def test_command_line_wins_over_multinode_file():
    """Other machines, processes, addresses and ports can be given beside multinode.yaml, and ZeRO's file beside it."""
    options = "--num_machines 3 --num_processes 12 --machine_rank 2 --main_process_ip node0 --main_process_port 4321"
    for name in ("multinode.yaml", "zero2_8gpu.yaml"):
        words = ["--config_file", str(LAUNCH / name), *options.split(), "fastgan/train.py"]
        settings = launcher_settings(words)
        assert (settings.num_machines, settings.num_processes, settings.machine_rank) == (3, 12, 2)
        assert (settings.main_process_ip, settings.main_process_port) == ("node0", 4321)
        if settings.use_deepspeed:
            settings.deepspeed_fields_from_accelerate_config = ""
            assert prepare_deepspeed_cmd_env(settings)[0] is None
            assert settings.rdzv_endpoint == "node0:4321"


def test_cpu2_trains_on_two_processes(tmp_path):
    """cpu2.yaml trains on two processes that talk through gloo, and hides GPUs from them."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "import torch.distributed as dist\n"
        "from fastgan.commands import train\n"
        "start = dist.init_process_group\n"
        "def started(*args, **options):\n"
        "    start(*args, **options)\n"
        "    said = f'{dist.get_backend()} {dist.get_world_size()} {os.environ[\"CUDA_VISIBLE_DEVICES\"]}'\n"
        "    Path(__file__).with_name(f'process-{dist.get_rank()}').write_text(said)\n"
        "dist.init_process_group = started\n"
        "sys.exit(train.main())\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", LAUNCH / "cpu2.yaml"]
    options = ["--preset", "debug", "--images", "64", "--run-dir", tmp_path / "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [*command, probe, *options], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    assert [path.read_text() for path in sorted(tmp_path.glob("process-*"))] == ["gloo 2 -1,-1"] * 2
    assert answer.stdout.count("done: 64 images") == 1


# The Slurm script, with stand-ins that do what its #SBATCH lines ask for: `srun` runs its command here, once for each
# task of each node; `scancel` signals, as most clusters do, the first process of each task only; `scontrol` notes what
# it is asked, and refuses where the job may not be queued again.

STAND_INS = {
    "srun": """#!/usr/bin/env bash
    while [[ $1 == --* ]]; do shift; done
    pids=() highest=0
    for ((task = 0; task < SLURM_NNODES * TASKS_A_NODE; task++)); do
        SLURM_NODEID=$((task / TASKS_A_NODE)) "$@" & pids+=($!)
    done
    echo "${pids[*]}" >"$NOTES/tasks"
    for pid in "${pids[@]}"; do wait "$pid"; code=$?; if ((code > highest)); then highest=$code; fi; done
    exit "$highest"
    """,
    "scancel": """#!/usr/bin/env bash
    echo "scancel $*" >>"$NOTES/asked"
    [[ $1 == --signal=* ]] && kill -"${1#--signal=}" $(cat "$NOTES/tasks")
    """,
    "scontrol": """#!/usr/bin/env bash
    if [ "$1" = show ]; then printf '127.0.0.1\\nother\\n'; exit; fi
    [ -n "$MAY_REQUEUE" ] && echo "scontrol $*" >>"$NOTES/asked"
    """,
}
# As Accelerate's launcher: it hands SIGTERM on, waits, and makes 1 of every code but 0. Training is $TRAINING.
ACCELERATE = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/launched"
bash -c "$TRAINING" & training=$!
trap 'kill -TERM $training' TERM
while kill -0 $training 2>/dev/null; do wait $training; done
wait $training || exit 1
"""
UNTIL_TOLD = 'trap "sleep 1; echo >>$NOTES/saved; exit 75" TERM; while :; do sleep 0.1; done'  # saving takes a second


class Slurm:
    """A job of two nodes on this machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
        self.folder, self.notes, programs_folder = folder, folder / "notes", folder / "programs"
        for path in (self.notes, programs_folder):
            path.mkdir()
        for name, text in (STAND_INS | programs).items():
            (programs_folder / name).write_text(re.sub("^    ", "", text, flags=re.MULTILINE))
            (programs_folder / name).chmod(0o755)
        path = os.pathsep.join((str(programs_folder), str(Path(sys.executable).parent), os.environ["PATH"]))
        job = {"SLURM_JOB_ID": "417", "SLURM_JOB_NODELIST": "localhost,other", "SLURM_NNODES": "2"}
        self.environment = os.environ | job | {"NOTES": str(self.notes), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.environment |= {"CUDA_VISIBLE_DEVICES": ""}  # both nodes would take the same GPU
        self.environment.pop("SLURM_GPUS_ON_NODE", None)
        lines = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", (LAUNCH / "slurm.sbatch").read_text(), flags=re.MULTILINE)
        self.asked = dict(lines)
        self.environment |= {"TASKS_A_NODE": self.asked["ntasks-per-node"]}
        self.environment |= {"MAY_REQUEUE": "yes" if "requeue" in self.asked else ""}

    def start(self, *options: str, cwd: Path | None = None) -> subprocess.Popen:
        command = ["bash", str(LAUNCH / "slurm.sbatch"), *options]
        with (self.folder / "log").open("a" if self.asked["open-mode"] == "append" else "w") as log:
            return subprocess.Popen(command, cwd=cwd or self.folder, env=self.environment, stdout=log, stderr=log)

    def warn(self, job: subprocess.Popen) -> None:
        """Signal before the limit as the job has asked for: the script itself, minutes before."""
        number, seconds = self.asked["signal"].removeprefix("B:").split("@")
        assert self.asked["signal"].startswith("B:") and int(seconds) > 240  # which torch's launcher has
        job.send_signal(signal.Signals[f"SIG{number}"])

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def lines(self, name: str) -> list[str]:
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    """A job whose `accelerate` is a stand-in, too."""
    return Slurm(tmp_path, monkeypatch, accelerate=ACCELERATE)


@pytest.mark.parametrize(("training", "code"), [("exit 0", 0), ("exit 2", 1)])
def test_slurm_leaves_a_job_that_ended_by_itself(slurm, training, code):
    """A job that is done, or that failed by a mistake, isn't queued again; its code says which."""
    slurm.environment["TRAINING"] = training
    job = slurm.start("--preset", "debug")
    assert job.wait(timeout=60) == code, slurm.log()
    assert slurm.lines("asked") == []


def test_slurm_queues_a_stopped_job_again(slurm):
    """Before the limit (SIGUSR1 to the script) all nodes save, once; only then is the job queued again."""
    slurm.environment["TRAINING"] = UNTIL_TOLD
    job = slurm.start()
    slurm.wait_until(lambda: len(slurm.lines("launched")) == 2)
    time.sleep(0.5)
    slurm.warn(job)
    assert job.wait(timeout=60) == EXIT_STOPPED, slurm.log()
    assert len(slurm.lines("saved")) == 2
    assert slurm.lines("asked") == ["scancel --signal=TERM 417", "scontrol requeue 417"]


def test_slurm_queues_a_preempted_job_again(slurm):
    """Preemption with time to save signals the tasks, not the script: they save, and the job is queued again."""
    slurm.environment["TRAINING"] = UNTIL_TOLD
    job = slurm.start()
    slurm.wait_until(lambda: len(slurm.lines("launched")) == 2)
    time.sleep(0.5)
    for task in slurm.lines("tasks")[0].split():
        os.kill(int(task), 15)
    assert job.wait(timeout=60) == EXIT_STOPPED, slurm.log()
    assert len(slurm.lines("saved")) == 2
    assert slurm.lines("asked") == ["scontrol requeue 417"]


def test_slurm_leaves_a_cancelled_job(slurm):
    """Where Slurm ends the job (SIGTERM to tasks and script), it saves, and whether it comes back is Slurm's to say."""
    slurm.environment["TRAINING"] = UNTIL_TOLD
    job = slurm.start()
    slurm.wait_until(lambda: len(slurm.lines("launched")) == 2)
    time.sleep(0.5)
    for process in (*map(int, slurm.lines("tasks")[0].split()), job.pid):
        os.kill(process, 15)
    assert job.wait(timeout=60) == EXIT_STOPPED, slurm.log()
    assert len(slurm.lines("saved")) == 2
    assert slurm.lines("asked") == []


def test_slurm_tells_each_node_its_place(slurm):
    """Each node's launcher gets its number, the first node's address, the GPUs of all nodes, and the flags as given."""
    slurm.environment |= {"TRAINING": "exit 0", "SLURM_GPUS_ON_NODE": "4"}
    assert slurm.start("--preset", "debug", "--run-dir", "a folder").wait(timeout=60) == 0, slurm.log()
    ranks = []
    for line in slurm.lines("launched"):
        assert line.endswith("fastgan/train.py --preset debug --run-dir a folder")
        words = [word.replace("launch/", f"{LAUNCH}/") for word in line.split()[1:]]
        settings = launcher_settings(words)
        assert (settings.num_machines, settings.num_processes, settings.multi_gpu) == (2, 8, True)
        assert (settings.main_process_ip, settings.main_process_port) == ("127.0.0.1", 10417)
        ranks.append(settings.machine_rank)
    assert sorted(ranks) == [0, 1]


def test_slurm_job_goes_on_after_a_requeue(tmp_path, monkeypatch):
    """With the real launcher: two nodes of one CPU process stop with a checkpoint, and started again they end."""
    slurm = Slurm(tmp_path, monkeypatch)
    slurm.environment |= {"PYTHONPATH": str(ROOT), "FASTGAN_CACHE": str(tmp_path / "cache")}
    run = tmp_path / "run"
    options = ["--preset", "debug", "--images", "992", "--batch-size", "8", "--log-every", "32", "--run-dir", str(run)]
    options += ["--threads", "1"]  # each "node" would take all cores
    job = slurm.start(*options, cwd=ROOT)
    slurm.wait_until((run / "log.jsonl").exists, 240)
    slurm.warn(job)
    assert job.wait(timeout=120) == EXIT_STOPPED, slurm.log()
    assert slurm.lines("asked") == ["scancel --signal=TERM 417", "scontrol requeue 417"]
    stopped = Checkpoints(run / "checkpoints").latest()
    assert stopped is not None
    assert 0 < stopped.state["images_seen"] < 992

    assert slurm.start(*options, cwd=ROOT).wait(timeout=300) == 0, slurm.log()
    assert "stopped on request" in slurm.log() and slurm.log().count("done: 992 images") == 1  # in one log
    assert f"resuming {run} at {stopped.state['images_seen']} of 992" in slurm.log()
    assert [row["images_seen"] for row in read_rows(run / "log.jsonl")] == list(range(32, 993, 32))
    assert len(slurm.lines("asked")) == 2  # it wasn't queued a second time


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml"])
def test_shell_is_sound(tmp_path, name):
    """Bash parses the scripts, and shellcheck, where there is one, has nothing to say."""
    scripts = [LAUNCH / name]
    if name == "skypilot.yaml":
        scripts = [tmp_path / part for part in ("setup", "run")]
        for script in scripts:
            script.write_text("# shellcheck disable=SC1091\n" + read_skypilot()[script.name])
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "--shell=bash", script], check=True)


# Kubernetes and SkyPilot


def test_kubernetes_manifest():
    """All pods restart together, a limited number of times; each has time to save, and the claim for runs and data."""
    kinds = read_kubernetes()
    assert set(kinds) == {"PersistentVolumeClaim", "TrainingRuntime", "TrainJob"}
    runtime, job = kinds["TrainingRuntime"], kinds["TrainJob"]
    assert runtime["apiVersion"] == job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    jobs = runtime["spec"]["template"]["spec"]
    assert jobs["failurePolicy"]["maxRestarts"] > 0
    (node,) = jobs["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert node["template"]["spec"]["backoffLimit"] == 0
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"  # the names that the trainer looks for
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": kinds["PersistentVolumeClaim"]["metadata"]["name"]}]
    variables = {variable["name"]: variable["value"] for variable in job["spec"]["trainer"]["env"]}
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_kubernetes_command():
    """The container's first process is the launcher, with this pod's place and all GPUs; runs lie in the claim."""
    trainer = read_kubernetes()["TrainJob"]["spec"]["trainer"]
    words = [*trainer["command"], *trainer["args"]]
    assert words[:2] == ["accelerate", "launch"]
    places = {"$(PET_NODE_RANK)": "1", "$(PET_MASTER_ADDR)": "fastgan-node-0-0.fastgan", "$(PET_MASTER_PORT)": "29400"}
    for name, value in places.items():
        words = [word.replace(name, value) for word in words]
    settings = launcher_settings([word.replace("/fastgan/launch", str(LAUNCH)) for word in words[2:]])
    assert settings.num_machines == trainer["numNodes"]
    assert settings.num_processes == trainer["numNodes"] * trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert settings.machine_rank == 1
    assert str(parse_config(training_flags(words)).run_dir).startswith("/store/")


def test_skypilot_task():
    """A managed spot job of several machines: its runs lie in a cached bucket, and its command fits its resources."""
    task = read_skypilot()
    assert {"resources", "num_nodes", "setup", "run", "workdir"} <= set(task)
    assert task["resources"]["use_spot"]
    assert task["file_mounts"]["/store"]["mode"] == "MOUNT_CACHED"
    (words,) = commands(task["run"])
    gpus = int(task["resources"]["accelerators"].split(":")[1])
    given = {"SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus)}
    given |= {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    script = task["run"].replace("source .venv/bin/activate", "").replace("exec accelerate", "printf '%s\\n'")
    answer = subprocess.run(["bash", "-c", script], env=os.environ | given, capture_output=True, text=True, check=True)
    said = answer.stdout.splitlines()
    settings = launcher_settings([word.replace("launch/", f"{LAUNCH}/") for word in said[1:]])
    assert (settings.num_machines, settings.num_processes) == (task["num_nodes"], task["num_nodes"] * gpus)
    assert (settings.machine_rank, settings.main_process_ip) == (1, "10.0.0.1")
    assert training_flags(said) == training_flags(words)
    assert str(parse_config(training_flags(words)).run_dir).startswith("/store/")


# Commands in words


def test_commands_on_the_page():
    """Each command in launch/README.md is understood by Accelerate and by fastgan, and names files that are there."""
    found = commands((LAUNCH / "README.md").read_text())
    assert len(found) >= len(TOPOLOGIES)
    used = set()
    for words in found:
        settings = launcher_settings([word.replace("launch/", f"{LAUNCH}/") for word in words])
        used.add(Path(settings.config_file).name)
        parse_config(training_flags(words))
    assert used == set(TOPOLOGIES)


def test_slurm_usage():
    """The flags in the Slurm script's usage line are fastgan's."""
    usage = re.search(r"^#   sbatch launch/slurm.sbatch (.*?) \[", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert usage is not None
    parse_config(shlex.split(usage[1]))


# The lowest versions


def test_every_dependency_names_its_lowest_version():
    """launch/lowest.py pins each dependency of each extra at its bound, once, and refuses one without a bound."""
    lowest = runpy.run_path(str(LAUNCH / "lowest.py"))["lowest"]
    pins = lowest((ROOT / "setup.cfg").read_text())
    names = [pin.split("==")[0] for pin in pins]
    assert len(set(names)) == len(names)
    assert {"torch==2.11", 'nvidia-dali-cuda130==2.0; sys_platform == "linux"', "pytest==8.0"} <= set(pins)
    text = "[options]\ninstall_requires =\n    numpy{}\n[options.extras_require]\n"
    assert lowest(text.format(">=1.26")) == ["numpy==1.26"]
    for bound in ("", "==1.26", ">1", ">=1,<3"):
        with pytest.raises(ValueError, match=re.escape(f"'numpy{bound}' names no lowest version")):
            lowest(text.format(bound))
