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
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TextIO, cast

from mrm_stream.errors import SourceError
from mrm_stream.storage import Place, is_remote, read_whole

CELL_LIMIT = 1 << 20
"""Characters in one cell; the longest reports have some ten thousand."""

LINE_LIMIT = 4 << 20
"""Characters in one line: a compressed table can unpack to a line that fills the memory."""

BLANK_LIMIT = 100_000
"""Blank lines of a table: compressed, millions of them take no room, and minutes to pass over."""

TABLE_LIMIT = 2 << 30
"""Bytes of a remote table's file."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What a record's key must match as a whole."""

NOT_SHOWN = "(not shown: it is no plain path)"
"""Stands for a cell that could be a report in the wrong column."""

_PLAIN = re.compile(r"[\w./+:()-]{1,200}", re.ASCII)
_IMAGE = re.compile(r"[^\n]+\.(?:jpe?g|png|dcm|dicom|tiff?|bmp|gif|gz)", re.IGNORECASE)
"""A name that is a file's, spaces or not: no report ends so."""


def find_table(root: Place, name: str) -> Place:
    """Return the table `name` (`*.csv`) below the root, or its gzip-compressed form, which is looked for first.

    Raises:
        SourceError: The root has neither.
    """
    for candidate in (root / f"{name}.gz", root / name):
        if candidate.is_file():
            return candidate
    raise SourceError(
        f"there is neither {name}.gz nor {name}", where=root, remedy="Give the directory that holds this table as root."
    )


def read_rows(path: Place, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each row of a UTF-8 table as (line it starts on, cells of `columns` in that order).

    Lines count from 1, the header's; blank lines are passed over; space around the header's names is ignored.

    Args:
        path: Comma-separated, quoted as in RFC 4180; compressed where the name ends in `.gz`.
        columns: Names that the header must have once each; it may have others.

    Raises:
        SourceError: The table is absent or cannot be read, lacks a column (the nearest present one is named), or has a
            row of another length than the header, or a cell or line over the limits.
    """
    # Process-wide, as the csv module has it: without it a limit that another library raised would stand.
    csv.field_size_limit(CELL_LIMIT)
    try:
        with _open_text(path) as file:
            reader = csv.reader(_bounded_lines(file, path), strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = [_find_column(header, column, columns, path) for column in columns]
            line, blank = reader.line_num + 1, 0
            for cells in reader:
                if len(cells) == len(header):
                    yield line, tuple([cells[place] for place in places])
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
    except FileNotFoundError:
        raise SourceError("the table does not exist", where=path, remedy="Check the root that you gave.") from None
    except UnicodeDecodeError:
        raise SourceError("the table is not UTF-8", where=path, remedy="Save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SourceError(
            f"the table cannot be read ({error})", where=path, remedy="It may be damaged or cut short: fetch it again."
        ) from error


def claim(lines: dict[str, int], key: str, line: int, path: Place) -> None:
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


def _open_text(path: Place) -> TextIO:
    # A remote table is fetched whole, with retries, rather than read in pieces over minutes.
    if isinstance(path, Path) and path.exists() and not path.is_file():  # a pipe would never end
        raise SourceError("the table is not a regular file", where=path, remedy="Give a directory of plain files.")
    file: BinaryIO = BytesIO(_read_remote(path)) if is_remote(path) else path.open("rb")
    unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    return TextIOWrapper(unpacked, encoding="utf-8-sig", newline="")


def _read_remote(path: Place) -> bytes:
    content = read_whole(path, TABLE_LIMIT)
    if len(content) > TABLE_LIMIT:
        raise SourceError(f"the table is larger than {TABLE_LIMIT:,} bytes", where=path)
    return content


def _bounded_lines(file: TextIO, path: Place) -> Iterator[str]:
    number = 1
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise SourceError(
                f"the line is longer than {LINE_LIMIT:,} characters",
                where=f"{path}, line {number}",
                remedy="This is no table of radiographs: check the file.",
            )
        yield line
        number += 1


def _find_column(header: Sequence[str], column: str, columns: Sequence[str], path: Place) -> int:
    """Return the place of a column in the header; `columns` are all that are needed, for the message."""
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
