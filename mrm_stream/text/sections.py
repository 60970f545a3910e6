"""Cuts a report into its sections, and takes those that a set is to be packed with.

The rules, the spellings and the exceptions are those with which MIMIC-CXR's own authors read its reports
(MIT-LCP/mimic-cxr, txt/section_parser.py and create_section_files.py, MIT licence), so that what is packed is what
others train on and label. Reports of other data sets are known by where their headers stand, and read more freely.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mrm_stream.errors import ConfigError, RecordError
from mrm_stream.text.blank_reports import SAYS_NOTHING, says_something

CONCLUSION = "conclusion"
"""Stands for the first of `CONCLUSIONS` that says anything: what MIMIC-CXR's published labels were read from."""
CONCLUSIONS = ("impression", "findings", "last_paragraph", "comparison")

# Name of a section to the headers that mean it; all others keep their own. "ndication" is the authors' choice, too.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "impression": (
        *("conclusion", "findings and impression", "findings/impression", "findings/ impression"),
        *("impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion"),
        *("mpression", "impession", "ndication"),
    ),
    "findings": (
        *("chest, two views", "reference findings"),
        *("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
    ),
    "comparison": (
        *("comparisons", "reference exam", "comparison exam", "comparison film"),
        *("comparision", "comparsion", "comparrison", "comparisions"),
    ),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("exam", "type of examination"),
    "technique": (),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
    "notification": (),
    "addendum": (),
    "comment": (),
    "date": (),
    "preamble": (),
}
_NAME_OF = {header: name for name, headers in _SPELLINGS.items() for header in (name, *headers)}
# A longer header is taken for the first of these that it holds.
_WITHIN = ("impression", "findings", "history", "comparison", "addendum")
_VIEWS = re.compile(
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|pa view"
    "|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs"
)

KNOWN_SECTIONS = (
    *(CONCLUSION, *CONCLUSIONS),
    *(name for name in _SPELLINGS if name not in CONCLUSIONS),
    # CheXpert Plus's own.
    *("narrative", "procedure comments", "end of impression", "summary"),
)
"""What may be asked for."""

_MIMIC_TITLE = re.compile(r"^ *FINAL REPORT[ \t]*$", re.MULTILINE)
_MIMIC_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]*):(?=\s|\Z)", re.MULTILINE)
# Within a line: a name that is known, in capitals. The longest first, of which a shorter one may be the end.
_WITHIN_LINE = tuple(sorted((name.upper() for name in _NAME_OF), key=len, reverse=True))
_LONGEST = len(_WITHIN_LINE[0])
_LAST_TWO = {name[-2:] for name in _WITHIN_LINE}
_COLON = re.compile(r":(?=\s|\Z)")
_SENTENCE_ENDS = frozenset(".!?:;)]_\"'")
# After these a sentence goes on: `see the FINDINGS: ...`. Other words end it, as many reports lack full stops.
_GO_ON = {
    *(
        "a",
        "an",
        "the",
        "this",
        "these",
        "both",
        "our",
        "his",
        "her",
        "following",
        "last",
        "no",
        "see",
        "and",
        "or",
        "as",
    ),
    *("in", "of", "on", "to", "by", "for", "from", "per", "with", "without", "under"),
}
# Where MIMIC-CXR, which indents every line and opens with a title, has none: on the first line, or at the margin.
_FOREIGN_HEADER = re.compile(r"(?:\A[ \t]*|^)[A-Z][A-Z ()/,-]*:(?=\s|\Z)", re.MULTILINE)

# MIMIC-CXR's studies whose findings stand under another header.
_MISPLACED = {
    study: name
    for name, studies in {
        "recommendations": "50913680 59768032 59067458 59087630 58157373 56482935 58375018",
        "examination": "59363654 53356173 50743547 59215320 55157853",
        "indication": "57936451 50058765 51966317 55124749 54365831 54654948",
        "technique": "59279892 53202765 50808053",
        "note": "56451190",
        "history": "51491012",
    }.items()
    for study in studies.split()
}
# Those whose findings no header marks: first character, and the one behind the last.
_UNMARKED = {
    "50525523": (201, 349),
    "57564132": (233, 554),
    "59982525": (313, 717),
    "53488209": (149, 475),
    "54875119": (234, 988),
    "50196495": (59, 399),
    "56579911": (59, 218),
    "52648681": (292, 631),
    "59889364": (172, 453),
    "53514462": (73, 377),
    "59505494": (59, 450),
    "53182247": (59, 412),
    "51410602": (47, 320),
    "56412866": (522, 822),
    "54986978": (59, 306),
    "59003148": (262, 505),
    "57150433": (61, 394),
    "56760320": (219, 457),
    "59562049": (158, 348),
    "52674888": (145, 296),
    "55258338": (192, 568),
    "59330497": (140, 655),
    "52119491": (179, 454),
    # These report no findings at all.
    "58235663": (0, 0),
    "50798377": (0, 0),
    "54168089": (0, 0),
    "53071062": (0, 0),
    "56724958": (0, 0),
    "54231141": (0, 0),
    "53607029": (0, 0),
    "52035334": (0, 0),
}


