"""Reads the image and the report of one record: bounded in size, and never from outside the source's root.

What a `RecordError` says (its `what`) is one of a small fixed set of clauses, so that rejected records can be counted
by reason; the file is in its `where`.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath

from mrm_stream.errors import RecordError, SourceError, StorageError
from mrm_stream.records import REPORT_LIMIT, Record
from mrm_stream.sources.formats import SNIFFED, format_of
from mrm_stream.sources.tables import NOT_SHOWN, is_file_name
from mrm_stream.storage.access import is_file, storage_error
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.links import checked, resolve_below
from mrm_stream.storage.paths import AnyPath
from mrm_stream.text.blank_reports import SAYS_NOTHING, says_something

IMAGE_LIMIT = 256 << 20
"""Bytes in an image's file."""

ZIP_LIMIT = 512 << 20
"""Bytes of a remote zip of reports, which every process holds in memory; MIMIC-CXR's has 135 MB."""

# What zipfile lets through from a damaged archive (found by flipping bits, see the tests).
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)

_OF_THE_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV),
}
"""What a file itself is to blame for. All else (a failing disk, a lost mount, too many open files) may pass: a record
that was skipped for it would be skipped for good."""


def read_image(root: AnyPath, record: Record) -> bytes:
    """Return the image's file as it is, still encoded, at most 256 MiB.

    Raises:
        RecordError: The file is missing, empty, too large, no regular file, or outside the root.
        StorageError: The disk or the network fails, or the machine is short of something.
    """
    return _read_file(root, record.image_path, IMAGE_LIMIT, "image")


def read_mask(root: AnyPath, record: Record) -> bytes:
    """Return the file of `mask_path` as it is, still encoded, at most 256 MiB.

    Raises:
        RecordError: The file is missing, empty, too large, no regular file, or outside the root.
        StorageError: The disk or the network fails, or the machine is short of something.
    """
    assert record.mask_path is not None
    return _read_file(root, record.mask_path, IMAGE_LIMIT, "mask")


def read_report(root: AnyPath, record: Record) -> str:
    """Return the report as it stands, at most 1 MiB; it says something.

    Text that is not UTF-8 is refused rather than read as another encoding: a wrong guess would put noise among the
    tokens that nobody ever sees, a refusal is counted.

    Raises:
        RecordError: The report is missing, empty, too long, not text, or outside the root, or says nothing.
        SourceError: The zip that should hold the reports is none.
        StorageError: As `read_image`.
    """
    if record.report_text is not None:
        where = f"report of {record.key}"
        encoded = record.report_text.encode(errors="surrogatepass")
    elif record.report_path is not None:
        where = str(root / record.report_path)
        archive, is_member, member = record.report_path.partition("::")
        encoded = (
            _read_member(root, archive, member)
            if is_member
            else _read_file(root, record.report_path, REPORT_LIMIT, "report")
        )
    else:
        raise RecordError("the report is missing", where=f"report of {record.key}")
    if len(encoded) > REPORT_LIMIT:
        raise RecordError("the report is too large", where=where)
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecordError("the report is not UTF-8", where=where) from None
    if "\0" in text:
        raise RecordError("the report holds NUL characters", where=where)
    if not text.strip():
        raise RecordError("the report is empty", where=where)
    if not says_something(text):
        raise RecordError(SAYS_NOTHING, where=where)
    return text


def path_to_tell(root: AnyPath, path: str) -> str:
    """Return a path of a table as the quarantine may repeat it.

    Returns:
        The path where it is a file's name, or a file lies there; else a sentence instead, as it may be a report
        that is in the wrong column.
    """
    if is_file_name(path):
        return path
    with suppress(Exception):  # whatever is wrong with it, it is not told
        if isinstance(root, Path):
            return path if is_file(resolve_below(root, path)) else NOT_SHOWN
        _check_below(root, path)
        return path if is_file(root / path) else NOT_SHOWN
    return NOT_SHOWN


def _read_file(root: AnyPath, path: str, limit: int, noun: str) -> bytes:
    """Return a file below the root; `noun` says in errors what it should have been."""
    if not isinstance(root, Path):
        return _checked(_read_object(root, path, limit, noun), limit, noun, f"{root}/{path}")
    where = str(root / path)
    try:
        resolved = resolve_below(root, path)
        with open(resolved, "rb", opener=_open_plainly) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RecordError(f"the {noun} is not a regular file", where=where)
            # The size is checked before memory is taken, and again on what came: a file can grow in between.
            # Room is made for what is read, not for the limit: 256 MiB a file would cost more than reading it.
            content = file.read(status.st_size + 1) if status.st_size <= limit else None
            if content is not None and len(content) > status.st_size:  # it grew, or reports no size
                content += file.read(limit + 1 - len(content))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"the {noun} is missing", where=where) from None
    except (OSError, ValueError) as error:
        _check_of_the_file(error, root, path)
        denied = ": permission denied" if isinstance(error, PermissionError) else ""
        raise RecordError(f"the {noun} cannot be read{denied}", where=where, remedy=str(error)) from error
    return _checked(content, limit, noun, where)


