"""Tells reports that say nothing from short ones: what tools write for a missing cell, blanks, headers without text."""

from __future__ import annotations

import re
import string

SAYS_NOTHING = "the report says nothing"
"""The reason for which a record with such a report is left out."""

_NAMES = frozenset(
    {
        *(
            "final report",
            "preliminary report",
            "report",
            "narrative",
            "summary",
            "conclusion",
            "impression",
            "findings",
        ),
        *("findings and impression", "findings/impression", "indication", "reason for exam", "reason for examination"),
        *("history", "clinical history", "comparison", "comparisons", "technique", "examination", "exam", "procedure"),
        *("recommendation", "recommendations", "recommendation(s)", "notification", "addendum", "comment", "wet read"),
    }
)
"""Of sections, and titles: alone on a line, or before a colon, they say nothing in any case."""

_HEADER_LETTERS = string.ascii_uppercase + " ()/,-\n\r\t"
_HEADER_LENGTH = 60
"""Characters of a header in capitals, at most: before a colon, a longer run of capitals is text."""

_BLANK = re.compile(r"_+|\[\*\*[^\]]{0,200}\*\*\]|\b[xX]{3,10}\b")
"""What stands for words that were taken out: MIMIC-CXR's, MIMIC's and Open-I's."""
_PLACEHOLDER = re.compile(
    r"\b(?:nan|none|null|n\s?/\s?a|na|not (?:available|applicable|recorded)|no report(?: available)?)\b", re.IGNORECASE
)


def says_something(report: str) -> bool:
    """Return whether a report has a word that is neither a header nor stands for a missing one; in linear time.

    Example:
        >>> says_something("Normal."), says_something("nan"), says_something("FINDINGS: ___ IMPRESSION: None.")
        (True, False, False)
    """
    *headed, last = _BLANK.sub(" ", report).split(":")
    text = "\n".join([*map(_without_header, headed), last])
    rest = "\n".join(line for line in text.splitlines() if line.strip().lower() not in _NAMES)
    return any(letter.isalpha() for letter in _PLACEHOLDER.sub(" ", rest))


def _without_header(text: str) -> str:
    """Return what stands before a colon without the header that ends in it."""
    before = text.rstrip(_HEADER_LETTERS)
    if len(text) - len(before) > _HEADER_LENGTH:
        before = text
    # The name of a section in any case: what follows the last line end or full stop.
    start = max(before.rfind(end) for end in "\n.;") + 1
    return before[:start] if before[start:].strip().lower() in _NAMES else before
