"""Reads CSV tables that may be damaged or hostile, and names records after the files that the tables list."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO, TextIOWrapper
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TextIO, cast

from mrm_stream.errors import SourceError
from mrm_stream.sources.formats import GZIP, SNIFFED, format_of
from mrm_stream.storage.access import is_file, is_there, refuse_barred
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.links import checked
from mrm_stream.storage.paths import AnyPath, is_remote

CELL_LIMIT = 1 << 20
"""Characters in one cell; the longest reports have some ten thousand."""

LINE_LIMIT = 4 << 20
"""Characters in one line: a compressed table can unpack to a line that fills the memory."""

BLANK_LIMIT = 100_000
"""Blank lines of a table: compressed, millions of them take no room, and minutes to skip."""

TABLE_LIMIT = 2 << 30
"""Bytes of a remote table's file."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What a record's key must match as a whole."""

NOT_SHOWN = "(not shown: it is no plain path)"
"""Stands for a cell that could be a report in the wrong column."""

_ENCODING = "utf-8-sig"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_PIECE = 1 << 20
_UNREADABLE = (OSError, EOFError, zlib.error)

_PLAIN = re.compile(r"[\w./+:()-]{1,200}", re.ASCII)
_IMAGE = re.compile(r"[^\n]+\.(?:jpe?g|png|dcm|dicom|tiff?|bmp|gif|gz)", re.IGNORECASE)
"""A name that is a file's, spaces or not: no report ends so."""


def find_table(root: AnyPath, name: str) -> AnyPath:
    """Return the table `name` (`*.csv`) below the root, or its gzip-compressed form.

    Raises:
        SourceError: The root has neither; or both, as `find_optional_table` says.
    """
    found = find_optional_table(root, name)
    if found is None:
        folder, is_in_folder, _ = name.partition("/")
        held = f"{folder}/ with this table in it" if is_in_folder else "this table"
        raise SourceError(
            f"there is neither {name}.gz nor {name}",
            where=root,
            remedy=f"Give the directory that holds {held} as root.",
        )
    return found


def find_optional_table(root: AnyPath, name: str) -> AnyPath | None:
    """Return the table `name` (`*.csv`) below the root, or its gzip-compressed form, or None.

    Raises:
        SourceError: Both are there and differ, as when one was edited: which one is meant cannot be known; or one is a
            link out of the root.
    """
    found = [checked(root, table) for table in (f"{name}.gz", name) if _is_table(root / table)]
    if len(found) == 2:
        line = _first_difference(*found)
        if line is not None:
            raise SourceError(
                f"{found[0].name} and {found[1].name} are both there, and differ from line {line:,} on",
                where=root,
                remedy="Move the one away that is not to be read.",
            )
    return found[0] if found else None


