"""One process at a time packs into a directory: a lock of the kernel's on a local file, a lease on a remote object.

A lease is renewed while its owner lives. Clocks of machines differ, so nobody reads a time from it: who finds a lease
watches it for as long as a living owner would take to renew it twice, and takes it over if it does not change.
Whoever lost a lease that way (asleep, or cut off) leaves the new owner's alone, and does no harm: the same job writes
the same bytes. For the same reason a local file system that knows no locks (Lustre without `-o flock`, NFS without
lockd) is packed onto without one, with a warning: two jobs there may end in each other's errors, never in a wrong set.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.storage.files import create_exclusively, overwrite, read_whole, remove
from mrm_stream.storage.locks import try_lock
from mrm_stream.storage.paths import AnyPath

RENEWED_S = 15.0
"""Seconds from one renewal of a lease to the next."""
_LEASE_LIMIT = 1 << 10

_logger = logging.getLogger(__name__)


@contextmanager
def locked(lock: AnyPath, directory: AnyPath) -> Iterator[None]:
    """Hold the lock while the block lasts.

    Args:
        lock: The file.
        directory: What it stands for, for the message.

    Raises:
        ShardError: Another process holds it.
        StorageError: It cannot be written.
    """
    if isinstance(lock, Path):
        with _opened(lock) as file:
            _lock_file(file, lock, directory)
            if not _is_still_there(file, lock):
                raise _in_use(directory)
            yield
        return
    owner = secrets.token_hex(8)
    _take(lock, owner, directory)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, owner, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        try:
            if _is_owned(_read(lock), owner):
                remove(lock)
        except StorageError as error:  # what ended the block is what matters; the next one waits the lease out
            _logger.warning("the lease could not be removed: %s", error.what)


def _opened(lock: Path) -> BinaryIO:
    try:
        return lock.open("wb")
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror}", where=lock, remedy="Free some space, or choose another directory."
        ) from error


def _lock_file(file: BinaryIO, lock: Path, directory: AnyPath) -> None:
    try:
        if not try_lock(file):
            _logger.warning("%s: its file system has no locks; see that no other process packs there", directory)
    except BlockingIOError as error:
        raise _in_use(directory) from error
    except OSError as error:
        raise StorageError(
            f"cannot be locked: {error.strerror}", where=lock, remedy="Choose a directory on another disk."
        ) from error


def _is_still_there(file: BinaryIO, lock: Path) -> bool:
    """Whoever ended between our opening the file and locking it has removed it: the next one makes another."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _take(lock: AnyPath, owner: str, directory: AnyPath) -> None:
    if create_exclusively(lock, _lease(owner, 0)):
        return
    seen = _read(lock)
    _logger.info("%s: another process may be packing there; watching its lease for %.0f s", directory, 2 * RENEWED_S)
    deadline = time.monotonic() + 2 * RENEWED_S
    while time.monotonic() < deadline:
        time.sleep(RENEWED_S / 10)
        if _read(lock) != seen:
            raise _in_use(directory)
    remove(lock)
    if not create_exclusively(lock, _lease(owner, 0)):
        raise _in_use(directory)


def _renew(lock: AnyPath, owner: str, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEWED_S):
        count += 1
        try:
            found = _read(lock)
            # One that is gone was removed by somebody who is about to make another: the first to do so has it.
            if not found and create_exclusively(lock, _lease(owner, count)):
                continue
            if not _is_owned(found, owner):
                _logger.warning("%s: another process has taken the lease, and may write there too", lock)
                return
            overwrite(lock, _lease(owner, count))
        except StorageError as error:
            _logger.warning("the lease could not be renewed: %s", error.what)


def _lease(owner: str, count: int) -> bytes:
    return f"{owner} {count}\n".encode("ascii")


def _is_owned(lease: bytes, owner: str) -> bool:
    return lease.split(b" ")[0] == owner.encode("ascii")


def _read(lock: AnyPath) -> bytes:
    try:
        return read_whole(lock, _LEASE_LIMIT)
    except FileNotFoundError:
        return b""


def _in_use(directory: AnyPath) -> ShardError:
    return ShardError("another process is packing into this directory", where=directory, remedy="Wait until it ends.")
