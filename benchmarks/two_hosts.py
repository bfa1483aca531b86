"""Two hosts that lose each other: network namespaces joined by a cable that is cut, and processes that are killed.

Trains once undisturbed and once with faults at random moments, and compares the weights bit for bit. Needs root.
Each host runs `launch/keep_going accelerate launch --num_machines 2 ...`; both see the same run folder.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import harness
import psutil
import torch

from fastgan.runs.checkpoint import Checkpoints
from fastgan.utils.arguments import parse

ROOT = Path(__file__).parents[1]
KINDS = ("kill rank 0", "kill rank 1", "cut", "kill rank 0", "kill rank 1", "cut", "short cut", "kill rank 1", "cut")
BEATS_S = 3 * 2.0  # what the watchdog may need beyond its limit
STARTING_S = 30.0  # the least limit for processes to come together at the start (train.py)


@dataclass(frozen=True)
class Options:
    """What is run and how it is disturbed."""

    preset: str = "mnist28"
    """The recipe."""
    width: float = 0.125
    """The networks' width."""
    images: int = 24_000
    """Images of the run."""
    checkpoint_every: int = 512
    """Images between two checkpoints."""
    faults: int = 10
    """How many faults."""
    timeout_s: float = 12.0
    """The watchdog's limit."""
    seed: int = 0
    """Decides the faults' kinds and moments."""
    patience_s: float = 1_800.0
    """When to give up on a run."""
    save: bool = False
    """Write the result into results/."""


class Host:
    """One side of the cable: its namespace, its name, its command and what that said."""

    def __init__(self, folder: Path, number: int, tag: str) -> None:
        self.number, self.name, self.folder = number, f"host-{'ab'[number]}", folder
        self.space, self.device, self.address = (
            f"fg{tag}{'ab'[number]}",
            f"fg{tag}v{'ab'[number]}",
            f"10.77.0.{number + 1}",
        )
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> None:
        """The command runs on this host, under a name of its own."""
        names = f"mount --bind {self.folder}/hosts /etc/hosts; mount --bind {self.folder}/resolv /etc/resolv.conf"
        inside = f'{names}; hostname {self.name}; exec "$@"'
        around = ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "sh", "-c", inside, "sh"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": self.device, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*around, *command], stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )

    def worker(self) -> psutil.Process | None:
        """The process that trains here, if there is one."""
        if self.process is None or self.process.poll() is not None:
            return None
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                words = child.cmdline()
                if any(word.endswith("train.py") for word in words[:3]):
                    return child
        except psutil.Error:
            pass
        return None

    def said(self, start: int = 0) -> str:
        return self.log.read_bytes()[start:].decode(errors="replace") if self.log.exists() else ""

    def end(self) -> None:
        """All that was started here is gone."""
        if self.process is None:
            return
        try:
            started = [psutil.Process(self.process.pid)]
            started += started[0].children(recursive=True)
        except psutil.Error:
            started = []
        for process in started:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()


class Cable:
    """Two hosts joined by one, while the block lasts."""

    def __init__(self, folder: Path) -> None:
        tag = f"{os.getpid() % 10_000}"
        self.hosts = [Host(folder, number, tag) for number in range(2)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 host-a\n10.77.0.2 host-b\n")
        (folder / "resolv").write_text("\n")

    def __enter__(self) -> "Cable":
        a, b = self.hosts
        for host in self.hosts:
            _ip("netns", "add", host.space)
        _ip("link", "add", a.device, "netns", a.space, "type", "veth", "peer", "name", b.device, "netns", b.space)
        for host in self.hosts:
            _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.device)
            _ip("-n", host.space, "link", "set", "lo", "up")
            _ip("-n", host.space, "link", "set", host.device, "up")
        return self

    def cut(self, whole: bool) -> None:
        """The cable is cut, or whole again."""
        host = self.hosts[1]
        _ip("-n", host.space, "link", "set", host.device, "up" if whole else "down")

    def __exit__(self, *reason: object) -> None:
        for host in self.hosts:
            host.end()
            subprocess.run(["ip", "netns", "del", host.space], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def command(options: Options, rank: int, port: int, run_dir: Path) -> list[str]:
    return [
        str(ROOT / "launch" / "keep_going"),
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_machines", "2"),
        *("--num_processes", "2", "--machine_rank", str(rank), "--rdzv_conf", "timeout=120"),
        *("--main_process_ip", "10.77.0.1", "--main_process_port", str(port)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "fastgan" / "train.py")),
        *("--preset", options.preset, "--width", str(options.width), "--images", str(options.images)),
        *("--checkpoint-every", str(options.checkpoint_every), "--keep-checkpoints", "50"),
        *(
            "--timeout-s",
            str(options.timeout_s),
            "--eval-every",
            "0",
            "--log-every",
            str(options.checkpoint_every),
            "--run-dir",
            str(run_dir),
        ),
    ]


