"""Starts the ranks of a run on this machine, below torchrun, and waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrm_stream.distributed.launched import error_left
from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.errors import TrainingError

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a launched run has ended."""

    status: int
    """Exit status of torchrun."""
    was_asked: bool
    """Whether this process was asked to stop, and has passed that on."""
    error: TrainingError | None
    """What a rank has left to tell."""


def run_on_ranks(script: Path, arguments: Sequence[str], ranks: int) -> Ended:
    """Run a script on some ranks of this machine, and wait for it.

    torchrun rather than DeepSpeed's launcher: it keeps to CUDA_VISIBLE_DEVICES, finds a free port, passes a request to
    stop on to every rank, and waits until they have saved. However this process ends, the ranks end with it.

    Args:
        script: Python file that each rank runs.
        arguments: Of the script.
        ranks: Processes.
    """
    with tempfile.TemporaryDirectory(prefix="mrm-stream-") as folder:
        command = [sys.executable, "-m", "mrm_stream.distributed.torchrun", "--standalone", f"--nproc_per_node={ranks}"]
        command += [f"--log-dir={folder}"]  # A folder of its own making would stay behind.
        error_file = Path(folder) / "error.json"
        status, was_asked = _wait([*command, str(script), *arguments], error_file)
        return Ended(status, was_asked, error_left(error_file))


def gpus() -> int:
    """Return how many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()


def _wait(command: list[str], error_file: Path) -> tuple[int, bool]:
    """Run a command, pass requests to stop on to it; return its exit status, and whether there were any."""
    asked = False

    def pass_on(*_: object) -> None:
        nonlocal asked
        asked = True
        process.terminate()

    environment = {**os.environ, ERROR_FILE: str(error_file)}
    # Its own session: an interrupt from the keyboard reaches it through us alone. The pipe closes when we end.
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True) as process:
        # What is ignored stays so: below nohup, a terminal that closes stops nothing.
        caught = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, pass_on) for number in caught}
        try:
            return process.wait(), asked
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
