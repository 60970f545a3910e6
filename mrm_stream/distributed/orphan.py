"""Ends a rank whose launcher is gone: `mrm-stream train`, torchrun, DeepSpeed's launcher, or the daemon of srun's step.

At once, not after one more checkpoint: the same command, given again, would find the directory in use meanwhile. A rank
that was asked to stop is left to save and to end by itself: DeepSpeed's launcher, asked as well, does not wait for it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

ERROR_FILE = "MRM_STREAM_ERROR_FILE"
"""Environment variable that only `mrm-stream train` sets: the file that takes the first error. Standard input is then a
pipe which nothing is written to, and which closes when the launcher ends."""
_LAUNCHERS = {
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed",
    "deepspeed.pt",
    "ds",
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
    "slurmstepd",
}
_POLL_S = 1.0
_PROC = Path("/proc")


class Process(NamedTuple):
    """A process, which another one with its number is not."""

    number: int
    began: int
    """Clock ticks since the machine started."""


def end_with_launcher() -> None:
    """Make this process end within seconds of its launcher; without one, do nothing.

    A shell is no launcher: what it starts may outlive it. Called once, from the main thread.
    """
    if ERROR_FILE in os.environ:
        threading.Thread(target=_end_with_pipe, daemon=True).start()
        return
    launchers = launchers_above(os.getpid())
    # A program of the user's own may start torch's ranks: torch says so, and watches its child as we do our parent.
    parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if not launchers and parent is None:
        return
    # Python's own handlers wait for the main thread, which may be in a library for as long as a step takes.
    asked, tell = os.pipe()
    os.set_blocking(asked, False)
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        while all(map(_is_alive, launchers)) and parent in (None, os.getppid()):
            time.sleep(_POLL_S)
        time.sleep(_POLL_S)  # A signal to all of them reaches one after the other.
        if not _has_come(asked):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launchers_above(number: int, proc: Path = _PROC) -> list[Process]:
    """Return the launchers among the ancestors of a process, the nearest first; none where there is no `/proc`."""
    found = []
    status = _status(number, proc)
    while status is not None and (parent := status[0]) > 0:
        status = _status(parent, proc)
        if status is not None and _program(parent, proc) in _LAUNCHERS:
            found.append(Process(parent, status[1]))
    return found


def _status(number: int, proc: Path) -> tuple[int, int] | None:
    """Return the parent of a living process, and when it began; see proc_pid_stat(5)."""
    try:
        line = (proc / str(number) / "stat").read_bytes()
    except OSError:
        return None
    state, parent, *rest = line.rpartition(b")")[2].split()  # A name may have spaces and brackets.
    return None if state in b"ZX" else (int(parent), int(rest[17]))


def _program(number: int, proc: Path) -> str:
    """Return the name of the program, script or module that a process runs."""
    try:
        line = (proc / str(number) / "cmdline").read_bytes()
    except OSError:
        return ""
    words = iter(os.fsdecode(line).split("\0"))
    name = Path(next(words)).name
    if not name.startswith("python"):
        return name.split(":")[0]  # `slurmstepd: [JOB.STEP]`
    for word in words:
        if word == "-m":
            return next(words, "")
        if word in ("-W", "-X"):
            next(words, "")
        elif not word.startswith("-"):
            return Path(word).name
    return ""


def _is_alive(process: Process) -> bool:
    status = _status(process.number, _PROC)
    return status is not None and status[1] == process.began


def _has_come(asked: int) -> bool:
    """Return whether a signal has come that asks to stop."""
    try:
        return not {signal.SIGTERM, signal.SIGINT}.isdisjoint(os.read(asked, 1 << 16))
    except BlockingIOError:
        return False


def _end_with_pipe() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
