"""Runs of the real script, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner, Result

from mrm_stream.cli import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "mrm_stream" / "train.py"
SETTINGS = """
data: {hr_size: 64, lr_size: 32, report_length: 24, window: 2, threads: 1}
model:
  patch: 8
  image_encoder: {width: 32, depth: 1, heads: 2}
  image_decoder: {width: 32, depth: 1, heads: 2}
  report_decoder: {width: 32, depth: 1, heads: 2, feed_forward: 32, dropout: 0.2}
optim: {batch_size: 6, epochs: 4, warmup_epochs: 1, base_lr: 0.1}
run: {log_every: 3, save_every: 8}
"""
STEPS = 24
"""36 training samples x 4 epochs / 6."""


QUIET_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Tests share the cores: a thread that spins until another has come costs ten times what a layer this small costs."""
ENVIRONMENT = {**os.environ, **QUIET_THREADS, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
"""With a path to the tests themselves: scripts that are run below a launcher share code with them."""


def torchrun_command(arguments: list[str], *, ranks: int) -> list[str]:
    """A command below torchrun, which starts faster than DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    return [*launcher, f"--master_port={free_port()}", *arguments]


def deepspeed(arguments: list[str], *, ranks: int) -> subprocess.CompletedProcess[str]:
    """Run a command below DeepSpeed's launcher, to its end."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), f"--num_gpus={ranks}"]
    command = [*launcher, f"--master_port={free_port()}", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun(arguments: list[str], *, ranks: int) -> subprocess.CompletedProcess[str]:
    """Run a command on some ranks, to its end."""
    command = torchrun_command(arguments, ranks=ranks)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def wait_until(what: Callable[[], bool], process: subprocess.Popen[Any] | None = None, seconds: float = 240) -> None:
    """Return when something has come about, while a process lives that it depends on."""
    deadline = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, "the run ended before it was to be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclass
class Run:
    """One directory, and the launches of `train.py` into it, and of `mrm-stream train`."""

    out: Path
    shards: Path
    config: Path

    def arguments(self, *overrides: str) -> list[str]:
        """What follows the launcher."""
        place = ["--config", str(self.config), "--shards", str(self.shards), "--out", str(self.out)]
        return [str(SCRIPT), *place, *(word for override in overrides for word in ("--set", override))]

    def launch(self, *overrides: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return torchrun(self.arguments(*overrides), ranks=ranks)

    def short_arguments(self, *overrides: str) -> list[str]:
        """What follows `mrm-stream`."""
        return ["train", *self.arguments(*overrides)[1:], "--ranks", "2"]

    def short_launch(self, *overrides: str) -> Result:
        """Run `mrm-stream train` to the end; its ranks are processes, it is this one: to start one more takes long."""
        with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
            return CliRunner().invoke(main, self.short_arguments(*overrides))

    def short_start(self, *overrides: str) -> subprocess.Popen[str]:
        """Start `mrm-stream train` as a process of its own."""
        command = [sys.executable, "-m", "mrm_stream.cli", *self.short_arguments(*overrides)]
        return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command, silent and in a process group of its own."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=quiet, stderr=quiet, start_new_session=True)

    def launch_and_signal(self, number: signal.Signals, when: Callable[[], bool], *overrides: str) -> int:
        """Send a signal to the launcher's group as soon as `when()`; return its exit status."""
        process = self.start(torchrun_command(self.arguments(*overrides), ranks=2))
        wait_until(when, process)
        os.killpg(process.pid, number)
        return process.wait(timeout=120)

    def launch_and_hold(self, step: int, *overrides: str, ranks: int = 2) -> subprocess.Popen[bytes]:
        """Start, and return the launcher when all ranks have taken `step` steps; they take no more."""
        held = [self.out.with_name(f"held-{rank}") for rank in range(ranks)]
        script = [str(Path(__file__).with_name("held.py")), str(step), str(self.out.parent)]
        process = self.start(torchrun_command([*script, *self.arguments(*overrides)[1:]], ranks=ranks))
        wait_until(lambda: all(path.exists() for path in held), process)
        assert len(self.processes()) == 1 + ranks
        return process

    def launch_and_kill(self, step: int, *overrides: str, ranks: int = 2) -> None:
        """Kill the launcher and every rank when all ranks have taken `step` steps, and no more."""
        process = self.launch_and_hold(step, *overrides, ranks=ranks)
        # torch starts each rank in a session of its own: the launcher's process group is the launcher alone.
        for number in self.processes():
            with suppress(ProcessLookupError):  # The launcher ends the others when it sees the first one gone.
                os.kill(number, signal.SIGKILL)
        process.wait(timeout=120)
        wait_until(lambda: not self.processes())

    def processes(self) -> set[int]:
        """Every process that has this run's directory on its command line."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # It has just ended.
                if str(self.out).encode() in path.read_bytes().split(b"\0"):
                    found.add(int(path.parent.name))
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log, without what depends on the clock."""
        path = self.out / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        timed = {"samples_per_s", "waiting_share", "decoding_share", "mb_per_s"}
        return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def new_run(folder: Path, shards: Path) -> Run:
    """A run that has not begun, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(SETTINGS)
    return Run(folder / "run", shards, config)