def read_rows(path: AnyPath, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each row of a UTF-8 table as (line it starts on, cells of `columns` in that order).

    Lines count from 1, the header's; blank lines are skipped; space around the header's names is ignored.

    Args:
        path: Comma-separated, quoted as in RFC 4180; compressed with gzip or not, whatever its name says.
        columns: Names that the header must have once each; it may have others.

    Raises:
        SourceError: The table is absent or cannot be read, lacks a column (the nearest present one is named), or has a
            row of another length than the header, or a cell or line over the limits; it is separated by something
            else than commas, or is no table at all.
    """
    # Process-wide, as the csv module has it: without it a limit that another library raised would stand.
    csv.field_size_limit(CELL_LIMIT)
    line = 1
    try:
        with _open_bytes(path) as unpacked, TextIOWrapper(unpacked, _ENCODING, "surrogateescape", newline="") as file:
            lines = _bounded_lines(file, path)
            first = next(lines, "")
            _check_commas(first, columns, path)
            reader = csv.reader(chain([first], lines), strict=True)
            header = [name.strip() for name in next(reader, [])]
            positions = [_find_column(header, column, columns, path) for column in columns]
            line, blank = reader.line_num + 1, 0
            for cells in reader:
                if len(cells) == len(header):
                    yield line, tuple([cells[position] for position in positions])
                elif cells:
                    raise SourceError(
                        f"the row has {len(cells)} cells, the header has {len(header)}",
                        where=f"{path}, line {line}",
                        remedy="Quote cells that hold commas, quotes or line ends.",
                    )
                else:
                    blank += 1
                    if blank > BLANK_LIMIT:
                        raise SourceError("the table has too many blank lines", where=f"{path}, line {line}")
                line = reader.line_num + 1
    except csv.Error as error:
        raise _bad_row(error, f"{path}, line {line}") from None
    except FileNotFoundError:
        raise SourceError("the table does not exist", where=path, remedy="Check the root that you gave.") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def claim(lines: dict[str, int], key: str, line: int, path: AnyPath) -> None:
    """Note that `key` stands on `line`; `lines` maps the keys seen so far to theirs.

    Raises:
        SourceError: The key was seen before; both lines are named.
    """
    first = lines.setdefault(key, line)
    if first != line:
        raise SourceError(
            f"key appears twice: {quoted(key)} on lines {first} and {line}",
            where=path,
            remedy="Remove one of the rows.",
        )


def quoted(cell: str) -> str:
    """Return a cell as a message may repeat it: a path or a name, never what could be a report in the wrong column.

    Example:
        >>> quoted("files/p10/a.jpg"), quoted("The lungs are clear.")
        ("'files/p10/a.jpg'", '(not shown: it is no plain path)')
    """
    return repr(cell) if is_plain(cell) else NOT_SHOWN


def is_plain(cell: str) -> bool:
    """Return whether a cell can be a path or a name, and no sentence."""
    return _PLAIN.fullmatch(cell) is not None


def is_file_name(path: str) -> bool:
    """Return whether a path can be repeated: it is plain, or ends as the name of an image does."""
    return is_plain(path) or _IMAGE.fullmatch(path) is not None


def keys_from_paths(paths: Sequence[str]) -> list[str]:
    """Return a key for each of these distinct paths: the file's stem where that is a valid key and no other has it.

    Else it is what can be kept of the stem and 64 bits of the path's SHA-256; of a stem that is no file's name, as it
    may be a report in the wrong column, nothing is kept. A key depends on its own path and on
    whether another file has the same stem, never on the order of the rows. (32 bits would not do: in sets that call
    their 200,000 files `view1_frontal.jpg`, some five pairs would clash.)

    Example:
        >>> keys_from_paths(["images/a-1.png", "images/b 2.png", "The lungs are clear."])
        ['a-1', 'b_2-57e05962d644279a', 'image-2513d9b9b79bd0c0']
    """
    stems = [PurePosixPath(path).stem for path in paths]
    uses = Counter(stems)
    return [
        stem if uses[stem] == 1 and KEY_PATTERN.fullmatch(stem) else _hashed_key(stem, path)
        for stem, path in zip(stems, paths, strict=True)
    ]


def _hashed_key(stem: str, path: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:63] if is_plain(stem) or is_file_name(path) else "image"
    return f"{kept}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _open_bytes(path: AnyPath) -> BinaryIO:
    """Return a table's file, unpacked where its content, whatever its name, is compressed with gzip."""
    # A remote table is fetched whole, with retries, rather than read in pieces over minutes.
    _is_table(path)
    file: BinaryIO = BytesIO(_read_remote(path)) if is_remote(path) else path.open("rb")
    if _start_of(file).startswith(GZIP):
        file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    try:
        told = format_of(_start_of(file))
    except BaseException:
        file.close()
        raise
    if told is not None:
        file.close()
        raise SourceError(f"this is no CSV table: it is {told.name}", where=path, remedy=told.remedy)
    return file


def _is_table(path: AnyPath) -> bool:
    """Return whether there is a file; SourceError where there is something else: a pipe would never end."""
    if is_file(path):
        return True
    if isinstance(path, Path) and is_there(path):
        raise SourceError("the table is not a regular file", where=path, remedy="Give a directory of plain files.")
    return False


def _start_of(file: BinaryIO) -> bytes:
    start = file.read(SNIFFED)
    file.seek(0)
    return start


def _first_difference(one: AnyPath, other: AnyPath) -> int | None:
    """Return the line from which on two tables differ, or None where they are equal, byte by byte."""
    line = 1
    for a, b in zip_longest(_pieces(one), _pieces(other), fillvalue=b""):
        if a != b:
            equal = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return line + a.count(b"\n", 0, equal)
        line += a.count(b"\n")
    return None


def _pieces(path: AnyPath) -> Iterator[bytes]:
    """Yield a table's unpacked bytes, 1 MiB at a time."""
    try:
        with _open_bytes(path) as file:
            while piece := file.read(_PIECE):
                yield piece
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: AnyPath, error: Exception) -> SourceError:
    if isinstance(error, OSError):
        refuse_barred(error, path)
    return SourceError(
        f"the table cannot be read ({error})", where=path, remedy="It may be damaged or cut short: fetch it again."
    )


