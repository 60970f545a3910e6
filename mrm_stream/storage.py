"""Directories here and elsewhere: a local path, or any URL that fsspec understands (s3://, gs://, memory://, ...).

Both are used like a `pathlib.Path`; what differs (bounded reads, retries, time-outs) is in here.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mrm_stream.access import reading, storage_error, told_connection, true_cause
from mrm_stream.errors import StorageError
from mrm_stream.links import checked

if TYPE_CHECKING:
    from mrm_stream.remote import RemotePlace

    Place: TypeAlias = Path | RemotePlace
else:
    Place = Path  # annotations alone use it: fsspec is not imported for data that lie on a local disk

T = TypeVar("T")

ATTEMPTS = 8
FIRST_PAUSE_S = 0.25
"""Before the second attempt; doubled before each later one, so that eight take half a minute of pauses."""
# Of storage that can be set so: a connection that does not answer is given up, then tried again.
_CONNECT_S, _READ_S = 10, 30
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# Final too, by name: botocore is not imported for it.
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "UnknownServiceError"}

_PIECE = 16 << 20
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*)?:/")

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
_SCHEMES = {*_OBJECT_STORES, "file", "local", "http", "https", "hf", "ftp", "sftp", "hdfs", "webhdfs", "webdav", "smb"}
"""What before a colon is taken for a scheme, whatever follows: other names of folders may hold colons."""

_logger = logging.getLogger(__name__)


def local_fault(text: str) -> str | None:
    """Return why a path is none of this machine's as it is written; None where it can be one.

    Taken as they stand, folders named `s3:` or `~` would be made here.

    Example:
        >>> local_fault("runs/first"), local_fault("s3:bucket/runs"), local_fault("~/runs")
        (None, 'is a URL, where a local path is needed', 'begins with ~, which nothing expands here')
    """
    if _is_meant_as_url(text):
        return "is a URL, where a local path is needed"
    return f"begins with {text[0]}, which nothing expands here" if text.startswith(("~", "$")) else None


def _is_meant_as_url(text: str) -> bool:
    scheme, separator, _ = text.partition(":")
    return _SCHEME.match(text) is not None or (bool(separator) and scheme.lower() in _SCHEMES)


def _url_remedy(text: str) -> str:
    """Return what to write in place of a URL whose slashes are missing."""
    scheme, _, rest = text.partition(":")
    scheme, rest = scheme.lower(), rest.lstrip("/\\")
    if scheme not in _SCHEMES - {"file", "local"} or not rest:
        return "Write a URL as s3://bucket/name, and a path in full."
    return f"Did you mean {scheme}://{rest}? A folder of this name is ./{text}."


def place_of(text: str) -> Place:
    """Return a directory or file, given as people type it: a path, or a URL with a scheme.

    Raises:
        StorageError: No fsspec implementation knows the scheme, or the package that serves it is not installed; or it
            is neither a path nor a URL.

    Example:
        >>> place_of("shards/mimic"), place_of("memory://bucket/mimic").name
        (PosixPath('shards/mimic'), 'mimic')
    """
    scheme, separator, rest = text.partition("://")
    if not (scheme and separator):
        if _is_meant_as_url(text):
            raise StorageError("is neither a path nor a URL", where=text, remedy=_url_remedy(text))
        fault = local_fault(text)
        if fault is not None:
            raise StorageError(fault, where=text, remedy="Write the path in full.")
        return Path(text)
    if scheme in ("file", "local"):
        return Path(rest)
    from mrm_stream.remote import RemotePlace

    # A cached listing would not show what another process has written since.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        # Retries are ours: botocore's own would multiply with them. Spelt as botocore itself rewrites them, in place:
        # options that changed would no longer find the file system that was made with them.
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "retries": {"total_max_attempts": 1, "mode": "legacy"},
        }
    try:
        place = RemotePlace(text, **options)
        _ = place.fs
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"cannot be reached: {error}", where=text, remedy="For s3://: pip install 'mrm-stream[s3]'."
        ) from error
    return place


def is_remote(place: Place) -> bool:
    """Return whether a place is reached by URL."""
    return not isinstance(place, Path)


def is_within(place: Place, folder: Place) -> bool:
    """Return whether a place lies in a folder, at any depth; local links are followed."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return folder.resolve() in place.resolve().parents
    return str(place).startswith(f"{str(folder).rstrip('/')}/")


def retrying(act: Callable[[], T], where: Place) -> T:
    """Return what `act` returns, tried again with growing pauses while remote storage fails as it does in passing.

    What is final (no such file, no permission) is raised at once, as is anything of a local disk.

    Raises:
        StorageError: It still failed at the last attempt.
    """
    if isinstance(where, Path):
        return act()
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act()
        except Exception as error:  # every client has its own: botocore, aiohttp, asyncio and requests among them
            failure = true_cause(error)
        # Outside of the handler: raised in it, a cause would become the context of what it has caused.
        if isinstance(failure, _FINAL):
            raise failure
        final = type(failure).__name__ in _FINAL_NAMES
        if attempt == ATTEMPTS or final:
            raise _failed(failure, where, 0 if final else attempt) from failure
        _logger.warning("%s: %s; trying again in %.2g s", where, type(failure).__name__, pause)
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _failed(error: Exception, where: Place, attempts: int) -> StorageError:
    """Return the error of storage that failed so many times, or, 0, of what no other attempt would change."""
    if not attempts:
        return StorageError(
            f"remote storage failed: {_told(error)}", where=where, remedy="Check the URL and your credentials."
        )
    what, remedy = told_connection(error)
    return StorageError(
        f"remote storage failed {attempts} times: {what}{_told(error)}",
        where=where,
        remedy=f"{remedy}Run the same command again when the storage answers: what is done is kept.",
    )


