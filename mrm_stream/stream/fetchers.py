"""Threads that wait for storage, which may hang, and the hold on a shard that they fetch."""

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
    """A shard that is used here, or will be."""

    tar: Path
    descriptor: int
    """Of its `use` lock, held in company once `future` is done."""
    future: Future[None]

    def has_failed_transiently(self) -> bool:
        """Return whether storage failed, and might not another time."""
        return self.future.done() and isinstance(self.future.exception(), StorageError)

    def release(self) -> None:
        """Let others remove the shard, once nothing here is fetching it."""
        self.future.cancel()
        self.future.add_done_callback(self._close)

    def _close(self, future: Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            with suppress(OSError):
                os.utime(self.tar)  # what was not used for longest is removed first
        os.close(self.descriptor)


class Fetchers:
    """Threads that do what is submitted, in order. Unlike an executor's, they do not keep the interpreter from exiting.

    Args:
        count: Of threads at most; each is begun when there is work for it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, future: Future[None], work: Callable[[], None]) -> None:
        """Have work done, after what was submitted before, unless the future is cancelled by then."""
        if len(self._threads) < self._count:
            name = f"mrm-stream-fetch-{len(self._threads)}"
            self._threads.append(threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True))
            self._threads[-1].start()
        self._jobs.put((future, work))

    def stop(self) -> None:
        """Have the threads end once they have done what was submitted."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, so long in all."""
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
