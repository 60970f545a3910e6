"""Joins of two tables by an id: the id however a tool wrote it, and a count of those that the other table has.

A table of another release, or one whose ids a spreadsheet has rewritten, matches nothing, and nothing else is wrong
with it: without a count its labels would be missing in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from mrm_stream.errors import SourceError
from mrm_stream.sources.tables import quoted
from mrm_stream.storage.paths import AnyPath

T = TypeVar("T")

# A spreadsheet writes '123 or ="123" to keep a number as it stands.
_AROUND = " \t\r\n\xa0\"'="
_WHOLE = re.compile(r"([0-9]+)(?:\.0*)?")
_GROUPED = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+)(?:\.0*)?")
_POWER = re.compile(r"([0-9])(?:\.([0-9]*))?[eE]\+?([0-9]{1,3})")
_EXACT = 2**53
"""Whole numbers above are not told from their neighbours by a float64."""

_logger = logging.getLogger(__name__)


class Join(Generic[T]):
    """One table, looked up by the ids of another; counts how many it has.

    Args:
        rows: The table that is looked up, by id.
        table: Where it is, or what it is.
        noun: What an id names, in the plural, for messages: `images`.
        enough: Share of them below which `check` warns; 1: where a single one is missing.
    """

    def __init__(self, rows: Mapping[str, T], table: AnyPath | str, noun: str, *, enough: float = 0.5) -> None:
        self._rows = rows
        self._table = table
        self._noun = noun
        self._enough = enough
        self._asked = self._matched = 0
        self._first_missing = ""

    def get(self, key: str) -> T | None:
        """Return the row of an id, or None where the table lacks it."""
        row = self._rows.get(key)
        self._asked += 1
        if row is not None:
            self._matched += 1
        elif not self._first_missing:
            self._first_missing = key
        return row

    def need(self, key: str, where: str) -> T:
        """Return the row of an id.

        Args:
            key: The id.
            where: The file and line that it is from, for messages.

        Raises:
            SourceError: The table lacks it; one of its own ids is shown beside.
        """
        row = self.get(key)
        if row is None:
            raise SourceError(
                f"{quoted(key)} is not among the {self._noun} of {self._table}, {self._example()}",
                where=where,
                remedy="Take both from the same release, with the ids as published.",
            )
        return row

    def check(self, of: str) -> None:
        """Log how many ids were found; to be called when all have been looked up.

        Args:
            of: The table that they are from.

        Raises:
            SourceError: None was; one id of each side is shown.
        """
        if not self._asked:
            return
        if not self._matched:
            raise SourceError(
                f"none of the {self._asked:,} {self._noun} of {of} is in it: "
                f"{quoted(self._first_missing)} there, {self._example()}",
                where=self._table,
                remedy="Take both from the same release, with the ids as published; or move this one away, if it is "
                "of other data.",
            )
        level = logging.WARNING if self._matched < self._enough * self._asked else logging.INFO
        message = "%s: it has %d of the %d %s of %s"
        _logger.log(level, message, self._table, self._matched, self._asked, self._noun, of)

    def _example(self) -> str:
        return f"{quoted(next(iter(self._rows)))} here" if self._rows else "and nothing here"


def text_id(cell: str) -> str:
    """Return an id that is a name, without the blanks and quotes that tools put around it.

    Example:
        >>> text_id(' "02aa804e" ')
        '02aa804e'
    """
    return cell.strip(_AROUND)


def number_id(cell: str, column: str, path: AnyPath, line: int, *, prefix: str = "") -> str:
    """Return an id that is a number as its digits, however a tool wrote it; text that is no number as it stands.

    Args:
        cell: As the table has it.
        column: Its name, for messages.
        path: The table, for messages.
        line: The row's, for messages.
        prefix: A lower-case letter that the id may have in paths and names, such as the `s` of `s50414267`.

    Raises:
        SourceError: It is written as a number that has lost digits.

    Example:
        >>> [number_id(cell, "study_id", "a table", 2, prefix="s") for cell in ("50414267.0", "5.0414267e+07", "s007")]
        ['50414267', '50414267', '7']
    """
    if cell.isdigit() and cell.isascii() and cell[0] != "0":
        return cell
    text = text_id(cell)
    if prefix and text[:1].lower() == prefix and text[1:].isdigit():
        text = text[1:]
    is_lost = False
    if match := _WHOLE.fullmatch(text) or _GROUPED.fullmatch(text):
        text = match[1].replace(",", "").lstrip("0") or "0"
        is_lost = "." in cell and int(text) > _EXACT
    elif match := _POWER.fullmatch(text):
        exponent, decimals = int(match[3]), match[2] or ""
        text = match[1] + decimals[:exponent]
        is_lost = len(decimals) < exponent or bool(decimals[exponent:].strip("0")) or int(text) > _EXACT
    if is_lost:
        raise SourceError(
            f"{column} is {quoted(text_id(cell))}, a number that lost its last digits",
            where=f"{path}, line {line}",
            remedy="Export the table again with this column as text.",
        )
    return text