def newest(run_dir: Path) -> int:
    """Images of the newest checkpoint, 0 without one."""
    paths = Checkpoints(run_dir / "checkpoints").paths()
    return int(paths[-1].name) if paths else 0


@dataclass
class Fault:
    """What was done to the job, and what came of it; seconds count from the fault."""

    kind: str
    down_s: float = 0.0
    at_images: int = 0  # of the newest checkpoint then
    trained: bool = True  # rather than started up
    noticed_s: dict[str, float] = field(default_factory=dict)  # by host: its line was there
    back_s: float | None = None  # training went on from a checkpoint
    again: int = 0  # images seen a second time
    lines: list[str] = field(default_factory=list)

    def row(self, options: Options) -> str:
        noticed = ", ".join(f"{host} {spent:.1f}" for host, spent in self.noticed_s.items()) or "-"
        limit = options.timeout_s if self.trained else max(options.timeout_s, STARTING_S)
        bound = "-" if self.kind == "short cut" else f"{limit + BEATS_S:g}"
        what = self.kind + (f", {self.down_s:.0f} s" if self.down_s else "") + ("" if self.trained else ", starting up")
        back = "-" if self.back_s is None else f"{self.back_s:.0f}"
        return f"| {what} | {self.at_images:,} | {bound} | {noticed} | {back} | {self.again:,} |"


class Job:
    """A run on both hosts, from its start to its end."""

    def __init__(self, options: Options, cable: Cable, run_dir: Path, port: int) -> None:
        self.options, self.cable, self.run_dir = options, cable, run_dir
        for host in cable.hosts:
            host.log.unlink(missing_ok=True)
            host.start(command(options, host.number, port, run_dir))
        self.deadline = time.monotonic() + options.patience_s

    def is_over(self) -> bool:
        """Raises RuntimeError where the job takes too long or a host has given up."""
        codes = [host.process.poll() if host.process else None for host in self.cable.hosts]
        if time.monotonic() > self.deadline or any(code not in (None, 0) for code in codes):
            said = "\n".join(f"-- {host.name}\n{host.said()[-3000:]}" for host in self.cable.hosts)
            raise RuntimeError(f"the job did not end well: {codes}\n{said}")
        return all(code == 0 for code in codes)

    def wait(self) -> None:
        while not self.is_over():
            time.sleep(0.2)

    def disturb(self, fault: Fault) -> None:
        """The fault has happened, and training goes on."""
        marks = [len(host.said().encode()) for host in self.cable.hosts]
        fault.at_images, began = newest(self.run_dir), time.monotonic()
        attempt = self.cable.hosts[0].said().rsplit("keep_going: ", 1)[-1]
        fault.trained = re.search(r"^(resuming|epoch)", attempt, re.MULTILINE) is not None
        if fault.kind.startswith("kill"):
            worker = self.cable.hosts[int(fault.kind[-1])].worker()
            if worker is None:  # between two attempts: there is nothing to kill
                fault.kind += " (not there)"
                return
            worker.send_signal(signal.SIGKILL)
        else:
            self.cable.cut(whole=False)
        whole = fault.down_s == 0
        while not self.is_over():
            spent = time.monotonic() - began
            if not whole and spent > fault.down_s:
                self.cable.cut(whole=True)
                whole = True
            self._notice(fault, marks, spent)
            # A short cut, or a rank killed while the others still wait for it to come, harms nobody else.
            # One checkpoint more may have been under way.
            further = newest(self.run_dir) >= fault.at_images + 2 * self.options.checkpoint_every
            if whole and (fault.back_s is not None or further):
                break
            time.sleep(0.05)
        self._count_again(fault, marks)

    def _notice(self, fault: Fault, marks: list[int], spent: float) -> None:
        for host, mark in zip(self.cable.hosts, marks, strict=True):
            if host.name not in fault.noticed_s and "fastgan: error:" in host.said(mark):
                fault.noticed_s[host.name] = spent
        _, *attempt = self.cable.hosts[0].said(marks[0]).rsplit("keep_going: ", 1)
        if fault.back_s is None and attempt and re.search(r"^(resuming|epoch)", attempt[0], re.MULTILINE):
            fault.back_s = spent

    def _count_again(self, fault: Fault, marks: list[int]) -> None:
        text = "".join(host.said(mark) for host, mark in zip(self.cable.hosts, marks, strict=True))
        fault.lines = [line for line in text.splitlines() if line.startswith("fastgan: ")]
        seen = [
            int(number.replace(",", "")) for line in fault.lines for number in re.findall(r"at ([\d,]+) images", line)
        ]
        start = re.search(r"^resuming .* at ([\d,]+) of", text, re.MULTILINE)
        if fault.back_s is not None and seen:
            fault.again = max(seen) - (int(start[1].replace(",", "")) if start else 0)


