"""Whole shards of a set that lies elsewhere, fetched ahead of need into a local folder of bounded size.

Why whole shards? A sample is 100 to 300 KB, and each request to an object store takes tens of milliseconds before the
first byte: sample by sample, thousands of requests would have to be under way at once, each paid for. A shard of 100 MB
is read at the full speed of the line, as one file it can be compared with one SHA-256, and its some 500 samples are
all used soon, as the order draws from a few shards at a time (see `order.py`). A shared file system (NFS, Lustre) gains
in the same way: its disks read one long stretch in place of 500 short ones.

Why ahead of need? The order is known, so the loader can tell two steps in advance what it will read. Fetching is then
hidden behind training for as long as the line carries what the steps use. Nothing depends on these hints but speed: a
shard that is asked for without one is fetched while the caller waits.

Why shared between processes? The ranks of a machine read samples of the same shards; each of them fetching its own copy
would take eight times the line and the disk. They agree through locks on files alone (see `cache_folder.py`), without
a server that could die, and a folder left behind is the next run's warm cache.

Nothing of the folder is trusted: what was found there and what has arrived is compared with the manifest's SHA-256
before it is used, so a disk that rots and a line that drops bytes are found here, not in the losses.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mrm_stream.errors import MrmStreamError, ShardError, StorageError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.access import is_there
from mrm_stream.storage.files import read_pieces
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import publishing, sha256_of
from mrm_stream.stream.cache_folder import CacheFolder, closing
from mrm_stream.stream.fetchers import Fetchers, Use

FETCHERS = 4
"""Shards fetched at a time: object stores serve one connection at a fraction of what the line carries."""
ATTEMPTS = 3
"""Times that a shard is fetched whose bytes are not the manifest's."""
CLOSE_S = 2.0
"""Seconds that closing gives to fetches under way, so that they remove what they have begun."""
_PIECE = 16 << 20
_SMALL_FILE = 256 << 20
"""Bytes that a tokenizer may have."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

_logger = logging.getLogger(__name__)


@dataclass
class CacheCounts:
    """What a cache has done since it was opened, in this process."""

    hits: int = 0
    """Shards found whole in the folder."""
    fetched: int = 0
    refetched: int = 0
    """Times that a shard or a file of it was fetched again: what was found, or had come, was not the manifest's."""
    evicted: int = 0
    bytes_fetched: int = 0


