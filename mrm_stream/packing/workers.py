"""Runs one function over many tasks: in this process, in processes of this machine, or on a Dask cluster.

Only a few tasks for each worker are handed out at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from mrm_stream.errors import ClusterError, ConfigError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 3
"""Tasks handed out for each worker: one at work, and others that wait for it."""
_ADDRESS = re.compile(r"((tcp|tls)://)?(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):\d{1,5}", re.ASCII)
_CONNECT_S = 30
_LOST_S = 120.0
"""A scheduler that cannot be reached for so long is given up."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where the work is done."""

    processes: int = 1
    """Of this machine; 1 works in this process."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://node17:8786, whose workers are used instead."""

    def __post_init__(self) -> None:
        """Check the range and the form."""
        if self.processes < 1:
            raise ConfigError("must be at least 1", where="workers")
        # Now rather than after the half minute that a connection to nowhere takes.
        if self.scheduler is not None and not _ADDRESS.fullmatch(self.scheduler):
            raise ConfigError(
                f"{self.scheduler[:80]!r} is no address of a Dask scheduler",
                where="scheduler",
                remedy="Give the one that `dask scheduler` prints, as tcp://node:8786, tls://node:8786 or node:8786.",
            )


def check_cluster(workers: Workers) -> None:
    """Check that a cluster answers, before a job writes anything.

    Raises:
        ClusterError: Dask is not installed, or the scheduler does not answer or has no worker.
    """
    if workers.scheduler is not None:
        with _cluster(workers.scheduler):
            pass


def run_all(function: Callable[[T], R], tasks: Sequence[T], workers: Workers) -> Iterator[tuple[T, R]]:
    """Yield each task with its result, as they are done.

    On any exception, the function's own included, no local process is left; a cluster's workers end what they are at.

    Args:
        function: Can be pickled, as can its argument and its result.
        tasks: In the order in which they are begun.
        workers: Where.

    Raises:
        ClusterError: A worker was killed (on a cluster: at the same task several times), or the scheduler is lost.
    """
    if workers.scheduler is not None:
        with _cluster(workers.scheduler) as (executor, slots):
            yield from _run_on(executor, slots, function, tasks)
    elif workers.processes == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, function(task)
    else:
        processes = min(workers.processes, len(tasks))
        with _local_pool(processes) as executor:
            yield from _run_on(executor, lambda: processes, function, tasks)


def _run_on(
    executor: Executor, slots: Callable[[], int], function: Callable[[T], R], tasks: Sequence[T]
) -> Iterator[tuple[T, R]]:
    """Run the tasks, handing out as many as there is room for each time; `slots` raises what ends the job."""
    waiting = iter(tasks)
    pending: dict[Future[R], T] = {}
    try:
        while True:
            for task in islice(waiting, max(0 if pending else 1, _AHEAD * slots() - len(pending))):
                pending[executor.submit(function, task)] = task
            if not pending:
                return
            done, _ = wait(pending, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    except (BrokenProcessPool, CancelledError) as error:
        raise ClusterError(
            "a worker process was killed",
            remedy="Often memory was short: take fewer workers. Run the same command again to go on where it stopped.",
        ) from error
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def _local_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: a child forked while another thread holds a lock waits for it for ever.
    context = multiprocessing.get_context("spawn")
    alive_in_worker, alive_here = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(processes, context, initializer=_die_with_parent, initargs=(alive_in_worker,))
    try:
        yield executor
    finally:
        alive_here.close()  # Workers still at a task end at once.
        executor.shutdown(wait=True, cancel_futures=True)
        alive_in_worker.close()


def _die_with_parent(alive: Connection) -> None:
    """Make this worker process end at once when the other end of `alive` closes, however its parent ended.

    The pool's own queues would not tell: sibling workers hold both their ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.

    def watch() -> None:
        try:
            alive.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Yield an executor of a Dask cluster, and what tells how many threads its workers have at the time.

    That raises ClusterError when there has been none for too long.
    """
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(
            "Dask is not installed", where="--scheduler", remedy="pip install 'mrm-stream[cluster]'"
        ) from error
    client = distributed.Client.__new__(distributed.Client)
    try:
        client.__init__(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        # Half-made, it would close itself when collected: in whatever thread, with a traceback.
        with suppress(Exception):
            client.close(timeout=1)
        raise ClusterError(
            f"no Dask scheduler answers within {_CONNECT_S} s ({type(error).__name__})",
            where=address,
            remedy="Start one with `dask scheduler`, and give the address that it prints.",
        ) from error
    try:
        client.wait_for_workers(1, timeout=_CONNECT_S)
        last_seen = time.monotonic()

        def slots() -> int:
            nonlocal last_seen
            # Without a worker the scheduler keeps the tasks, and its clients hear nothing.
            threads = 0
            with suppress(OSError):  # a scheduler that dies while it is asked
                threads = sum(client.nthreads().values()) if client.status == "running" else 0
            if threads:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > _LOST_S:
                raise ClusterError(
                    "the scheduler is lost, or all its workers are", where=address, remedy="Run the same command again."
                )
            return threads

        yield client.get_executor(), slots
    except TimeoutError as error:
        raise ClusterError(
            f"the cluster has had no worker for {_CONNECT_S} s", where=address, remedy=f"dask worker {address}"
        ) from error
    except distributed.KilledWorker as error:
        raise ClusterError(
            "workers of the cluster were killed again and again at the same shard",
            where=address,
            remedy="Often memory was short: start workers with fewer threads or more memory, and run it again.",
        ) from error
    finally:
        client.close(timeout=10)
