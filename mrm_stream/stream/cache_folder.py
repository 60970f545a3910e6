"""The folder of a cache, which processes of a machine share: what lies there, who may remove it, what makes room.

Three kinds of lock file keep them apart, as the kernel drops a lock when its holder dies, however it dies: `use` of a
shard is held together by those who read it and alone by who removes it; `fetch` of a shard by who checks or fetches it;
`room` by who counts what lies there. No process keeps a list of what the folder holds. The folder itself is the list,
and the files' modification times tell when each was used last, so there is nothing that a killed process could leave
wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrm_stream.errors import StorageError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.access import is_there, matching
from mrm_stream.storage.publish import TEMPORARY_SUFFIX, make_private_folder
from mrm_stream.stream.cache_locks import CacheLocks

WAIT_S = 240.0
"""Seconds to wait for another process that fetches the same shard; less than the loader waits for a batch."""
_ASK_AGAIN_S = 0.05


class CacheFolder:
    """A local folder of bounded size; safe to share between threads.

    Args:
        path: Of the folder, made here.
        limit_bytes: Of all tars in it.
        closed: Set when nothing may wait for a lock any longer.

    Raises:
        StorageError: The folder cannot be made, or written to.
    """

    def __init__(self, path: Path, limit_bytes: int, closed: threading.Event) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._closed = closed
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}
        """Bytes of the shards that this process is fetching."""
        make_private_folder(path)
        with self.naming():
            self.locks = CacheLocks(path)
            self._sweep()

    def make_room(self, entry: ShardEntry, limit_bytes: int) -> int:
        """Count a shard as coming, and evict others until all keep within the limit; return how many were evicted.

        Those used longest ago go first. What any process uses stays, even where the limit is then passed: a cache that
        is too small should be slow, and never stop a run.

        Args:
            entry: The shard; `arrived` ends its being counted twice.
            limit_bytes: Of the tars in the folder, and those on their way there.
        """
        # One process at a time: two that count at once would each think the same room theirs.
        with self.held("room"):
            # By modification time, which we set when a shard is used: most disks are mounted without access times.
            tars = sorted((_last_used(tar), tar) for tar in matching(self.path, "*.tar"))
            with self._lock:
                # Before the lock is released: the next to count must know of it, long before its file is there.
                self._coming[entry.file] = entry.bytes
                held = sum(self._coming.values())
            held += sum(size for (_, size), _ in tars)
            evicted = 0
            for _, tar in tars:
                if held <= limit_bytes:
                    break
                freed = self._evict(tar)
                held -= freed
                evicted += freed > 0
            return evicted

    def arrived(self, entry: ShardEntry) -> None:
        """Count a shard by its file from now on, or not at all if it did not come."""
        with self._lock:
            self._coming.pop(entry.file, None)

    @contextmanager
    def held(self, name: str, kind: str = "lock") -> Iterator[None]:
        """Hold a lock alone for as long as the block lasts; errors as those of `wait`."""
        with self.locks.opened(name, kind) as descriptor:
            self.wait(descriptor, self.locks.path(name, kind))
            yield

    def wait(self, descriptor: int, path: Path, *, shared: bool = False) -> None:
        """Take a lock, within `WAIT_S`: its holder may be stopped, or fetch from storage that hangs.

        Raises:
            StorageError: Nobody released it in time, or the cache was closed.
        """
        deadline = time.monotonic() + WAIT_S
        # Asked again and again: a blocking `flock` could not be ended by closing the cache.
        while True:
            try:
                self.locks.take(descriptor, shared=shared)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"another process has held the lock for {WAIT_S:g} s",
                        where=path,
                        remedy="See whether the storage answers, and whether a process of an earlier run is left.",
                    ) from None
            if self._closed.wait(_ASK_AGAIN_S):
                raise closing(path)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turn what the operating system says against our own files into an error that names the folder."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the cache cannot be used: {error.strerror or type(error).__name__}",
                where=error.filename or self.path,
                remedy="Choose a local folder that you may write to, on a disk with room.",
            ) from error

    def _evict(self, tar: Path) -> int:
        """Remove a shard unless somebody uses it; return the bytes set free."""
        with self.locks.opened(tar.name, "use") as descriptor:
            try:
                self.locks.take(descriptor)
            except BlockingIOError:
                return 0
            # Asked only now, alone with it: another process may have evicted it since it was listed.
            _, size = _last_used(tar)
            tar.unlink(missing_ok=True)
            tar.with_suffix(".idx").unlink(missing_ok=True)
            return size

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun: no living one holds its `fetch` lock."""
        for path in [*matching(self.path, f".*{TEMPORARY_SUFFIX}"), *matching(self.path, "*.idx")]:
            is_index = path.suffix == ".idx"
            name = Path(path.name if is_index else path.name[1:].rsplit(".", 2)[0])
            tar = self.path / (name.with_suffix(".tar") if name.suffix == ".idx" else name)
            if is_index and is_there(tar):
                continue
            with self.locks.opened(tar.name, "fetch") as descriptor, suppress(BlockingIOError):
                self.locks.take(descriptor)
                # Its tar may have come while we took the lock.
                if not is_index or not is_there(tar):
                    path.unlink(missing_ok=True)


def closing(where: object) -> StorageError:
    """Return the error of who waits for a shard that will not come, as the cache was closed or released it."""
    return StorageError("was released, or the cache was closed, while it was on its way", where=where)


def _last_used(path: Path) -> tuple[float, int]:
    """Return when a file was used last, in seconds of the epoch, and its bytes; zeros for one that is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return found.st_mtime, found.st_size
