"""Reads list files as the reference code has them: which images are in which split, and their labels.

A list is a text file with one image a line: its name or path, then its 0/1 labels, separated by spaces. SIIM's have no
labels. The file's name says its split, and may say a part of it: `train_1.txt` is a hundredth of the training split,
`train_10.txt` a tenth, `train_list.txt` the whole (CheXpert's validation split is `val_list.txt`, COVID-19's
`iscovid_val.txt`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from mrm_stream.errors import SourceError
from mrm_stream.records import SPLITS
from mrm_stream.sources.tables import claim, quoted
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import names_in, read_whole
from mrm_stream.storage.links import checked
from mrm_stream.storage.paths import AnyPath

LIST_LIMIT = 64 << 20
"""Bytes in one list; the longest published one, of 218,414 CheXpert images, has 16 MB."""

LINE_LIMIT = 1_000
"""Characters in one line."""

_SPLIT_WORDS = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate", "test": "test"}

# The reference code's viral1/isviral_test.txt gives its first image the label 11; viral2 and viral3 give it 1.
_SLIP = "11"
_LABELS = {"0": 0, "1": 1, _SLIP: 1}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image, and what the lists of one split say about it."""

    path: str
    """As listed: a file name, or a POSIX path; never absolute, and without `..`."""
    values: tuple[int, ...]
    """Its labels in the list's order, 0 or 1 each."""
    split: str
    """One of `SPLITS`."""
    lists: tuple[str, ...]
    """The lists that it is on, without `.txt`, sorted."""


def read_lists(folder: AnyPath, *, values: int | None, may_repeat: bool = False) -> list[ListedImage]:
    """Return the images of all lists (`*.txt`) in a folder: the training split's first, the test split's last.

    Within a split they stand in the order of the lists' names and of the lines; an image on several lists of a split
    is returned once.

    Args:
        folder: Nothing but lists may end in `.txt` there; dotfiles are skipped.
        values: Labels that each line must have; None: as many as the first line has.
        may_repeat: Whether an image may be on lists of several splits, or on one list twice, as SIIM's are: 494 of
            the 672 positive test images are training images too. It is then returned once for each split, and the
            number of such images is logged.

    Raises:
        SourceError: There are no lists; a list names no split or two, cannot be read, is too large, empty or not
            UTF-8; a line has another number of labels, a label other than 0 and 1, or a path that leaves its folder;
            an image is on lists of two splits, twice on one, or has different labels on two.
    """
    labels_of: dict[str, tuple[int, ...]] = {}
    split_of: dict[str, str] = {}
    first_list_of: dict[str, str] = {}
    lists_of: dict[tuple[str, str], list[str]] = {}
    overlapping: set[str] = set()
    for name, split, file in _find_lists(folder):
        lines: dict[str, int] = {}
        for line, path, labels in read_list(file, values=values):
            values = len(labels)
            if not may_repeat:
                claim(lines, path, line, file)
            first = first_list_of.setdefault(path, name)
            if labels_of.setdefault(path, labels) != labels:
                raise SourceError(
                    f"{quoted(path)} has other labels on {first}.txt",
                    where=f"{file}, line {line}",
                    remedy="Take all lists from one release.",
                )
            if split_of.setdefault(path, split) != split:
                if not may_repeat:
                    raise SourceError(
                        f"{quoted(path)} is in two splits: {split_of[path]} ({first}.txt) and {split}",
                        where=f"{file}, line {line}",
                        remedy="Remove it from one of the lists.",
                    )
                overlapping.add(path)
            names = lists_of.setdefault((split, path), [])
            if name not in names:
                names.append(name)
    if overlapping:
        _logger.warning("%s: %d of %d images are on lists of two splits", folder, len(overlapping), len(labels_of))
    return [
        ListedImage(path=path, values=labels_of[path], split=split, lists=tuple(sorted(names)))
        for (split, path), names in lists_of.items()
    ]


def read_list(file: AnyPath, *, values: int | None) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Yield each line of one list as (its number from 1, path, labels); blank lines are skipped.

    Args:
        file: The list.
        values: Labels that each line must have; None: as many as the first line has.

    Raises:
        SourceError: The list cannot be read, is too large, empty or not UTF-8; or a line is not of this form.
    """
    is_empty = True
    for line, text in enumerate(_read_text(file).split("\n"), start=1):
        where = f"{file}, line {line}"
        if len(text) > LINE_LIMIT:
            raise SourceError(
                f"the line is longer than {LINE_LIMIT:,} characters", where=where, remedy="This is no list of images."
            )
        path, *cells = text.split() or [""]
        if not path:
            continue
        is_empty = False
        if not _stays_below(path):
            raise SourceError(
                f"the path leaves its folder: {quoted(path)}",
                where=where,
                remedy="Paths are relative, with / between folders, and without ..",
            )
        if values is None:
            values = len(cells)
        if len(cells) != values:
            raise SourceError(
                f"{len(cells)} labels, expected {values}",
                where=where,
                remedy="Lists of this data set have an image's name, then its labels, with spaces between.",
            )
        yield line, path, tuple([_label_value(cell, where) for cell in cells])
    if is_empty:
        raise SourceError("the list is empty", where=file, remedy="Fetch it again.")


def _find_lists(folder: AnyPath) -> list[tuple[str, str, AnyPath]]:
    """Return (name without .txt, split, file) of each list, in the order of splits, then of names."""
    try:
        names = names_in(folder)
    except NotADirectoryError as error:
        raise SourceError("is not a folder", where=folder, remedy="Give the folder of the list files.") from error
    files = [checked(folder, name) for name in names if name.endswith(".txt") and not name.startswith(".")]
    if not files:
        raise SourceError(
            "there are no list files (*.txt)", where=folder, remedy="Give the folder that holds the lists themselves."
        )
    found = []
    for file in sorted(files, key=lambda file: file.name):
        splits = {_SPLIT_WORDS[word] for word in file.stem.lower().split("_") if word in _SPLIT_WORDS}
        if len(splits) != 1:
            raise SourceError(
                f"the list's name says {'two splits' if splits else 'no split'}",
                where=file,
                remedy="Between underscores one of train, val and test must stand, as in train_10.txt.",
            )
        found.append((file.stem, splits.pop(), file))
    return sorted(found, key=lambda entry: SPLITS.index(entry[1]))


def _read_text(file: AnyPath) -> str:
    try:
        content = read_whole(file, LIST_LIMIT)
    except FileNotFoundError:
        raise SourceError("the list does not exist", where=file, remedy="Check the directory that you gave.") from None
    except OSError as error:
        refuse_barred(error, file)
        raise SourceError(f"the list cannot be read ({error})", where=file) from error
    if len(content) > LIST_LIMIT:
        raise SourceError(f"the list is larger than {LIST_LIMIT:,} bytes", where=file, remedy="Check the file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError("the list is not UTF-8", where=file, remedy="Save it as UTF-8.") from None


def _stays_below(path: str) -> bool:
    return "\\" not in path and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _label_value(cell: str, where: str) -> int:
    if cell not in _LABELS:
        raise SourceError(f"label {quoted(cell)}", where=where, remedy="Expected 0 or 1.")
    if cell == _SLIP:
        _logger.warning("%s: label %s is read as 1", where, _SLIP)
    return _LABELS[cell]