class ShardCache:
    """The shards of one packed set, under local paths; safe to share between threads.

    A shard is in use here from its prefetch hint, or its first being asked for, until a hint that does not name it or
    `release`. What any process uses is never evicted; of the rest, what was used longest ago goes first.

    The tars in the folder, and those that this process has on their way there, take no more than the limit (other
    processes' are counted once they have come: up to four shards each on top); or, where that is more, what the
    processes that share it use at a time. A limit that is too small fetches more often, and stops no run.

    Args:
        directory: Where the set lies: a URL, or a path on a file system that is better read in large pieces.
        folder: Local folder, made here; other processes of the machine may use it too.
        limit_bytes: Of all tars in the folder.

    Raises:
        StorageError: The folder cannot be made, or written to.
    """

    def __init__(self, directory: AnyPath, folder: Path, limit_bytes: int) -> None:
        self._directory = directory
        self.counts = CacheCounts()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._folder = CacheFolder(folder, limit_bytes, self._closed)
        self._used: dict[str, Use] = {}
        """By shard, those in use here."""
        self._fetchers = Fetchers(FETCHERS)
        weakref.finalize(self, _abandon, self._used, self._fetchers)

    def hint(self, entries: Sequence[ShardEntry]) -> None:
        """Begin to fetch these shards, in this order, and release all others.

        Raises:
            StorageError: The folder cannot be written to.
        """
        names = {entry.file for entry in entries}
        with self._lock:
            if self._closed.is_set():
                return
            # Before the new ones are begun, which may need the room.
            for name in self._used.keys() - names:
                self._used.pop(name).release()
            for entry in entries:
                self._begin(entry)

    def release(self, entry: ShardEntry) -> None:
        """Let one shard be evicted."""
        with self._lock:
            use = self._used.pop(entry.file, None)
            if use is not None:
                use.release()

    def path(self, entry: ShardEntry) -> Path:
        """Return the local tar of a shard, its index beside it; wait for it where it is still to come.

        Storage that failed ahead of need is asked again; a shard found to be damaged at the source is not, until it
        was released.

        Raises:
            ShardError: What lies at the source is not what the manifest says.
            StorageError: The source cannot be read, the folder cannot be written to, or the cache was closed.
        """
        with self._lock:
            if self._closed.is_set():
                raise self._closing(entry.file)
            future = self._begin(entry).future
        # Without the lock: minutes may pass here, in which other threads read shards that are there.
        try:
            error = future.exception()
        except CancelledError:
            raise self._closing(entry.file) from None
        if isinstance(error, MrmStreamError):  # one object raised often would grow by a traceback each time
            raise copy(error) from error
        if error is not None:
            raise error
        return self._folder.path / entry.file

    def bring_file(self, name: str, digest: str) -> Path:
        """Return a small file of the set, such as the tokenizer, under its local path.

        Raises:
            ShardError: It is absent, or its SHA-256 is not `digest`.
            StorageError: The source cannot be read, or the folder cannot be written to.
        """
        path = self._folder.path / name
        # Without a `use` lock: only tars are evicted.
        with self._folder.naming(), self._folder.held(name, "fetch"):
            if not _has_digest(path, digest):
                self._copy(name, digest, _SMALL_FILE)
        return path

    def close(self) -> None:
        """Release all shards; they stay in the folder for the next run."""
        with self._lock:
            # Fetches look at it between two pieces, and waits for a lock end with it.
            self._closed.set()
            _abandon(self._used, self._fetchers)
        self._fetchers.join(CLOSE_S)

    def _begin(self, entry: ShardEntry) -> Use:
        """Return the use of a shard, begun unless it was, or again if storage failed; under our own lock."""
        use = self._used.get(entry.file)
        if use is None:
            with self._folder.naming():
                descriptor = self._folder.locks.open(entry.file, "use")
                # Taken here, not by the thread that fetches it: a shard that lies in the folder already must not be
                # evicted by those that are fetched before its turn comes. Refused only while another process evicts
                # it; then that thread waits.
                with suppress(BlockingIOError):
                    self._folder.locks.take(descriptor, shared=True)
            use = self._used[entry.file] = Use(self._folder.path / entry.file, descriptor, Future())
        elif use.has_failed_transiently():
            use.future = Future()
        else:
            return use
        self._fetchers.submit(use.future, partial(self._bring, entry, use.descriptor))
        return use

    def _bring(self, entry: ShardEntry, use: int) -> None:
        """Make sure that the shard is there and whole, and its `use` lock held."""
        with self._folder.naming():
            self._folder.wait(use, self._folder.locks.path(entry.file, "use"), shared=True)
            # One process fetches, the others wait for it here and then find the shard whole.
            with self._folder.held(entry.file, "fetch"):
                if self._is_whole(entry):
                    with self._lock:
                        self.counts.hits += 1
                else:
                    self._fetch(entry)
                # Used now, whether found or fetched: others take the oldest for the one to evict.
                os.utime(self._folder.path / entry.file)

    def _is_whole(self, entry: ShardEntry) -> bool:
        tar = self._folder.path / entry.file
        if not is_there(tar):
            return False
        # Read in full, at the speed of the disk: the folder may have lain there for months, open to whoever can write.
        files = ((tar.with_suffix(".idx"), entry.index_sha256), (tar, entry.sha256))
        wrong = [path.name for path, digest in files if not _has_digest(path, digest)]
        if wrong:
            _logger.warning("%s in the cache is damaged: it is fetched again", wrong[0])
            with self._lock:
                self.counts.refetched += 1
        return not wrong

    def _fetch(self, entry: ShardEntry) -> None:
        try:
            self._make_room(entry, self._folder.limit_bytes)
            try:
                self._copy_shard(entry)
            except StorageError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FULL:
                    raise
                # The disk holds less than the limit says, as others fill it too: do with what is in use.
                self._make_room(entry, 0)
                self._copy_shard(entry)
        finally:
            # Also where it failed: what never comes must not take room for ever.
            self._folder.arrived(entry)
        with self._lock:
            self.counts.fetched += 1
            self.counts.bytes_fetched += entry.bytes

    def _make_room(self, entry: ShardEntry, limit_bytes: int) -> None:
        evicted = self._folder.make_room(entry, limit_bytes)
        with self._lock:
            self.counts.evicted += evicted

    def _copy_shard(self, entry: ShardEntry) -> None:
        # The index first: one without its tar tells the next start that a process was killed here.
        index = Path(entry.file).with_suffix(".idx").name
        self._copy(index, entry.index_sha256, entry.bytes)
        try:
            self._copy(entry.file, entry.sha256, entry.bytes)
        except BaseException:
            (self._folder.path / index).unlink(missing_ok=True)
            raise

    def _copy(self, name: str, digest: str, limit: int) -> None:
        """Copy a file of at most `limit` bytes here; again where what comes is not what the manifest says."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._copy_once(name, digest, limit)
                return
            except _Differs:
                if attempt < ATTEMPTS:
                    _logger.warning("%s did not arrive as the manifest says: it is fetched again", name)
                    with self._lock:
                        self.counts.refetched += 1
        # A line that drops bytes does not drop the same ones each time.
        raise ShardError(
            f"the SHA-256 is not the manifest's, {ATTEMPTS} times over",
            where=self._directory / name,
            remedy="The set is damaged where it lies: mrm-stream verify, then mrm-stream repair.",
        )

    def _copy_once(self, name: str, digest: str, limit: int) -> None:
        source = self._directory / name
        try:
            with publishing(self._folder.path / name) as file:
                for piece in _pieces(source):
                    if self._closed.is_set():
                        raise self._closing(name)
                    # A file that has grown, or was never ours, must not fill the disk before its digest is known.
                    if file.size + len(piece) > limit:
                        raise _Differs
                    file.write(piece)
                if file.sha256() != digest:
                    raise _Differs
        except FileNotFoundError as error:
            raise ShardError(
                "there is no such file", where=source, remedy="Copy the set there again from where it came."
            ) from error
        except OSError as error:
            raise StorageError(
                f"cannot be read: {error.strerror or type(error).__name__}",
                where=source,
                remedy="See whether the file system answers; then run the same command again.",
            ) from error

    def _closing(self, name: str) -> StorageError:
        return closing(self._directory / name)


class _Differs(Exception):
    """What has come is not what the manifest says."""


def _abandon(used: dict[str, Use], fetchers: Fetchers) -> None:
    # Apart from the cache, whose finalizer this is: a method would keep alive what it should see die.
    while used:
        used.popitem()[1].release()
    fetchers.stop()


def _pieces(source: AnyPath) -> Iterator[bytes]:
    if not isinstance(source, Path):
        yield from read_pieces(source)
        return
    with source.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _has_digest(path: Path, digest: str) -> bool:
    """Return whether a file is there, can be read, and has this SHA-256."""
    try:
        return sha256_of(path) == digest
    except OSError:
        return False
