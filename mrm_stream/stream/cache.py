"""Whole shards of a set that lies elsewhere, fetched ahead of need into a local folder of bounded size.

Several processes of a machine may share the folder. Each shard has two lock files there: `use` is held in company by
those who use the shard, and alone by who removes it; `fetch` is held by who checks or fetches it. The kernel lets go of
a lock when its holder dies. What has arrived, and what was found, is compared with the manifest's SHA-256 before it is
used.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.packing.shard import ShardEntry, index_path
from mrm_stream.publish import FILE_MODE, TEMPORARY_SUFFIX, make_private_folder, publishing, sha256_of
from mrm_stream.storage import Place, read_pieces

FETCHERS = 4
"""Shards fetched at a time; object stores serve one connection at a part of what the line carries."""
ATTEMPTS = 3
"""Times that a shard is fetched whose bytes are not the manifest's."""
WAIT_S = 240.0
"""Seconds to wait for another process that fetches the same shard; less than the loader waits for a batch."""
_PIECE = 16 << 20

_logger = logging.getLogger(__name__)


@dataclass
class CacheCounts:
    """What a cache has done since it was opened, in this process."""

    hits: int = 0
    """Shards found whole in the folder."""
    fetched: int = 0
    refetched: int = 0
    """Shards fetched again, as what was found or had arrived was not what the manifest says."""
    evicted: int = 0
    bytes_fetched: int = 0


