"""Compares local shards with the manifest's SHA-256, each once a process, ahead of need.

A flipped bit in a JPEG mostly leaves a valid JPEG of another image, so damage must be looked for. Comparing all shards
when a run starts would take minutes in which nothing is trained; comparing each before its first sample costs a step
that comes to a new shard 0.06 s per 100 MB. The order tells the next shards, so threads compare them while earlier ones
are trained on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from mrm_stream.errors import ShardError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.publish import sha256_of
from mrm_stream.stream.fetchers import Fetchers

THREADS = 2
"""One hashes 1.8 GB/s where the processor has instructions for SHA-256, and who needs a shard at once helps. Four, on
two cores, take time from the decoder: a first batch then takes 1.16 s, not 0.95."""


class Checksums:
    """Knows which shards of a local set are whole; safe to share between threads.

    Args:
        directory: Of the set.
        entries: Its shards.
    """

    def __init__(self, directory: Path, entries: Sequence[ShardEntry]) -> None:
        self._directory = directory
        self._entries = entries
        self._is_whole = bytearray(len(entries))
        self._ahead: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._threads = Fetchers(THREADS)
        weakref.finalize(self, self._threads.stop)

    def are_all_compared(self) -> bool:
        """Return whether nothing is left to do."""
        return 0 not in self._is_whole

    def hint(self, shards: Iterable[int]) -> None:
        """Begin to compare these, in this order, and cancel what is not among them and has not begun."""
        with self._lock:
            before, self._ahead = self._ahead, {}
            for shard in shards:
                if not self._is_whole[shard] and shard not in self._ahead:
                    self._ahead[shard] = before.pop(shard) if shard in before else self._begin(shard)
        for future in before.values():
            future.cancel()

    def require(self, shard: int) -> None:
        """Return once the shard is known to be whole.

        Raises:
            ShardError: It is not, or cannot be read.
        """
        if self._is_whole[shard]:
            return
        with self._lock:
            future = self._ahead.get(shard)
        if future is not None and not future.cancel():
            future.exception()  # waits for the thread that is at it
        # Nobody had begun, so it is done here, in place of waiting for its turn; or reading failed ahead of need, and
        # is tried again.
        if not self._is_whole[shard]:
            _compare(self._directory, self._entries[shard], self._is_whole, shard)

    def close(self) -> None:
        """Compare nothing more ahead of need."""
        self.hint(())

    def _begin(self, shard: int) -> Future[None]:
        future: Future[None] = Future()
        # The threads refer to what they need, not to this object, which they would keep alive.
        work = partial(_compare, self._directory, self._entries[shard], self._is_whole, shard)
        self._threads.submit(future, work)
        return future


def _compare(directory: Path, entry: ShardEntry, is_whole: bytearray, shard: int) -> None:
    tar = directory / entry.file
    try:
        # Read, not mapped: pages of a map would count as this process's memory.
        found = sha256_of(tar)
    except OSError as error:
        refuse_barred(error, tar)
        raise ShardError(f"cannot be read: {error.strerror}", where=tar) from error
    if found != entry.sha256:
        raise ShardError("the SHA-256 is not the manifest's", where=tar)
    is_whole[shard] = True
