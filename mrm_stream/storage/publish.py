"""Files that are either whole or not there: written under a temporary name, synced, then renamed or uploaded."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from mrm_stream.errors import StorageError
from mrm_stream.storage.access import may
from mrm_stream.storage.files import read_pieces, upload
from mrm_stream.storage.locks import try_lock
from mrm_stream.storage.paths import AnyPath

FILE_MODE = 0o600
FOLDER_MODE = 0o700
TEMPORARY_SUFFIX = ".tmp"
_STAGING_PREFIX = "mrm-stream-staging-"
_STAGING_LOCK = "lock"
_PIECE = 1 << 20
"""Bytes that are hashed at a time."""


class HashingFile:
    """A file being written, and what has gone into it so far."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append `data`; raise StorageError where the disk takes no more."""
        # No buffer of Python's: what it could not write it would try again when closed, and raise from there.
        remaining = memoryview(data)
        with naming(self._path):
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]
        self._digest.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        """Return the digest of what was written, as hexadecimal digits."""
        return self._digest.hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the operating system says against a write into an error that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or type(error).__name__}",
            where=path,
            remedy="Free some space, or choose a directory that you may write to; then run the same command again.",
        ) from error


@contextmanager
def publishing(path: AnyPath, *, staging: AnyPath | None = None) -> Iterator[HashingFile]:
    """Write a file that appears at `path` only when the block ends without an exception.

    Args:
        path: Where it will be; what lies there is replaced. A remote one is written to a `staging_folder` first, and
            uploaded.
        staging: Folder of a local one's temporary file, on the same file system; by default the folder of `path`.

    Raises:
        StorageError: The disk is full, or the path cannot be written to. Nothing is left behind.
    """
    if not isinstance(path, Path):
        with staging_folder() as folder:
            local = folder / path.name
            with _publishing_locally(local, local.parent) as file:
                yield file
            upload(local, path)
        return
    assert staging is None or isinstance(staging, Path), "a local file is not staged remotely"
    with _publishing_locally(path, staging or path.parent) as file:
        yield file


@contextmanager
def staging_folder() -> Iterator[Path]:
    """Make a folder for patients' data in the machine's temporary folder, and remove it when the block ends.

    Only its owner can look inside. A process that is killed cannot remove its own: the kernel unlocks it then, and the
    next job of the same user on the same machine does; see `sweep_staging`.

    Raises:
        StorageError: It cannot be made.
    """
    _sweep_once(os.getpid())
    with naming(Path(tempfile.gettempdir())):
        folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    """Return a new folder, and the descriptor of the file in it that is locked while its owner lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX))  # made with mode 0700
        path = folder / _STAGING_LOCK
        lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            if not try_lock(lock) or path.exists():  # where there are no locks, nobody can sweep it either
                return folder, lock
        except BlockingIOError:
            pass
        # A sweep that came between these two steps holds the lock, or has removed the folder: another one is made.
        os.close(lock)


def sweep_staging() -> None:
    """Remove what killed processes of this user left in `staging_folder`s of this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_STAGING_PREFIX}*"):
        with suppress(OSError):  # another user's, in use, or just removed
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _STAGING_LOCK, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                if try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@lru_cache(maxsize=1)
def _sweep_once(process: int) -> None:
    """Sweep when a process stages its first file: a cluster's workers are on machines where no job begins."""
    sweep_staging()


@contextmanager
def _publishing_locally(path: Path, staging: Path) -> Iterator[HashingFile]:
    # Two writers of one file, on one machine or two, each have a temporary file of their own.
    temporary = staging / f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    with naming(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        try:
            yield HashingFile(descriptor, path)
            with naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with naming(path):
            temporary.rename(path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_bytes(path: AnyPath, data: bytes, *, staging: AnyPath | None = None) -> str:
    """Publish a small file and return its SHA-256; see `publishing`."""
    with publishing(path, staging=staging) as file:
        file.write(data)
    return file.sha256()


def sync_folder(folder: AnyPath) -> None:
    """Make renames and removals in a local folder survive a power cut."""
    if not isinstance(folder, Path):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    if isinstance(path, Path):
        # In larger pieces than file_digest's: between two, a thread waits for the interpreter's lock.
        piece = memoryview(bytearray(_PIECE))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
        return digest.hexdigest()
    for read in read_pieces(path):
        digest.update(read)
    return digest.hexdigest()


def make_private_folder(path: AnyPath) -> list[Path]:
    """Create `path`, and its parents, so that only its owner can look inside; what is there stays as open as it is.

    Remote storage has no folders to make, and its owner's settings decide who can look.

    Returns:
        The folders that were made, the innermost first.

    Raises:
        StorageError: It cannot be created, or is not a folder.
    """
    if not isinstance(path, Path):
        return []
    with naming(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_folder(folder.parent)  # or a power cut takes the folder, and all that was synced into it
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return missing


def check_folder(path: Path) -> None:
    """Raise what `make_private_folder` would of a folder that cannot be made or written to, and make nothing."""
    with naming(path):
        existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not may(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
