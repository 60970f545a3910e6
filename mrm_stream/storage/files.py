"""Reads, listings and writes that are the same for local paths and URLs.

Reads are bounded, as a damaged or hostile file must not decide how much memory is taken. Writes to remote storage
arrive whole or not at all, so that a reader never sees half a file. Local files are published by `publish.py`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from mrm_stream.errors import StorageError
from mrm_stream.storage.access import reading, storage_error
from mrm_stream.storage.links import checked
from mrm_stream.storage.paths import OBJECT_STORES, AnyPath
from mrm_stream.storage.retries import FINAL, permitted, retrying, told

_PIECE = 16 << 20


def read_whole(path: AnyPath, limit: int) -> bytes:
    """Return a file's bytes, one more than `limit` at most: a caller sees from the length that there are too many.

    Raises:
        FileNotFoundError: It is absent.
        OSError: A local file cannot be read.
        StorageError: Remote storage fails for good.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            # Memory is taken for all that is asked for before a byte is read: no more than there is to read.
            return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)

    def fetch() -> bytes:
        # One request for all of it, of known length: ranges past the end of an object are an error on some servers.
        size = int(path.fs.info(path.path)["size"])
        return b"" if size == 0 else _fetch(path, 0, min(size, limit + 1))

    return retrying(fetch, path)


def size_of(path: AnyPath) -> int:
    """Return a file's size in bytes.

    Raises:
        FileNotFoundError: It is absent.
        OSError: The local disk says no.
        StorageError: Remote storage fails for good.
    """
    if isinstance(path, Path):
        return path.stat().st_size
    return retrying(lambda: int(path.fs.info(path.path)["size"]), path)


def read_pieces(path: AnyPath) -> Iterator[bytes]:
    """Yield a remote file's bytes in pieces of at most 16 MiB; each is fetched again where it did not come whole.

    Raises:
        FileNotFoundError: It is absent.
        StorageError: Remote storage fails for good.
    """
    size = size_of(path)
    for start in range(0, size, _PIECE):
        yield retrying(partial(_fetch, path, start, min(size, start + _PIECE)), path)


def _fetch(path: AnyPath, start: int, end: int) -> bytes:
    assert not isinstance(path, Path)
    content: bytes = path.fs.cat_file(path.path, start=start, end=end)
    if len(content) != end - start:
        raise ConnectionError("fewer bytes came than the object has")
    return content


def names_in(folder: AnyPath) -> set[str]:
    """Return the names of the files and folders in a folder; none where it is absent.

    Raises:
        NotADirectoryError: It is a file.
        StorageError: It may not be listed, or the disk or remote storage fails for good.
    """
    try:
        return {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except NotADirectoryError:
        raise
    except OSError as error:
        raise storage_error(error, folder) from error


def names_below(root: AnyPath, folder: str) -> Iterator[str]:
    """Yield the path, below the root, of each file in one of its folders at any depth; links to folders are entered.

    Raises:
        SourceError: A link leads out of the root; see `mrm_stream.storage.links`.
        StorageError: One of them may not be listed, links lead round in a circle, or storage fails for good.
    """
    if not isinstance(root, Path):
        yield from (path.relative_to(str(root)).as_posix() for path in (root / folder).rglob("*"))
        return
    checked(root, folder)
    yield from _names_below(root, f"{folder}/", frozenset())


def _names_below(top: Path, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    folder = top / below
    with reading(folder):
        own = folder.stat()
        entries = [(f"{below}{entry.name}", entry.is_dir(), entry.is_symlink()) for entry in os.scandir(folder)]
    identity = own.st_dev, own.st_ino
    if identity in above:
        raise StorageError("a link leads back to a folder that it lies in", where=folder, remedy="Remove the link.")
    for name, is_folder, is_link in entries:
        if is_folder:
            if is_link:  # to /, it would be walked for hours
                checked(top, name)
            yield from _names_below(top, f"{name}/", above | {identity})
        else:
            yield name


def is_within(path: AnyPath, folder: AnyPath) -> bool:
    """Return whether a path lies in a folder, at any depth; local links are followed."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return folder.resolve() in path.resolve().parents
    return str(path).startswith(f"{str(folder).rstrip('/')}/")


def remove(path: AnyPath) -> None:
    """Remove a file, if it is there; StorageError where remote storage fails for good, or denies it."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        permitted(lambda: path.fs.rm_file(path.path), path)


def remove_empty_folder(folder: AnyPath) -> None:
    """Remove a remote folder, if there are folders there and nothing is in it."""
    if not isinstance(folder, Path):
        with suppress(Exception):  # clients differ in what they raise; an empty folder does no harm
            folder.fs.rmdir(folder.path)


def upload(local: Path, to: AnyPath) -> None:
    """Copy a local file to remote storage, where it appears whole or not at all.

    Raises:
        StorageError: Remote storage fails for good, or may not be written to.
    """
    assert not isinstance(to, Path)
    # Object stores show an object when all of it has come; elsewhere a name of our own is exchanged at the end.
    passing = to.path if to.protocol in OBJECT_STORES else f"{to.path}.{secrets.token_hex(8)}.part"

    def put() -> None:
        _make_folder_of(to)
        to.fs.put_file(str(local), passing)
        if int(to.fs.info(passing)["size"]) != local.stat().st_size:
            raise ConnectionError("fewer bytes arrived than were sent")
        if passing != to.path:
            to.fs.mv(passing, to.path)

    try:
        _writing(put, to)
    except BaseException:
        if passing != to.path:  # Nobody would ever look for it again: its name is of this call alone.
            with suppress(Exception):
                to.fs.rm_file(passing)
        raise


def create_exclusively(path: AnyPath, content: bytes) -> bool:
    """Create a small remote file unless there is one; return whether it was created.

    By a conditional write where storage has it (S3 does), so that one of two at the same time succeeds.

    Raises:
        StorageError: Remote storage fails for good, or may not be written to.
    """
    assert not isinstance(path, Path)

    def create() -> None:
        _make_folder_of(path)
        path.fs.pipe_file(path.path, content, mode="create")

    try:
        _writing(create, path)
    except FileExistsError:
        # Ours after all, if the answer to an earlier attempt was lost on the way.
        with suppress(FileNotFoundError):
            return read_whole(path, len(content)) == content
        return False
    return True


def overwrite(path: AnyPath, content: bytes) -> None:
    """Write a small remote file, whether there is one or not; StorageError as `create_exclusively`."""
    assert not isinstance(path, Path)
    _writing(lambda: path.fs.pipe_file(path.path, content), path)


def _make_folder_of(path: AnyPath) -> None:
    assert not isinstance(path, Path)
    if path.protocol not in OBJECT_STORES:
        path.fs.makedirs(path.path.rpartition("/")[0], exist_ok=True)


def _writing(write: Callable[[], None], where: AnyPath) -> None:
    """Retry a write; FileExistsError passes, as one writer asks for it."""
    try:
        retrying(write, where)
    except FileExistsError:
        raise
    except FINAL as error:
        raise StorageError(
            f"cannot be written: {told(error)}",
            where=where,
            remedy="Check that the bucket exists and that you may write to it.",
        ) from error
