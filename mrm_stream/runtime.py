"""Which process this is, on which device, how it logs, and whether it was asked to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from mrm_stream.errors import ConfigError

if TYPE_CHECKING:
    import torch

# What a launcher says of a rank: torchrun's and DeepSpeed's names first, then Slurm's.
_NAMES = {
    "RANK": ("RANK", "SLURM_PROCID"),
    "WORLD_SIZE": ("WORLD_SIZE", "SLURM_NTASKS"),
    "LOCAL_RANK": ("LOCAL_RANK", "SLURM_LOCALID"),
}


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
    """Return this process's place among the ranks, and set up what torch.distributed reads from the environment.

    Works below `deepspeed`, `torchrun` and `srun`, and alone.

    Raises:
        ConfigError: The launcher's variables are not numbers, or Slurm's lack the address of the first rank.
    """
    import torch

    values = {name: next((os.environ[n] for n in names if n in os.environ), None) for name, names in _NAMES.items()}
    if values["WORLD_SIZE"] is None or values["RANK"] is None:
        values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    try:
        numbers = {name: int(value if value is not None else "0") for name, value in values.items()}
    except ValueError:
        raise ConfigError(f"the launcher's variables are not numbers: {values}", where="environment") from None
    if numbers["WORLD_SIZE"] > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"{numbers['WORLD_SIZE']} ranks, but MASTER_ADDR is not set",
            where="environment",
            remedy="Under srun: export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1).",
        )
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    # Alone, port 0 lets the system choose: two runs on one machine must not meet.
    os.environ.setdefault("MASTER_PORT", "29500" if numbers["WORLD_SIZE"] > 1 else "0")
    if torch.cuda.is_available():
        device = torch.device("cuda", numbers["LOCAL_RANK"] % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # Ranks that each start a thread for every core slow each other down: by a third, seen with two ranks.
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", numbers["WORLD_SIZE"])))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, ranks_here)))
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # Else DeepSpeed looks for a GPU, at length.
    return Runtime(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], device)


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


class StopRequest:
    """Whether SIGTERM or SIGINT has come; the loop asks, saves, and ends."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT into a request to stop; a second one acts as it always does."""
    request = StopRequest()
    previous: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
