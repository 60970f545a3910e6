"""Tells reports that say nothing from short ones: what tools write for a missing cell, blanks, headers without text."""

from __future__ import annotations

import re
import string

SAYS_NOTHING = "the report says nothing"
"""The reason for which a record with such a report is quarantined."""

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

_HEADER_LETTERS = frozenset(string.ascii_uppercase + " ()/,-\t")
_HEADER_LENGTH = 60
"""Characters of a header, at most: before a colon, a longer run of capitals is text."""

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
    first, *others = _BLANK.sub(" ", report).split(":")
    if others:
        *headed, last = others
        parts = [_without_header("\n" + first), *map(_without_header, headed), last]
    else:
        parts = [first]
    text = "\n".join(parts)
    rest = "\n".join(line for line in text.splitlines() if line.strip().lower() not in _NAMES)
    return any(letter.isalpha() for letter in _PLACEHOLDER.sub(" ", rest))


def _without_header(text: str) -> str:
    """Return what stands before a colon without the header that ends in it.

    Whole reports are written in capitals, too. So a name that is not known is a header only where it has a line to
    itself: on the line of another section, the same capitals are what that section says.
    """
    above, end, line = text.rpartition("\n")
    tail = line[-_HEADER_LENGTH:]
    for word in re.finditer(r"(?<!\S)\S", tail):
        if tail[word.start() :].strip().lower() in _NAMES:
            return above + end + line[: len(line) - len(tail) + word.start()]
    is_alone = end and len(line) <= _HEADER_LENGTH and _HEADER_LETTERS.issuperset(line.rstrip("\r"))
    return above + end if is_alone else text
