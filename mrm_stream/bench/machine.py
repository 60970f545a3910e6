"""Where a benchmark ran, and what a process of it used."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mrm_stream.errors import MrmStreamError

P = ParamSpec("P")
R = TypeVar("R")


def run_afresh(name: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a new process, and return what it returns.

    Args:
        name: Of the contender, for the error.
        work: What is called.
        args: Its arguments, which are pickled.
        kwargs: The same by name.

    Raises:
        MrmStreamError: The process was killed.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise MrmStreamError(
            f"a process of {name} was killed", remedy="Often memory was short: take fewer workers."
        ) from error


def cpu_seconds() -> float:
    """Return the processor's time of this process and of its children: those that have ended, and those of
    `multiprocessing` that live (on Linux).
    """
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    living = sum(_cpu_seconds_of(child.pid) for child in active_children())
    return living + sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _cpu_seconds_of(pid: int | None) -> float:
    try:
        # The name, in brackets, may hold spaces; times in clock ticks are the 12th and 13th field after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int | None:
    """Return the resident memory, at its peak, of this process or of its largest child; None where unknown."""
    own = status_bytes("VmHWM")
    return None if own is None else max(own, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def status_bytes(field: str) -> int | None:
    """Return a size from Linux's account of this process, such as VmRSS or VmHWM; None on another system."""
    # rusage is no substitute: it counts what the parent had when it started this process.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine() -> dict[str, Any]:
    """Return what is known of this machine, as JSON holds it."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of Python and of these distributions; those that are not installed are skipped."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
