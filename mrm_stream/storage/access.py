"""Questions about local files that are answered, or refused, but never answered wrongly.

Where permission is denied or a file server does not answer, `pathlib` and `glob` say that there is no such file:
`Path.exists` returns False or raises by the version of Python, and a pattern matches nothing in a folder that may not
be listed. A job would then pack half a data set, or take a run's folder for an empty one. Here only a file that is
known to be absent is absent; what the file is not to blame for is StorageError, and never told as damage of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from mrm_stream.errors import StorageError

if TYPE_CHECKING:
    from mrm_stream.storage.paths import AnyPath

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_OF_THE_FILE = {
    *_ABSENT,
    *(errno.EISDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EIO),
}
"""What a file itself is to blame for. All else (a permission, a lost mount, too many open files) can be put right
without touching it."""


def is_file(path: AnyPath) -> bool:
    """Return whether there is a file, or a link to one; StorageError where that cannot be told."""
    return stat.S_ISREG(_mode(path)) if isinstance(path, Path) else path.is_file()


def is_folder(path: AnyPath) -> bool:
    """Return whether there is a folder, or a link to one; StorageError where that cannot be told."""
    return stat.S_ISDIR(_mode(path)) if isinstance(path, Path) else path.is_dir()


def is_there(path: AnyPath) -> bool:
    """Return whether there is a file, a folder or what else; StorageError where that cannot be told."""
    return _mode(path) != 0 if isinstance(path, Path) else path.exists()


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return what lies in a folder and has such a name, sorted; nothing where it is absent.

    Raises:
        StorageError: The folder cannot be listed.
    """
    with reading(folder):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
    return sorted(folder / name for name in names if fnmatchcase(name, pattern))


def may(path: Path, what: int) -> bool:
    """Return whether this process may do with a file what `os.access` calls R_OK, W_OK and X_OK."""
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)


def check_readable(path: Path) -> None:
    """Raise StorageError where a file is there and may not be read."""
    try:
        with reading(path):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except FileNotFoundError:
        pass


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system says against reading `path` into StorageError; FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def naming_files() -> Iterator[None]:
    """Turn what the operating system says against a file into StorageError, where nothing nearer to it has."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # a pipe that nobody reads any more, which click knows
            raise
        raise storage_error(error, Path(os.fsdecode(error.filename)), "fails") from error


def refuse_barred(error: OSError, where: AnyPath) -> None:
    """Raise StorageError where the file is not to blame for an error; else return, and the caller tells of damage."""
    if isinstance(error, PermissionError) or error.errno not in {None, *_OF_THE_FILE}:
        raise storage_error(error, where) from error


def storage_error(error: OSError, where: AnyPath, what: str = "cannot be read") -> StorageError:
    """Return an error of the operating system as one that a user can act on."""
    reason = error.strerror or f"{type(error).__name__}: {str(error)[:200]}"
    if isinstance(error, PermissionError):
        if not isinstance(where, Path):
            remedy = "Check your credentials, and what they allow."
        else:
            remedy = f"`ls -ld {_barrier(where)}` shows whose it is, and who may: ask them, or run as a user who may."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        remedy = "Free some space, or choose a directory that you may write to; then run the same command again."
    elif error.errno in _OF_THE_FILE - {errno.EIO}:
        remedy = "Check the path that you gave."
    else:
        remedy = "See whether the disk or the file server answers; then run the same command again."
    return StorageError(f"{what}: {reason[:1].lower()}{reason[1:]}", where=where, remedy=remedy)


def _mode(path: Path) -> int:
    """Return a file's kind and permissions; 0 where there is none."""
    try:
        return path.stat().st_mode
    except ValueError:  # no name that a file can have
        return 0
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise storage_error(error, path) from error


def _barrier(path: Path) -> Path:
    """Return the first folder on the way to a file that may not be passed, or the file."""
    for folder in reversed(path.parents):
        if not may(folder, os.X_OK):
            return folder
    return path
