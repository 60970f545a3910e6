"""Threads that fetch shards, and the use of a shard that keeps it from being evicted.

`concurrent.futures.ThreadPoolExecutor` would do but for one thing: the interpreter waits for its threads when it exits,
and a read from storage that hangs may never return. These threads are daemons, which a process leaves behind.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from mrm_stream.errors import StorageError


@dataclass
class Use:
    """A shard of a cache that this process uses, or will."""

    tar: Path
    descriptor: int
    """Of its `use` lock file: locked, together with all other users, by the time `future` is done."""
    future: Future[None]
    """Done when the shard is there and whole; holds the error where it could not be brought."""

    def has_failed_transiently(self) -> bool:
        """Return whether the storage failed, and might not another time."""
        return self.future.done() and isinstance(self.future.exception(), StorageError)

    def release(self) -> None:
        """Let others evict the shard, once nothing here is fetching it."""
        # A fetch that has begun is not cancelled: its bytes would be wasted, and the shard may be wanted again.
        self.future.cancel()
        self.future.add_done_callback(self._close)

    def _close(self, future: Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            with suppress(OSError):
                os.utime(self.tar)  # what was used longest ago is evicted first
        os.close(self.descriptor)


class Fetchers:
    """A pool of daemon threads that do what is submitted, in that order.

    Args:
        count: Of threads, at most; each is started when there is work for it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, future: Future[None], work: Callable[[], None]) -> None:
        """Do this work after what was submitted before; skip it if the future is cancelled by then."""
        if len(self._threads) < self._count:
            name = f"mrm-stream-fetch-{len(self._threads)}"
            self._threads.append(threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True))
            self._threads[-1].start()
        self._jobs.put((future, work))

    def stop(self) -> None:
        """End the threads once all that was submitted is done."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _work(jobs: SimpleQueue[tuple[Future[None], Callable[[], None]] | None]) -> None:
    while job := jobs.get():
        future, work = job
        if future.set_running_or_notify_cancel():
            try:
                work()
            except BaseException as error:  # to be raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(None)
        del job, future, work  # they would keep alive what has been forgotten
