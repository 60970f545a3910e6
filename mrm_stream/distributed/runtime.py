"""Which process this is, on which device, how it logs, and whether it was asked to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from mrm_stream.errors import ConfigError

if TYPE_CHECKING:
    import torch

# What Slurm calls the things that torchrun and DeepSpeed's launcher put into these variables.
_SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}

ECHO_S = 10.0
"""A signal that is repeated within so many seconds is the same request, passed on by one more launcher."""


@dataclass(frozen=True)
class Runtime:
    """One rank of a run."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


def start_runtime() -> Runtime:
    """Return this process's rank among the others, and set up what torch.distributed reads from the environment.

    Works below `deepspeed`, `torchrun` and `srun`, and alone.

    Raises:
        ConfigError: The launcher's variables are not numbers, or Slurm's lack the address of the first rank.
    """
    import torch

    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        values.update({name: os.environ[name] for name in values if name in os.environ})
    elif "SLURM_STEP_NUM_TASKS" in os.environ:  # Set by srun; a batch script's own shell is no rank of anything.
        values.update({name: os.environ[slurm] for name, slurm in _SLURM_NAMES.items() if slurm in os.environ})
    try:
        numbers = {name: int(value) for name, value in values.items()}
    except ValueError:
        raise ConfigError(f"the launcher's variables are not numbers: {values}", where="environment") from None
    if numbers["WORLD_SIZE"] > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"{numbers['WORLD_SIZE']} ranks, but MASTER_ADDR is not set",
            where="environment",
            remedy="Under srun: export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1).",
        )
    if torch.cuda.is_available():
        # Slurm may show each task its own GPU only, as number 0; DeepSpeed reads the variable again. That no two ranks
        # have one GPU is seen when they meet.
        numbers["LOCAL_RANK"] %= torch.cuda.device_count()
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_default_port()))
    if torch.cuda.is_available():
        device = torch.device("cuda", numbers["LOCAL_RANK"])
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # Ranks that each start a thread for every core slow each other down: by a third, seen with two ranks.
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", numbers["WORLD_SIZE"])))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, ranks_here)))
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # Else DeepSpeed looks for a GPU, at length.
    return Runtime(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], device)


def _default_port() -> int:
    """Return the port at which the ranks meet: torch's usual one, or, under srun, one of the job step's own.

    Jobs share machines, and one job may run several steps at once; the steps' ports lie below those that Linux gives
    to outgoing connections.
    """
    try:
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
    except (KeyError, ValueError):
        return 29500
    return 15000 + (job + 977 * step) % 15000


def set_up_logging(*, quiet: bool = False) -> None:
    """Log to standard error, one plain line each; `quiet` (every rank but the first) leaves warnings only."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("DeepSpeed", "deepspeed", "torch", "nvidia", "PIL", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end this process at once, even while it waits in a library that does not return for them.

    For as long as nothing has been written that would be left behind.
    """
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether SIGTERM or SIGINT has come; the loop asks, saves, and ends."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGTERM or SIGINT into a request to stop; one that comes later than `ECHO_S` acts as it always does.

    A launcher that passes a signal on, after the terminal or the scheduler has sent it to every process, repeats it.
    """
    request = StopRequest()
    asked_at = 0.0
    previous: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if request and time.monotonic() - asked_at > ECHO_S:
            for caught, handler in previous.items():
                signal.signal(caught, handler)
            signal.raise_signal(number)
        elif not request:
            request.signal, asked_at = signal.Signals(number), time.monotonic()

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