class Section(NamedTuple):
    """A part of a report."""

    name: str
    """Normalised: one of `KNOWN_SECTIONS`, `full report` where there is no header, or the header in lower case."""
    text: str
    """Without the header, and without white space at its ends."""


def split_sections(report: str) -> list[Section]:
    """Return the parts of a report in their order, each as often as it occurs; takes time linear in its length.

    What precedes the first header is the `preamble`. Empty findings and impressions are skipped. If there are
    neither, what follows the first blank line of the last section is the `last_paragraph`.

    A header is in capitals, and ends with a colon and white space. In a report of MIMIC-CXR it stands after one space,
    and not on the line after a header that nothing follows. In any other (CheXpert Plus, what sources compose) it
    stands at the start of a line, indented or not, or is a known one at the start of a sentence, as in reports that
    were put on one line; `END OF IMPRESSION` is no impression there, and what follows the name of a view is a date,
    not findings.
    """
    text = _with_plain_line_ends(report)
    if _is_as_in_mimic(text):
        parts = [(_name_of(header), part) for header, part in _split_mimic(text)]
        blank_line = "\n \n"
    else:
        parts = [(_foreign_name_of(header), part) for header, part in _split_foreign(text)]
        blank_line = "\n\n"
    parts = [(name, part) for name, part in parts if name not in ("impression", "findings") or part.strip()]
    if not any(name in ("impression", "findings") for name, _ in parts):
        name, part = parts[-1]
        before, found, after = part.partition(blank_line)
        if found:
            parts[-1:] = [(name, before), ("last_paragraph", after)]
    return [Section(name, part.strip()) for name, part in parts]


def select_sections(report: str, study: str, wanted: Sequence[str]) -> str:
    """Return the sections asked for, in that order, joined by line ends; what the report lacks is passed over.

    Of sections with one name the last counts. For some fifty studies of MIMIC-CXR the authors noted by hand where the
    findings stand: that text takes the place of findings, impression and last paragraph, once.

    Args:
        report: As it stands, with line ends of any kind.
        study: MIMIC-CXR's number of the study (`50913680`); for other data sets empty.
        wanted: As `check_sections` returns them.

    Raises:
        RecordError: The report has none of them, or all of them are empty.

    Example:
        >>> select_sections(" FINDINGS: Clear lungs.\\n IMPRESSION: Normal.\\n", "", ["impression", "findings"])
        'Normal.\\nClear lungs.'
    """
    texts = {section.name: section.text for section in split_sections(report)}
    by_hand = _MISPLACED.get(study)
    if study in _UNMARKED:
        start, end = _UNMARKED[study]
        by_hand = "by hand"
        texts[by_hand] = _with_plain_line_ends(report)[start:end].strip()
    names: dict[str, None] = {}
    for name in wanted:
        if by_hand in texts and name in (CONCLUSION, "impression", "findings", "last_paragraph"):
            names[by_hand] = None
        elif name == CONCLUSION:
            names[next((choice for choice in CONCLUSIONS if texts.get(choice)), name)] = None
        else:
            names[name] = None
    chosen = "\n".join(texts[name] for name in names if texts.get(name))
    if not chosen:
        raise RecordError("the report has none of the sections asked for", where=f"report of study {study or '?'}")
    return chosen


def text_to_tokenize(report: str, study: str, sections: Sequence[str]) -> str:
    """Return what becomes tokens: the sections of a report that were asked for, or all of it where none were.

    Raises:
        RecordError: The report has none of the sections, or what it has of them says nothing.
    """
    text = select_sections(report, study, sections) if sections else report
    if not says_something(text):
        raise RecordError(SAYS_NOTHING, where=f"report of study {study or '?'}")
    return text


