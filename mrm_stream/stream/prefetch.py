"""The items of an iterator, made ahead of use in a background thread.

While the device computes one step, the next batches are decoded here. One thread suffices: decoding, which is where the
bytes of a map are first read, runs without the interpreter's lock and in threads of its own. And with one thread the
items, the first error and the end come in their order.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from mrm_stream.errors import TrainingError

T = TypeVar("T")
log = logging.getLogger(__name__)

STALLED_AFTER_S = 300.0
"""Seconds to wait for one item. Half of the 10 minutes that the other ranks wait in a collective, so that the rank
whose input has stalled says so before the others time out without knowing why."""
JOIN_S = 10.0
"""Seconds that closing waits for the thread to finish the item at hand."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


class Prefetcher(Iterator[T]):
    """Yields what an iterator yields, up to `ahead` items of which are ready before they are asked for.

    An error of the iterator is raised in its place, after the items before it, and closes the prefetcher. A closed
    prefetcher yields nothing more. It closes itself when it is garbage, and when the interpreter exits.

    Args:
        items: Advanced in the background thread only, which drops it at the end.
        ahead: Items that are made ahead, at least 1; each takes the memory of a batch.
        stalled_after: Seconds to wait for one item before it is an error.
    """

    def __init__(self, items: Iterator[T], ahead: int, *, stalled_after: float = STALLED_AFTER_S) -> None:
        assert ahead >= 1
        self.seconds_waited = 0.0
        """Time that the consumer has spent waiting for items."""
        self._stalled_after = stalled_after
        # A ticket permits the thread to make one item. With a bounded queue of results it would block when that is
        # full, and close() would have to empty it, perhaps more than once, to let the thread see that it should stop.
        # SimpleQueue is safe in destructors, unlike Queue.
        self._tickets: SimpleQueue[None] = SimpleQueue()
        self._results: SimpleQueue[_Item[T] | BaseException | None] = SimpleQueue()
        for _ in range(ahead):
            self._tickets.put(None)
        stop = threading.Event()
        # The thread refers to the queues, not to this object: it would keep it alive, and so itself, for ever.
        thread = threading.Thread(
            target=_run, args=(items, self._tickets, self._results, stop), name="mrm-stream-prefetch", daemon=True
        )
        self.close = weakref.finalize(self, _close, thread, self._tickets, self._results, stop)
        """Stop the thread and wait for it to end. Further calls do nothing."""
        thread.start()

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            TrainingError: None came for `stalled_after` seconds.
            Exception: Whatever the iterator raised.
        """
        if not self.close.alive:
            raise StopIteration
        started = time.perf_counter()
        try:
            result = self._results.get(timeout=self._stalled_after)
        except Empty:
            self.close()
            raise TrainingError(
                f"no batch was ready for {self._stalled_after:.0f} s",
                remedy="See whether the storage that holds the shards still answers.",
            ) from None
        finally:
            self.seconds_waited += time.perf_counter() - started
        if isinstance(result, _Item):
            self._tickets.put(None)
            return result.value
        self.close()
        if result is None:
            raise StopIteration
        raise result


def _run(
    items: Iterator[T],
    tickets: SimpleQueue[None],
    results: SimpleQueue[_Item[T] | BaseException | None],
    stop: threading.Event,
) -> None:
    try:
        tickets.get()
        while not stop.is_set():
            results.put(_Item(next(items)))
            tickets.get()
    except StopIteration:
        pass
    except BaseException as error:  # to be raised where the items are used
        results.put(error)
    finally:
        results.put(None)


def _close(
    thread: threading.Thread,
    tickets: SimpleQueue[None],
    results: SimpleQueue[_Item[T] | BaseException | None],
    stop: threading.Event,
) -> None:
    stop.set()
    tickets.put(None)
    # The last reference may be dropped by garbage collection in the thread itself.
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join(JOIN_S)
        if thread.is_alive():
            log.warning("the thread that reads ahead has not ended within %.0f s of its closing", JOIN_S)
    # Batches made ahead hold the device's memory.
    with suppress(Empty):
        while True:
            results.get_nowait()
    results.put(None)  # for a consumer that waits in another thread