def differences(mine: Path, others: Path) -> list[str]:
    """The tensors of the two runs' newest checkpoints that aren't equal bit for bit, and their logs if they differ."""
    snapshots = [Checkpoints(run_dir / "checkpoints").latest() for run_dir in (mine, others)]
    assert snapshots[0] is not None and snapshots[1] is not None
    found = [] if snapshots[0].state == snapshots[1].state else ["state"]
    for file, tensors in snapshots[0].tensors.items():
        for name, value in tensors.items():
            other = snapshots[1].tensors[file][name]
            if value.dtype != other.dtype or not torch.equal(value, other):
                found.append(f"{file}/{name}")
    if (mine / "log.jsonl").read_bytes() != (others / "log.jsonl").read_bytes():
        found.append("log.jsonl")
    return found


def disturbed(options: Options, cable: Cable, run_dir: Path, port: int) -> list[Fault]:
    """The job ran to its end through all faults: one in each stretch of the run, at a random moment of it."""
    chance = random.Random(options.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(options.faults)]
    chance.shuffle(kinds)
    job, faults = Job(options, cable, run_dir, port), []
    for number, kind in enumerate(kinds):
        while newest(run_dir) < number * options.images // (options.faults + 1) and not job.is_over():
            time.sleep(0.05)
        wait_until = time.monotonic() + chance.uniform(0, 5)
        kills = kind.startswith("kill")
        while time.monotonic() < wait_until or (kills and not cable.hosts[int(kind[-1])].worker()):
            if job.is_over():
                raise RuntimeError(f"the run ended before fault {number + 1} of {options.faults}: give more --images")
            time.sleep(0.05)
        longest = options.timeout_s
        down = {"cut": chance.uniform(1.2, 2.0) * longest + BEATS_S, "short cut": chance.uniform(0.2, 0.5) * longest}
        fault = Fault(kind, down.get(kind, 0.0))
        job.disturb(fault)
        faults.append(fault)
        print(f"{time.strftime('%H:%M:%S')} {fault.row(options)}", *fault.lines, sep="\n    ", flush=True)
    job.wait()
    return faults


def measure(options: Options, folder: Path) -> str:
    """The table, and what became of the weights."""
    with Cable(folder) as cable:
        began = time.monotonic()
        Job(options, cable, folder / "undisturbed", 29_611).wait()
        alone_s = time.monotonic() - began
        print(f"undisturbed: {alone_s:.0f} s", flush=True)
        began = time.monotonic()
        faults = disturbed(options, cable, folder / "disturbed", 29_612)
        spent_s = time.monotonic() - began
    found = differences(folder / "disturbed", folder / "undisturbed")
    verdict = "equal bit for bit, and so is log.jsonl" if not found else f"DIFFERENT: {', '.join(found[:5])}"
    head = (
        f"{options.images:,} images of {options.preset} at width {options.width:g}, a checkpoint every "
        f"{options.checkpoint_every:,}, `--timeout-s {options.timeout_s:g}`; undisturbed {alone_s:.0f} s, "
        f"with {len(faults)} faults {spent_s:.0f} s. Weights, optimizers and averages at the end: {verdict}.\n\n"
        "| fault | newest checkpoint | bound, s | noticed after, s | training went on after, s | images done again |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "\n".join(fault.row(options) for fault in faults)


def main(options: Options) -> int:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("two_hosts.py needs root and the program ip: network namespaces are made with them", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as text:
        table = measure(options, Path(text))
    print(table)
    if options.save:
        print(harness.save("two-hosts", "Two hosts that lose each other", table))
    return 1 if "DIFFERENT" in table else 0


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], prog="two_hosts.py")))
