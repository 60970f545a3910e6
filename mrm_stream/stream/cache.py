"""Whole shards of a set that lies elsewhere, fetched ahead of need into a local folder of bounded size.

Several processes of a machine may share the folder. Each shard has two lock files: `use` is held in company by
those who use the shard, and alone by who removes it; `fetch` is held by who checks or fetches it. The kernel lets go of
a lock when its holder dies. What has arrived, and what was found, is compared with the manifest's SHA-256 before it is
used.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mrm_stream.errors import MrmStreamError, ShardError, StorageError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.access import is_there, matching
from mrm_stream.storage.files import read_pieces
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import TEMPORARY_SUFFIX, make_private_folder, publishing, sha256_of
from mrm_stream.stream.cache_locks import CacheLocks
from mrm_stream.stream.fetchers import Fetchers, Use

FETCHERS = 4
"""Shards fetched at a time; object stores serve one connection at a part of what the line carries."""
ATTEMPTS = 3
"""Times that a shard is fetched whose bytes are not the manifest's."""
WAIT_S = 240.0
"""Seconds to wait for another process that fetches the same shard; less than the loader waits for a batch."""
CLOSE_S = 2.0
"""Seconds that closing gives to fetches on their way, so that they remove what they have begun."""
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
    """The shards of one packed set, under local names.

    The tars in the folder, and those that this process has on their way there, take no more than the limit (other
    processes' are counted once they have come: up to four shards each on top); or, where that is more, than what
    the processes that share it have announced and not let go, and what was let go of on its way. So a limit that is too
    small fetches more often, but stops no run. Those used last are kept longest.

    Args:
        directory: Where the set lies: a URL, or a path on a file system that is better read in large pieces.
        folder: Local folder, made here; other processes of the machine may use it too.
        limit_bytes: Of all tars in the folder.

    Raises:
        StorageError: The folder cannot be made, or written to.
    """

    def __init__(self, directory: AnyPath, folder: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._folder = folder
        self._limit = limit_bytes
        self.counts = CacheCounts()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._used: dict[str, Use] = {}
        """By shard, those announced or asked for."""
        self._coming: dict[str, int] = {}
        """Bytes of the shards that this process is fetching."""
        make_private_folder(folder)
        with self._naming():
            self._locks = CacheLocks(folder)
            self._sweep()
        self._fetchers = Fetchers(FETCHERS)
        weakref.finalize(self, _abandon, self._used, self._fetchers)

    def expect(self, entries: Sequence[ShardEntry]) -> None:
        """Begin to fetch these shards, in this order, and let go of all others.

        Raises:
            StorageError: The folder cannot be written to.
        """
        names = {entry.file for entry in entries}
        with self._lock:
            if self._closed.is_set():
                return
            for name in self._used.keys() - names:
                self._used.pop(name).release()
            for entry in entries:
                self._begin(entry)

    def let_go(self, entry: ShardEntry) -> None:
        """Let go of one shard."""
        with self._lock:
            use = self._used.pop(entry.file, None)
            if use is not None:
                use.release()

    def path(self, entry: ShardEntry) -> Path:
        """Return the local tar of a shard, its index beside it; wait for it where it is still to come.

        Storage that failed ahead of need is asked again; a shard found to be damaged at the source is not, until it has
        been let go.

        Raises:
            ShardError: What lies at the source is not what the manifest says.
            StorageError: The source cannot be read, the folder cannot be written to, or the cache was closed.
        """
        with self._lock:
            if self._closed.is_set():
                raise self._closing(entry.file)
            future = self._begin(entry).future
        try:
            error = future.exception()
        except CancelledError:
            raise self._closing(entry.file) from None
        if isinstance(error, MrmStreamError):  # one object raised often would grow by a traceback each time
            raise copy(error) from error
        if error is not None:
            raise error
        return self._folder / entry.file

    def bring_file(self, name: str, digest: str) -> Path:
        """Return a small file of the set, such as the tokenizer, under its local name.

        Raises:
            ShardError: It is absent, or its SHA-256 is not `digest`.
            StorageError: The source cannot be read, or the folder cannot be written to.
        """
        path = self._folder / name
        with self._naming(), self._held(name, "fetch"):
            if not _is_as_told(path, digest):
                self._copy(name, digest, _SMALL_FILE)
        return path

    def close(self) -> None:
        """Let go of all shards; they stay in the folder for the next run."""
        with self._lock:
            self._closed.set()
            _abandon(self._used, self._fetchers)
        self._fetchers.join(CLOSE_S)

    def _begin(self, entry: ShardEntry) -> Use:
        """Return the use of a shard, begun unless it was, or again if storage failed; under our own lock."""
        use = self._used.get(entry.file)
        if use is None:
            with self._naming():
                descriptor = self._locks.open(entry.file, "use")
                # At once, so that what is fetched before it does not push it out; refused while it is being removed.
                with suppress(BlockingIOError):
                    self._locks.take(descriptor, shared=True)
            use = self._used[entry.file] = Use(self._folder / entry.file, descriptor, Future())
        elif use.has_failed_in_passing():
            use.future = Future()
        else:
            return use
        self._fetchers.submit(use.future, partial(self._bring, entry, use.descriptor))
        return use

    def _bring(self, entry: ShardEntry, use: int) -> None:
        """Make sure that the shard is there and whole, and its `use` lock held in company."""
        with self._naming():
            self._wait(use, self._locks.path(entry.file, "use"), shared=True)
            with self._held(entry.file, "fetch"):
                if self._is_whole(entry):
                    with self._lock:
                        self.counts.hits += 1
                else:
                    self._fetch(entry)
                os.utime(self._folder / entry.file)

    def _is_whole(self, entry: ShardEntry) -> bool:
        tar = self._folder / entry.file
        if not is_there(tar):
            return False
        files = ((tar.with_suffix(".idx"), entry.index_sha256), (tar, entry.sha256))
        wrong = [path.name for path, digest in files if not _is_as_told(path, digest)]
        if wrong:
            _logger.warning("%s in the cache is damaged: it is fetched again", wrong[0])
            with self._lock:
                self.counts.refetched += 1
        return not wrong

    def _fetch(self, entry: ShardEntry) -> None:
        try:
            self._make_room(entry, self._limit)
            try:
                self._copy_shard(entry)
            except StorageError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FULL:
                    raise
                self._make_room(entry, 0)
                self._copy_shard(entry)
        finally:
            with self._lock:
                self._coming.pop(entry.file, None)
        with self._lock:
            self.counts.fetched += 1
            self.counts.bytes_fetched += entry.bytes

    def _copy_shard(self, entry: ShardEntry) -> None:
        # The index first: one without its tar tells the next start that a process was killed here.
        index = Path(entry.file).with_suffix(".idx").name
        self._copy(index, entry.index_sha256, entry.bytes)
        try:
            self._copy(entry.file, entry.sha256, entry.bytes)
        except BaseException:
            (self._folder / index).unlink(missing_ok=True)
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
        raise ShardError(
            f"the SHA-256 is not the manifest's, {ATTEMPTS} times over",
            where=self._directory / name,
            remedy="The set is damaged where it lies: mrm-stream verify, then mrm-stream repair.",
        )

    def _copy_once(self, name: str, digest: str, limit: int) -> None:
        source = self._directory / name
        try:
            with publishing(self._folder / name) as file:
                for piece in _pieces(source):
                    if self._closed.is_set():
                        raise self._closing(name)
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

    def _make_room(self, entry: ShardEntry, limit: int) -> None:
        """Remove shards that nobody uses, those not used for longest first, until this one more keeps the limit."""
        with self._held("room"):
            tars = sorted((_seen(tar), tar) for tar in matching(self._folder, "*.tar"))
            with self._lock:
                self._coming[entry.file] = entry.bytes
                held = sum(self._coming.values())
            held += sum(size for (_, size), _ in tars)
            for _, tar in tars:
                if held <= limit:
                    break
                held -= self._evict(tar)

    def _evict(self, tar: Path) -> int:
        """Remove a shard unless somebody uses it; return the bytes set free."""
        with self._locks.opened(tar.name, "use") as descriptor:
            try:
                self._locks.take(descriptor)
            except BlockingIOError:
                return 0
            _, size = _seen(tar)
            tar.unlink(missing_ok=True)
            tar.with_suffix(".idx").unlink(missing_ok=True)
            with self._lock:
                self.counts.evicted += 1
            return size

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun: no living one holds its `fetch` lock."""
        for path in [*matching(self._folder, f".*{TEMPORARY_SUFFIX}"), *matching(self._folder, "*.idx")]:
            is_index = path.suffix == ".idx"
            name = Path(path.name if is_index else path.name[1:].rsplit(".", 2)[0])
            tar = self._folder / (name.with_suffix(".tar") if name.suffix == ".idx" else name)
            if is_index and is_there(tar):
                continue
            with self._locks.opened(tar.name, "fetch") as descriptor, suppress(BlockingIOError):
                self._locks.take(descriptor)
                if not is_index or not is_there(tar):
                    path.unlink(missing_ok=True)

    @contextmanager
    def _held(self, name: str, kind: str = "lock") -> Iterator[None]:
        with self._locks.opened(name, kind) as descriptor:
            self._wait(descriptor, self._locks.path(name, kind))
            yield

    def _wait(self, descriptor: int, path: Path, *, shared: bool = False) -> None:
        """Take a lock, within `WAIT_S`: its holder may be stopped, or fetch from storage that hangs."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._locks.take(descriptor, shared=shared)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"another process has held the lock for {WAIT_S:g} s",
                        where=path,
                        remedy="See whether the storage answers, and whether a process of an earlier run is left.",
                    ) from None
            if self._closed.wait(0.05):
                raise self._closing(path.name)

    def _closing(self, name: str) -> StorageError:
        return StorageError(
            "was let go of, or the cache was closed, while it was on its way", where=self._directory / name
        )

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Turn what the operating system says against our own files into an error that names the folder."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the cache cannot be used: {error.strerror or type(error).__name__}",
                where=error.filename or self._folder,
                remedy="Choose a local folder that you may write to, on a disk with room.",
            ) from error


class _Differs(Exception):
    """What has come is not what the manifest says."""


def _abandon(used: dict[str, Use], fetchers: Fetchers) -> None:
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


def _is_as_told(path: Path, digest: str) -> bool:
    """Return whether a file is there, can be read, and has this SHA-256."""
    try:
        return sha256_of(path) == digest
    except OSError:
        return False


def _seen(path: Path) -> tuple[float, int]:
    """Return when a file was used last, and its bytes; zeros for one that is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return found.st_mtime, found.st_size
