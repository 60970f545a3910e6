"""The locks on what lies in a cache, which processes of one machine share."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from mrm_stream.errors import StorageError
from mrm_stream.storage.locks import try_lock
from mrm_stream.storage.publish import FILE_MODE, make_private_folder

_logger = logging.getLogger(__name__)


class CacheLocks:
    """Lock files, named by what they are for.

    They lie in the cache; or, where its file system has no locks, in the machine's temporary folder. Then a process of
    another machine, if the cache lies on a shared file system, may evict a shard that is in use here. That ends in an
    error that names the file, never in another file's bytes.

    Args:
        folder: The cache.

    Raises:
        OSError: The folder cannot be written to, or neither file system knows locks.
        StorageError: The folder in their place cannot be made, or is another user's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self.opened("room") as descriptor, suppress(BlockingIOError):
            if not try_lock(descriptor, shared=True):
                self._folder = _folder_elsewhere(folder)
        with self.opened("room") as descriptor, suppress(BlockingIOError):
            self.take(descriptor, shared=True)

    def path(self, name: str, kind: str = "lock") -> Path:
        """Return the path of a lock file."""
        return self._folder / f".{name}.{kind}"

    def open(self, name: str, kind: str = "lock") -> int:
        """Return the descriptor of a lock file, made where there is none."""
        return os.open(self.path(name, kind), os.O_RDWR | os.O_CREAT, FILE_MODE)

    @contextmanager
    def opened(self, name: str, kind: str = "lock") -> Iterator[int]:
        """Open a lock file for as long as the block lasts."""
        descriptor = self.open(name, kind)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def take(self, descriptor: int, *, shared: bool = False) -> None:
        """Take a lock, or raise BlockingIOError at once where another open file holds it.

        Args:
            descriptor: Of a lock file.
            shared: Together with others that share it; else alone.
        """
        if not try_lock(descriptor, shared=shared):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(self._folder))


def _folder_elsewhere(folder: Path) -> Path:
    """Return the machine's own folder for the locks of a cache."""
    ours = Path(tempfile.gettempdir()) / f"mrm-stream-locks-{os.getuid()}"
    locks = ours / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    make_private_folder(locks)
    if ours.lstat().st_uid != os.getuid():
        raise StorageError("is another user's", where=ours, remedy="Set TMPDIR to a folder of your own.")
    _warn_once(ours)
    return locks


@lru_cache(maxsize=1)
def _warn_once(locks: Path) -> None:
    """Warn once for all caches of a run, which lie in one folder."""
    _logger.warning(
        "the cache lies on a file system without locks: they are in %s, so nobody on another machine, or with another "
        "TMPDIR, may use this cache at the same time",
        locks,
    )