def permitted(act: Callable[[], T], where: Place) -> T:
    """Return what `act` returns; see `retrying`.

    Raises:
        StorageError: As there, or permission is denied.
    """
    try:
        return retrying(act, where)
    except PermissionError as error:
        raise StorageError(
            f"permission denied: {_told(error)}", where=where, remedy="Check your credentials, and what they allow."
        ) from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def read_whole(place: Place, limit: int) -> bytes:
    """Return a file's bytes, one more than `limit` at most: a caller sees from the length that there are too many.

    Raises:
        FileNotFoundError: It is absent.
        OSError: A local file cannot be read.
        StorageError: Remote storage fails for good.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            # Memory is taken for all that is asked for before a byte is read: no more than there is to read.
            return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)

    def fetch() -> bytes:
        # One request for all of it, of known length: ranges past the end of an object are an error on some servers.
        size = int(place.fs.info(place.path)["size"])
        return b"" if size == 0 else _fetch(place, 0, min(size, limit + 1))

    return retrying(fetch, place)


def size_of(place: Place) -> int:
    """Return a file's size in bytes.

    Raises:
        FileNotFoundError: It is absent.
        OSError: The local disk says no.
        StorageError: Remote storage fails for good.
    """
    if isinstance(place, Path):
        return place.stat().st_size
    return retrying(lambda: int(place.fs.info(place.path)["size"]), place)


def read_pieces(place: Place) -> Iterator[bytes]:
    """Yield a remote file's bytes in pieces of at most 16 MiB; each is fetched again where it did not come whole.

    Raises:
        FileNotFoundError: It is absent.
        StorageError: Remote storage fails for good.
    """
    size = size_of(place)
    for start in range(0, size, _PIECE):
        yield retrying(partial(_fetch, place, start, min(size, start + _PIECE)), place)


def _fetch(place: Place, start: int, end: int) -> bytes:
    assert not isinstance(place, Path)
    content: bytes = place.fs.cat_file(place.path, start=start, end=end)
    if len(content) != end - start:
        raise ConnectionError("fewer bytes came than the object has")
    return content


def names_in(folder: Place) -> set[str]:
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


def names_below(root: Place, folder: str) -> Iterator[str]:
    """Yield the path, below the root, of each file in one of its folders at any depth; links to folders are entered.

    Raises:
        SourceError: A link leads out of the root; see `mrm_stream.links`.
        StorageError: One of them may not be listed, links lead round in a circle, or storage fails for good.
    """
    if not isinstance(root, Path):
        yield from (place.relative_to(str(root)).as_posix() for place in (root / folder).rglob("*"))
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


def remove(place: Place) -> None:
    """Remove a file, if it is there; StorageError where remote storage fails for good, or denies it."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        permitted(lambda: place.fs.rm_file(place.path), place)


def remove_empty_folder(folder: Place) -> None:
    """Remove a remote folder, if there are folders there and nothing is in it."""
    if not isinstance(folder, Path):
        with suppress(Exception):  # clients differ in what they raise; an empty folder does no harm
            folder.fs.rmdir(folder.path)


def upload(local: Path, to: Place) -> None:
    """Copy a local file to remote storage, where it appears whole or not at all.

    Raises:
        StorageError: Remote storage fails for good, or may not be written to.
    """
    assert not isinstance(to, Path)
    # Object stores show an object when all of it has come; elsewhere a name of our own is exchanged at the end.
    passing = to.path if to.protocol in _OBJECT_STORES else f"{to.path}.{secrets.token_hex(8)}.part"

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


def create_exclusively(place: Place, content: bytes) -> bool:
    """Create a small remote file unless there is one; return whether it was created.

    By a conditional write where storage has it (S3 does), so that one of two at the same time succeeds.

    Raises:
        StorageError: Remote storage fails for good, or may not be written to.
    """
    assert not isinstance(place, Path)

    def create() -> None:
        _make_folder_of(place)
        place.fs.pipe_file(place.path, content, mode="create")

    try:
        _writing(create, place)
    except FileExistsError:
        # Ours after all, if the answer to an earlier attempt was lost on the way.
        with suppress(FileNotFoundError):
            return read_whole(place, len(content)) == content
        return False
    return True


def overwrite(place: Place, content: bytes) -> None:
    """Write a small remote file, whether there is one or not; StorageError as `create_exclusively`."""
    assert not isinstance(place, Path)
    _writing(lambda: place.fs.pipe_file(place.path, content), place)


def _make_folder_of(place: Place) -> None:
    assert not isinstance(place, Path)
    if place.protocol not in _OBJECT_STORES:
        place.fs.makedirs(place.path.rpartition("/")[0], exist_ok=True)


def _writing(write: Callable[[], None], where: Place) -> None:
    """Retry a write; FileExistsError passes, as one writer asks for it."""
    try:
        retrying(write, where)
    except FileExistsError:
        raise
    except _FINAL as error:
        raise StorageError(
            f"cannot be written: {_told(error)}",
            where=where,
            remedy="Check that the bucket exists and that you may write to it.",
        ) from error
