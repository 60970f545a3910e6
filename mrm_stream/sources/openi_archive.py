"""Reads Open-I's archive of reports, which may be damaged or hostile, in memory and within bounds."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from io import BytesIO

from mrm_stream.errors import SourceError
from mrm_stream.records import REPORT_LIMIT
from mrm_stream.sources.formats import GZIP, SNIFFED, format_of
from mrm_stream.storage.access import storage_error
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.paths import AnyPath

PACKED_LIMIT = 64 << 20
"""Bytes of the archive; the published one has 1.1 MB."""

UNPACKED_LIMIT = 256 << 20
"""Bytes of the archive when it is unpacked: a small one can unpack to terabytes."""

# What tarfile lets through from damaged archives; a chain of long names recurses.
_TAR_FAULTS = (tarfile.TarError, EOFError, OSError, ValueError, RecursionError)


def read_archive(path: AnyPath, folder: str) -> dict[str, bytes]:
    """Return the XML files of a folder in a tar archive, by their path in it; other members are skipped.

    Args:
        path: Compressed with gzip, or not, whatever its name says.
        folder: Of the archive; files in folders below it are skipped.

    Raises:
        SourceError: The archive is too large or damaged, holds a path that leads out of it, a report that is too
            large, or one path twice.
    """
    wanted = re.compile(rf"(?:\./)?({re.escape(folder)}/[A-Za-z0-9_-]+\.xml)")
    unpacked = _unpack(path)
    files: dict[str, bytes] = {}
    try:
        # The mode excludes any other compression within: the bytes above are all that is read.
        with tarfile.open(fileobj=BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                if ".." in member.name.split("/") or member.name.startswith("/"):
                    raise SourceError("a path leads out of the archive", where=path, remedy="Fetch it again.")
                match = wanted.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                where = f"{path}, {match[1]}"
                if member.size > REPORT_LIMIT:
                    raise SourceError(
                        "the report is too large", where=where, remedy=f"At most {REPORT_LIMIT:,} bytes are read."
                    )
                if match[1] in files:
                    raise SourceError("the archive holds this file twice", where=where, remedy="Fetch it again.")
                content = archive.extractfile(member)
                assert content is not None, "of a regular file"
                files[match[1]] = content.read()
                if len(files[match[1]]) != member.size:
                    raise EOFError("a member is cut short")
    except _TAR_FAULTS as error:
        raise _damaged(path, error) from error
    if not files:
        raise SourceError(f"the archive holds no {folder}/*.xml", where=path, remedy="Fetch it again.")
    return files


def _unpack(path: AnyPath) -> bytes:
    try:
        packed = read_whole(path, PACKED_LIMIT)
    except OSError as error:
        raise storage_error(error, path, "the archive cannot be read") from error
    if len(packed) > PACKED_LIMIT:
        raise SourceError(f"the archive is larger than {PACKED_LIMIT:,} bytes", where=path, remedy="Unpack it there.")
    try:
        if not packed.startswith(GZIP):  # a browser may have unpacked it, and kept its name
            told = format_of(packed[:SNIFFED])
            if told is not None:
                raise SourceError(f"this is no archive: it is {told.name}", where=path, remedy=told.remedy)
            return packed
        with gzip.GzipFile(fileobj=BytesIO(packed)) as file:
            unpacked = file.read(UNPACKED_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    if len(unpacked) > UNPACKED_LIMIT:
        raise SourceError(
            f"the archive unpacks to more than {UNPACKED_LIMIT:,} bytes", where=path, remedy="Fetch it again."
        )
    return unpacked


def _damaged(path: AnyPath, error: BaseException) -> SourceError:
    return SourceError(
        f"the archive cannot be read ({type(error).__name__})",
        where=path,
        remedy="It may be damaged or cut short: fetch it again.",
    )