def _bad_row(error: csv.Error, where: str) -> SourceError:
    """Return what the csv module found wrong in the row that begins there."""
    if "field larger than" in str(error):
        return SourceError(
            f"a cell is longer than {CELL_LIMIT:,} characters",
            where=where,
            remedy="A quote that is not closed takes the rows after it into its cell: correct the quotes of this row.",
        )
    if "unexpected end of data" in str(error):
        return SourceError(
            "a quote of this row is not closed before the table ends",
            where=where,
            remedy="Close it; or the table was cut short: fetch it again.",
        )
    return SourceError(
        f"the row is not written as in a CSV table ({error})",
        where=where,
        remedy="Cells with commas, quotes or line ends stand in quotes, and quotes in them are doubled.",
    )


def _read_remote(path: AnyPath) -> bytes:
    content = read_whole(path, TABLE_LIMIT)
    if len(content) > TABLE_LIMIT:
        raise SourceError(f"the table is larger than {TABLE_LIMIT:,} bytes", where=path)
    return content


def _bounded_lines(file: TextIO, path: AnyPath) -> Iterator[str]:
    number = 1
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise SourceError(
                f"the line is longer than {LINE_LIMIT:,} characters",
                where=f"{path}, line {number}",
                remedy="This is no table of radiographs: check the file.",
            )
        if not line.isascii() and _is_not_utf8(line):
            raise SourceError("the table is not UTF-8", where=f"{path}, line {number}", remedy="Save it as UTF-8.")
        yield line
        number += 1


def _is_not_utf8(line: str) -> bool:
    """Return whether bytes that are not UTF-8 were read as lone surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_commas(header: str, columns: Sequence[str], path: AnyPath) -> None:
    """Raise SourceError where the header's line has the columns, were it not separated by commas."""
    for separator, name in _SEPARATORS.items():
        if separator in header and set(columns) <= {cell.strip(' "\r\n') for cell in header.split(separator)}:
            raise SourceError(
                f"the table is separated by {name}",
                where=f"{path}, line 1",
                remedy="Save it with commas, and points in its numbers.",
            )
    if header.lower().startswith("sep="):
        raise SourceError(
            "the table begins with a line that only spreadsheets know",
            where=f"{path}, line 1",
            remedy="Remove this line, and separate the cells by commas.",
        )


def _find_column(header: Sequence[str], column: str, columns: Sequence[str], path: AnyPath) -> int:
    """Return the position of a column in the header; `columns` are all that are needed, for the message."""
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise SourceError(f"column {column!r} appears twice", where=path, remedy="Remove or rename one of them.")
    by_lower_case = {name.lower(): name for name in header}
    # Only a name much like the one wanted is repeated: a table without a header begins with a patient's report.
    nearest = difflib.get_close_matches(column.lower(), by_lower_case, n=1, cutoff=0.6)
    hint = f" The nearest one present is {by_lower_case[nearest[0]]!r}." if nearest else ""
    raise SourceError(
        f"column {column!r} is missing", where=path, remedy=f"Expected the columns {', '.join(columns)}.{hint}"
    )