def check_sections(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names of sections as `select_sections` takes them.

    Args:
        names: One after another, or in one string with commas between; in any case, `_` for a space and the reverse.

    Raises:
        ConfigError: A name is not known (the nearest is named) or given twice, or there is none.

    Example:
        >>> check_sections("Findings, last paragraph")
        ('findings', 'last_paragraph')
    """
    known = {_spelled(name): name for name in KNOWN_SECTIONS}
    given = [_spelled(name) for name in (names.split(",") if isinstance(names, str) else names)]
    remedy = f"There are {', '.join(KNOWN_SECTIONS)}."
    if not all(given) or not given:
        raise ConfigError("the name of a section is empty", where="sections", remedy=remedy)
    for name in given:
        if name not in known:
            nearest = known[difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]]
            raise ConfigError(
                f"unknown section {name!r}", where="sections", remedy=f"Did you mean {nearest!r}? {remedy}"
            )
        if given.count(name) > 1:
            raise ConfigError(f"section {name!r} is given twice", where="sections", remedy="Remove one of them.")
    return tuple(known[name] for name in given)


def _spelled(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _with_plain_line_ends(report: str) -> str:
    return report.replace("\r\n", "\n").replace("\r", "\n")


def _split_mimic(text: str) -> Iterator[tuple[str, str]]:
    """Yield (header in lower case, what follows it), all of the text."""
    header = _MIMIC_HEADER.search(text)
    if header is None:
        yield "full report", text
        return
    # Up to the name itself, as published: the line end and space before it can complete a blank line.
    yield "preamble", text[: header.start(1)]
    while header is not None:
        # The rest of the header's line belongs to it, and so does the next line where that rest is but a line end.
        line_end = text.find("\n", header.end())
        following = _MIMIC_HEADER.search(text, max(line_end, header.end()))
        yield header[1].lower().strip(), text[header.end() : following.start() if following else len(text)]
        header = following


def _split_foreign(text: str) -> Iterator[tuple[str, str]]:
    """Yield (header in lower case, what follows it), all of the text; blank lines are made empty ones."""
    text = re.sub(r"\n[ \t]+(?=\n)", "\n", text)
    # By where they end: a header at the start of a line may end in one that is known.
    headers = dict(_headers_within_lines(text)) | {header.end(): header.start(1) for header in _HEADER.finditer(text)}
    name, start = "preamble", 0
    for end, first in sorted(headers.items()):
        yield name, text[start:first]
        name, start = text[first : end - 1].lower().strip(), end
    yield name, text[start:]


def _is_as_in_mimic(text: str) -> bool:
    """Return whether the published rules are to be followed, which know headers at the start of a line only."""
    if _MIMIC_TITLE.search(text):
        return True
    if _FOREIGN_HEADER.search(text):
        return False
    return _MIMIC_HEADER.search(text) is not None or next(_headers_within_lines(text), None) is None


def _headers_within_lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield (end, start) of each known header, its colon included, at the start of a sentence."""
    for colon in _COLON.finditer(text):
        before = text[max(0, colon.start() - _LONGEST) : colon.start()]
        if before[-2:] in _LAST_TWO and before.endswith(_WITHIN_LINE):
            start = colon.start() - len(next(filter(before.endswith, _WITHIN_LINE)))
            if text[start - 1 : start].isspace() and _ends_sentence(text[max(0, start - _LONGEST) : start].rstrip()):
                yield colon.end(), start


def _ends_sentence(before: str) -> bool:
    if not before or before[-1] in _SENTENCE_ENDS or before[-1].isdigit() or before.endswith("XXX"):  # taken out
        return True
    return before[-1].islower() and re.split(r"[^A-Za-z]", before)[-1].lower() not in _GO_ON


def _name_of(header: str) -> str:
    if header in _NAME_OF:
        return _NAME_OF[header]
    for name in _WITHIN:
        if name in header:
            return name
    return "findings" if _VIEWS.search(header) else header


def _foreign_name_of(header: str) -> str:
    header = header.removeprefix("final report").strip()  # the title, where line ends were lost
    if header == "end of impression":
        return header
    name = _name_of(header)
    return "examination" if name == "findings" and _VIEWS.search(header) and "finding" not in header else name