class ShardCache:
    """The shards of one packed set, under local names.

    Args:
        directory: Where the set lies: a URL, or a path on a file system that is better read in large pieces.
        folder: Local folder, made here; other processes of the machine may use it too.
        limit_bytes: Of all that lies in the folder. What this process has announced is kept, whatever the limit.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(self, directory: Place, folder: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._folder = folder
        self._limit = limit_bytes
        self.counts = CacheCounts()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._used: dict[str, Future[int]] = {}
        """Shard to the descriptor of its lock, held in company, once it is there."""
        make_private_folder(folder)
        self._sweep()
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="mrm-stream-fetch")

    def expect(self, entries: Sequence[ShardEntry]) -> None:
        """Begin to fetch these shards, in this order, and let go of all others."""
        names = {entry.file for entry in entries}
        with self._lock:
            leaving = [self._used.pop(name) for name in [*self._used] if name not in names]
            for entry in entries:
                if entry.file not in self._used:
                    self._used[entry.file] = self._pool.submit(self._bring, entry)
        for future in leaving:
            if not future.cancel():
                future.add_done_callback(_release)

    def path(self, entry: ShardEntry) -> Path:
        """Return the local tar of a shard, its index beside it; wait for it where it is still to come.

        Raises:
            ShardError: What lies at the source is not what the manifest says.
            StorageError: The source cannot be read, or the folder cannot be written to.
        """
        with self._lock:
            future = self._used.get(entry.file)
            if future is None:
                future = self._used[entry.file] = self._pool.submit(self._bring, entry)
        try:
            future.result()
        except BaseException:
            with self._lock:  # the next one who asks tries again
                if self._used.get(entry.file) is future:
                    del self._used[entry.file]
            raise
        return self._folder / entry.file

    def bring_file(self, name: str, digest: str) -> Path:
        """Return a small file of the set, such as the tokenizer, under its local name.

        Raises:
            ShardError: It is absent, or its SHA-256 is not `digest`.
            StorageError: The source cannot be read, or the folder cannot be written to.
        """
        path = self._folder / name
        with _held(self._lock_path(name, "fetch")):
            if path.exists() and sha256_of(path) == digest:
                return path
            if self._copy(self._directory / name, path) != digest:
                path.unlink()
                raise ShardError(
                    "the SHA-256 is not the manifest's",
                    where=self._directory / name,
                    remedy="The set is damaged where it lies: mrm-stream verify, then mrm-stream repair.",
                )
        return path

    def close(self) -> None:
        """Let go of all shards; they stay in the folder for the next run."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            futures, self._used = list(self._used.values()), {}
        for future in futures:
            if not future.cancel():
                future.add_done_callback(_release)

    def _bring(self, entry: ShardEntry) -> int:
        """Make sure that the shard is there and whole; return the descriptor of its `use` lock, held in company."""
        use = os.open(self._lock_path(entry.file, "use"), os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            _lock_within(use, fcntl.LOCK_SH, entry.file)
            with _held(self._lock_path(entry.file, "fetch")):
                if self._is_whole(entry):
                    self.counts.hits += 1
                else:
                    self._fetch(entry)
                os.utime(self._folder / entry.file)  # what was not used for longest is removed first
        except BaseException:
            os.close(use)
            raise
        return use

    def _is_whole(self, entry: ShardEntry) -> bool:
        tar = self._folder / entry.file
        files = ((index_path(tar), entry.index_sha256), (tar, entry.sha256))
        if not all(path.exists() for path, _ in files):
            return False
        wrong = [path.name for path, digest in files if sha256_of(path) != digest]
        if wrong:
            _logger.warning("%s in the cache is damaged: it is fetched again", wrong[0])
            self.counts.refetched += 1
        return not wrong

    def _fetch(self, entry: ShardEntry) -> None:
        self._make_room(entry.bytes, self._limit)
        try:
            self._copy_whole(entry)
        except StorageError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not self._make_room(entry.bytes, 0):
                raise
            self._copy_whole(entry)
        self.counts.fetched += 1
        self.counts.bytes_fetched += entry.bytes

    def _copy_whole(self, entry: ShardEntry) -> None:
        """Copy index and tar; again where what arrives is not what the manifest says."""
        index = self._folder / index_path(Path(entry.file)).name
        for path, digest in ((index, entry.index_sha256), (self._folder / entry.file, entry.sha256)):
            for attempt in range(1, ATTEMPTS + 1):
                if self._copy(self._directory / path.name, path) == digest:
                    break
                path.unlink()
                if attempt == ATTEMPTS:
                    raise ShardError(
                        f"the SHA-256 is not the manifest's, {ATTEMPTS} times over",
                        where=self._directory / path.name,
                        remedy="The set is damaged where it lies: mrm-stream verify, then mrm-stream repair.",
                    )
                _logger.warning("%s did not arrive as the manifest says: it is fetched again", path.name)
                self.counts.refetched += 1

    def _copy(self, source: Place, path: Path) -> str:
        try:
            with publishing(path) as file:
                for piece in _pieces(source):
                    if self._closed.is_set():
                        raise StorageError("the cache was closed while a shard was on its way", where=source)
                    file.write(piece)
            return file.sha256()
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

    def _make_room(self, size: int, limit: int) -> int:
        """Remove shards that nobody uses, those not used for longest first, until `size` more bytes keep the limit.

        Returns:
            The bytes set free.
        """
        freed = 0
        with _held(self._folder / ".room.lock"):
            there = sorted(self._folder.glob("*.tar"), key=_last_used)
            held = sum(_size(path) for path in there)
            for path in there:
                if held - freed + size <= limit:
                    break
                freed += self._evict(path)
        return freed

    def _evict(self, tar: Path) -> int:
        """Remove a shard unless somebody uses it; return the bytes set free."""
        descriptor = os.open(self._lock_path(tar.name, "use"), os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        else:
            size = _size(tar)
            for path in (tar, index_path(tar)):
                path.unlink(missing_ok=True)
            self.counts.evicted += 1
            return size
        finally:
            os.close(descriptor)

    def _lock_path(self, name: str, kind: str) -> Path:
        return self._folder / f".{name}.{kind}"

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun: no living one holds its `fetch` lock."""
        for path in self._folder.glob(f".*{TEMPORARY_SUFFIX}"):
            tar = Path(path.name[1:].rsplit(".", 2)[0]).with_suffix(".tar")
            descriptor = os.open(self._lock_path(tar.name, "fetch"), os.O_RDWR | os.O_CREAT, FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)


def _pieces(source: Place) -> Iterator[bytes]:
    if not isinstance(source, Path):
        yield from read_pieces(source)
        return
    with source.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _release(future: Future[int]) -> None:
    if not future.cancelled() and future.exception() is None:
        os.close(future.result())


def _lock_within(descriptor: int, kind: int, name: str) -> None:
    """Take a lock, within `WAIT_S`: its holder may be stopped, or fetch from storage that hangs."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"another process has not fetched {name} within {WAIT_S:.0f} s",
                    remedy="See whether the storage answers, and whether a process of an earlier run is left.",
                ) from None
            time.sleep(0.05)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        _lock_within(descriptor, fcntl.LOCK_EX, path.name)
        yield
    finally:
        os.close(descriptor)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