def _check_of_the_file(error: Exception, root: Path, path: str) -> None:
    """Raise StorageError where reading failed for what the file is not to blame for."""
    if isinstance(error, OSError) and error.errno not in {None, *_OF_THE_FILE}:
        raise StorageError(
            f"{path_to_tell(root, path)} cannot be read: {error.strerror}",
            where=root,
            remedy="What is done is kept: run the same command again when it can be read. If it never can be, move the "
            "file away: it is then skipped as missing.",
        ) from None


def _checked(content: bytes | None, limit: int, noun: str, where: str) -> bytes:
    """Return the content of a file, where it is neither too large (None, or longer than the limit) nor empty."""
    if content is None or len(content) > limit:
        raise RecordError(f"the {noun} is too large", where=where, remedy=f"At most {limit:,} bytes are read.")
    if not content:
        raise RecordError(f"the {noun} is empty", where=where)
    return content


def _read_object(root: AnyPath, path: str, limit: int, noun: str) -> bytes:
    """Return a remote file; transient errors of the storage are retried, and then end the job (StorageError)."""
    _check_below(root, path)
    try:
        return read_whole(root / path, limit)
    except (FileNotFoundError, IsADirectoryError):
        raise RecordError(f"the {noun} is missing", where=f"{root}/{path}") from None
    except PermissionError as error:
        what = f"the {noun} cannot be read: permission denied"
        raise RecordError(what, where=f"{root}/{path}", remedy=str(error)) from error


def _check_below(root: AnyPath, path: str) -> None:
    """A URL has no links to follow: its spelling decides."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "://" in path:
        raise RecordError("the path leads out of the root", where=f"{root}, {path}")


def _open_plainly(path: str, flags: int) -> int:
    # The path is resolved: if its end is a link now, someone swapped it. A pipe must not block the packing.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def members_of_zip(root: AnyPath, archive: str) -> Iterable[str]:
    """Return the names of all members of a zip below the root.

    Raises:
        SourceError: It is missing, no zip, or outside the root.
        StorageError: As `read_image`.
    """
    checked(root, archive)
    return _zip_below(root, archive).NameToInfo


def _zip_below(root: AnyPath, archive: str) -> zipfile.ZipFile:
    path: AnyPath
    try:
        if isinstance(root, Path):
            path = resolve_below(root, archive)
        else:
            _check_below(root, archive)
            path = root / archive
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError("the zip of the reports is missing", where=root / archive) from None
    except OSError as error:
        if isinstance(root, Path):
            _check_of_the_file(error, root, archive)
        raise storage_error(error, root / archive, "the zip of the reports cannot be read") from error
    return _open_zip(path, os.getpid())


def _read_member(root: AnyPath, archive: str, member: str) -> bytes:
    where = f"{root / archive}::{member}"
    reports = _zip_below(root, archive)
    try:
        told = reports.getinfo(member)
        # The others unpack as much as they please before a limit is asked for: 900 bytes of bzip2 took 2 GB.
        if told.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RecordError("the report is packed in a way that is not read", where=where)
        with reports.open(told) as file:
            content = file.read(REPORT_LIMIT + 1)
    except KeyError:
        raise RecordError("the report is missing", where=where) from None
    except _ZIP_FAULTS as error:
        if isinstance(root, Path):
            _check_of_the_file(error, root, archive)
        raise RecordError("the report cannot be read", where=where, remedy=str(error)) from error
    if isinstance(root, Path) and len(content) <= REPORT_LIMIT:
        _check_unpacked_copy(root, member, content, where)
    return content


def _check_unpacked_copy(root: Path, member: str, content: bytes, where: str) -> None:
    """Raise SourceError where the zip was unpacked beside itself, and one of the two was edited since."""
    try:
        copy = _read_file(root, member, REPORT_LIMIT, "report")
    except RecordError as error:
        if error.what == "the report is missing":  # as a rule there is none
            return
        if "leads out" in error.what:  # as what it is: --follow-links may help
            raise
        copy = None
    if copy != content:
        raise SourceError(
            "the report in the zip is not the same as its unpacked copy",
            where=where,
            remedy=f"The copy is {root / member}. Move away the zip, or the unpacked reports: what is left is read.",
        )


@lru_cache(maxsize=2)
def _open_zip(path: AnyPath, process: int) -> zipfile.ZipFile:
    """Return an open zip, one a process: forked processes would move each other's position in the file."""
    try:
        if isinstance(path, Path):
            return zipfile.ZipFile(path)
        content = read_whole(path, ZIP_LIMIT)
        if len(content) > ZIP_LIMIT:
            raise SourceError(f"the zip is larger than {ZIP_LIMIT:,} bytes", where=path, remedy="Unpack it there.")
        return zipfile.ZipFile(BytesIO(content))
    except _ZIP_FAULTS as error:
        if isinstance(path, Path):
            _check_of_the_file(error, path.parent, path.name)
        if isinstance(error, PermissionError):
            raise storage_error(error, path, "the zip of the reports cannot be read") from error
        raise _not_a_zip(path, error) from error


def _not_a_zip(path: AnyPath, error: BaseException) -> SourceError:
    with suppress(OSError, StorageError):
        start = read_whole(path, SNIFFED)
        told = None if start.startswith(b"PK") else format_of(start)
        if told is not None:
            return SourceError(f"this is no zip: it is {told.name}", where=path, remedy=told.remedy)
    return SourceError(f"this is no readable zip ({error})", where=path, remedy="Fetch it again.")
