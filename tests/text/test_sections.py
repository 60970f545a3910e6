from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from mrm_stream.errors import ConfigError, RecordError
from mrm_stream.sources.phantom.report import write_report
from mrm_stream.sources.phantom.subject import draw_study
from mrm_stream.text.sections import CONCLUSION, KNOWN_SECTIONS, check_sections, select_sections, split_sections

TITLE = " " * 33 + "FINAL REPORT\n"
MIMIC = (
    TITLE
    + " EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old with a made-up cough.\n \n"
    + " COMPARISON:  None.\n \n FINDINGS:\n \n The lungs are clear.\n The heart is small.\n \n"
    + " IMPRESSION: \n \n No made-up disease.\n"
)


def names(report: str) -> list[str]:
    return [section.name for section in split_sections(report)]


def test_a_report_in_the_usual_order() -> None:
    assert names(MIMIC) == ["preamble", "examination", "indication", "comparison", "findings", "impression"]
    assert select_sections(MIMIC, "", ("impression", "findings")) == (
        "No made-up disease.\nThe lungs are clear.\n The heart is small."
    )
    assert select_sections(MIMIC, "", ("technique", "comparison", "wet read")) == "None."


def test_the_phantoms_reports_are_cut_where_they_were_joined() -> None:
    for number in range(100):
        report = write_report(5, draw_study(5, number, number), earlier=number % 2).text
        sections = split_sections(report)
        assert [section.name for section in sections] == [
            *("preamble", "examination", "indication", "comparison", "findings", "impression"),
        ]
        rejoined = "FINAL REPORT " + " ".join(f"{name.upper()}: {text}" for name, text in sections[1:])
        assert rejoined.split() == report.split()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("IMPRSSION", "impression"),
        ("NDICATION", "impression"),
        ("FINIDNGS", "findings"),
        ("CHEST, PA AND LATERAL", "findings"),
        ("BEDSIDE FRONTAL UPRIGHT", "findings"),
        ("PORTABLE CHEST COMPARISON", "comparison"),
        ("REASON FOR EXAM", "indication"),
        ("PFI", "history"),
        ("RELEVANT HISTORY", "history"),
        ("SECOND ADDENDUM", "addendum"),
        ("COMPARISON AND ADDENDUM", "comparison"),
        ("HISTORY AND IMPRESSION", "impression"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("WETREAD", "wet read"),
        ("MADE-UP HEADER", "made-up header"),
    ],
)
def test_headers_are_named_as_published(header: str, name: str) -> None:
    assert split_sections(f"{TITLE} {header}: words\n")[1] == (name, "words")


@pytest.mark.parametrize(
    "line",
    [" Findings: words", " FINDINGS:words", "FINDINGS: words", " Seen FINDINGS: words", " 2 FINDINGS: words"],
)
def test_what_is_no_header_of_mimic(line: str) -> None:
    assert names(f"{TITLE}{line}\n") == ["full report"]


def test_a_header_after_an_empty_one_is_text_unless_a_line_lies_between() -> None:
    assert split_sections(TITLE + " CHEST:\n FINDINGS: Clear.\n")[1:] == [("findings", "FINDINGS: Clear.")]
    assert split_sections(TITLE + " CHEST:\n \n FINDINGS: Clear.\n")[1:] == [("findings", "Clear.")]


def test_the_last_of_several_counts_unless_it_is_empty() -> None:
    twice = TITLE + " IMPRESSION: First.\n FINDINGS: Clear.\n \n IMPRESSION: Second.\n"
    assert select_sections(twice, "", ("impression",)) == "Second."
    assert select_sections(twice + " IMPRESSION: \n \n", "", ("impression",)) == "Second."
    compared = TITLE + " IMPRESSION: First.\n COMPARISON: Old.\n COMPARISON: New.\n"
    assert select_sections(compared, "", ("comparison",)) == "New."


def test_an_addendum_on_top() -> None:
    report = " ADDENDUM:  A made-up correction.\n " + "_" * 78 + "\n" + MIMIC
    assert select_sections("\n" + report, "", ("addendum",)).split() == [
        *("A", "made-up", "correction.", "_" * 78, "FINAL", "REPORT"),
    ]
    # On the very first line the published rules see no header.
    assert names(report)[0] == "preamble"
    assert select_sections(report, "", ("findings", "impression")) == select_sections(
        MIMIC, "", ("findings", "impression")
    )


def test_without_findings_and_impression_what_follows_a_blank_line_is_the_last_paragraph() -> None:
    bare = TITLE + " AP view of the chest.\n \n The lungs are clear.\n \n The heart is small.\n"
    assert names(bare) == ["full report", "last_paragraph"]
    rest = "The lungs are clear.\n \n The heart is small."
    assert select_sections(bare, "", ("findings", "impression", "last_paragraph")) == rest
    headed = TITLE + " COMPARISON: None.\n \n The lungs are clear.\n"
    assert select_sections(headed, "", ("last_paragraph", "comparison")) == "The lungs are clear.\nNone."
    assert "last_paragraph" not in names(MIMIC + " \n More.\n")
    # As published, a blank line right before an empty FINDINGS, which is left out, counts too.
    assert names(TITLE + " \n FINDINGS:  \n") == ["preamble", "last_paragraph"]


def test_the_conclusion_falls_back_step_by_step() -> None:
    compared, last = " COMPARISON: None.\n", " \n The lungs are clear.\n"
    findings, impression = " FINDINGS: Clear.\n", " IMPRESSION: Normal.\n"
    for body, expected in (
        (impression + compared + findings + last, "Normal."),
        (findings + compared + last, "Clear."),
        (compared + last, "The lungs are clear."),
        (compared, "None."),
        (compared + " \n", "None."),
        (compared + impression.replace("Normal.", ""), "None."),
    ):
        assert select_sections(TITLE + body, "", (CONCLUSION,)) == expected
    assert select_sections(MIMIC, "", (CONCLUSION, "impression")) == "No made-up disease."
    with pytest.raises(RecordError):
        select_sections(TITLE + " INDICATION: Cough.\n", "", (CONCLUSION,))


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_of_other_systems(line_end: str) -> None:
    for report in (MIMIC, TITLE + " AP view.\n \n The lungs are clear.\n", CHEXPERT_PLUS):
        assert split_sections(report.replace("\n", line_end)) == split_sections(report)


CHEXPERT_PLUS = """NARRATIVE:
CHEST, TWO VIEWS: 1/1/2001

CLINICAL HISTORY: A made-up cough.

COMPARISON: None.

FINDINGS:
IMPRESSION:

1. No made-up disease.

2. Small heart.

END OF IMPRESSION:

SUMMARY: 1-NORMAL
Read by nobody."""


def test_a_report_of_chexpert_plus() -> None:
    assert split_sections(CHEXPERT_PLUS) == [
        ("preamble", ""),
        ("narrative", ""),
        ("examination", "1/1/2001"),
        ("history", "A made-up cough."),
        ("comparison", "None."),
        ("impression", "1. No made-up disease.\n\n2. Small heart."),
        ("end of impression", ""),
        ("summary", "1-NORMAL\nRead by nobody."),
    ]
    bare = "NARRATIVE:\nCHEST: 1/1/2001\n  \t\nThe lungs are clear.\n\nThe heart is small."
    assert select_sections(bare, "", (CONCLUSION,)) == "The lungs are clear.\n\nThe heart is small."
    for header in ("CHEST FINDINGS", "FINIDNGS"):
        assert select_sections(f"{header}: Clear.\nIMPRESSION:", "", ("findings", "impression")) == "Clear."


def test_what_a_source_has_composed() -> None:
    for start in ("", "\n"):
        composed = start + " COMPARISON: None.\n INDICATION: Cough.\n FINDINGS: Clear.\n IMPRESSION: Normal."
        assert select_sections(composed, "", ("indication", "findings", "impression")) == "Cough.\nClear.\nNormal."
        assert select_sections(composed, "", ("comparison",)) == "None."


ONE_LINE = [
    "FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "FINDINGS: The lungs are clear IMPRESSION: Normal.",
    "Two views. FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "HISTORY: Cough FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "COMPARISON: 1/2/2001 FINDINGS: The lungs are clear.  IMPRESSION: Normal.",
    "COMPARISON: ___ FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "COMPARISON: XXXX FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "EXAMINATION: CHEST (PA AND LAT) FINDINGS: The lungs are clear. CONCLUSION: Normal.",
    "FINAL REPORT EXAMINATION: CHEST. FINDINGS: The lungs are clear. IMPRESSION: Normal.",
    "INDICATION: Cough.\nFINDINGS: The lungs are clear. IMPRESSION: Normal.",
]


@pytest.mark.parametrize("report", ONE_LINE)
def test_sections_of_a_report_on_one_line(report: str) -> None:
    assert select_sections(report, "", ("findings",)) == "The lungs are clear" + "." * ("clear." in report)
    assert select_sections(report, "", ("impression",)) == "Normal."
    assert select_sections(report, "", (CONCLUSION,)) == "Normal."


def test_all_sections_of_a_report_whose_line_ends_were_lost() -> None:
    lost = " ".join(MIMIC.split())
    assert [tuple(section) for section in split_sections(lost)] == [
        ("preamble", ""),
        ("examination", "CHEST (PA AND LAT)"),
        ("indication", "___ year old with a made-up cough."),
        ("comparison", "None."),
        ("findings", "The lungs are clear. The heart is small."),
        ("impression", "No made-up disease."),
    ]
    assert names("FINDINGS: IMPRESSION: Normal.") == ["preamble", "impression"]


@pytest.mark.parametrize(
    "findings",
    [
        "Compare the IMPRESSION: it is below.",
        "See IMPRESSION: below.",
        "As of the last FINDINGS: the same.",
        "NO ACUTE FINDINGS: STABLE.",
        "MADE-UP IMPRESSION: STABLE.",
        "Clear (IMPRESSION: none).",
        "Clear, IMPRESSION: none.",
        "Clear. Impression: none.",
        "Clear. IMPRESSION:none.",
        "Clear. IMPRESSION none.",
        "Clear. MADE-UP: none.",
        "T1:N0 at 10:30, ratio 1: 2.",
    ],
)
def test_what_is_no_header_within_a_line(findings: str) -> None:
    assert [tuple(section) for section in split_sections(f"FINDINGS: {findings}")] == [
        ("preamble", ""),
        ("findings", findings),
    ]
    assert names(f"Two views {findings}") == ["full report"]


@pytest.mark.parametrize("report", ONE_LINE)
def test_within_a_line_of_mimic_there_is_no_header_as_published(report: str) -> None:
    sections = split_sections(f"{TITLE} TECHNIQUE: {report}\n")
    assert [section.name for section in sections][:2] == ["preamble", "technique"]
    assert all(section.name in ("preamble", "technique", "last_paragraph") for section in sections)
    assert names(f"\n TECHNIQUE: {report}")[:2] == ["preamble", "technique"]


def test_real_reports_on_one_line(shared: Path) -> None:
    """Of 3,331 reports two hold a header in their own text, as their authors wrote it."""
    whole = total = 0
    with (shared / "data/openi-256/indiana_reports.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            findings, impression = (" ".join(row[name].split()) for name in ("findings", "impression"))
            if findings and impression:
                total += 1
                texts = dict(split_sections(f"FINDINGS: {findings} IMPRESSION: {impression}"))
                whole += (texts.get("findings"), texts.get("impression")) == (findings, impression)
    assert (total, total - whole) == (3331, 2)


def test_findings_under_another_header_are_known_by_the_study() -> None:
    report = TITLE + " INDICATION: The lungs are clear.\n \n FINDINGS: See above.\n"
    for wanted in (("findings",), ("impression",), (CONCLUSION,), ("findings", "indication", "impression")):
        assert select_sections(report, "57936451", wanted) == "The lungs are clear."
    assert select_sections(report, "57936452", ("findings",)) == "See above."
    assert select_sections(TITLE + " FINDINGS: Clear.\n", "57936451", ("findings",)) == "Clear."


def test_findings_without_a_header_are_known_by_their_place() -> None:
    report = TITLE + " INDICATION: Cough.\n" + "".join(f" {number:03d}\n" for number in range(200))
    expected = report[47:320].strip()
    for text in (report, report.replace("\n", "\r\n")):
        assert select_sections(text, "51410602", ("findings", "impression")) == expected
        assert select_sections(text, "51410602", ("technique", CONCLUSION)) == expected
    assert select_sections(report, "51410602", ("indication", "findings")).startswith("Cough.\n 000\n")
    with pytest.raises(RecordError):
        select_sections(MIMIC, "58235663", ("findings", "impression"))
    assert select_sections(MIMIC, "58235663", ("findings", "comparison")) == "None."


def test_a_report_without_what_was_asked_for_is_refused_and_not_repeated() -> None:
    report = TITLE + " INDICATION: Secret cough.\n TECHNIQUE:  \n"
    for wanted in (("findings", "impression"), ("technique",), ()):
        with pytest.raises(RecordError, match="none of the sections asked for") as caught:
            select_sections(report, "50000001", wanted)
        assert "ecret" not in str(caught.value)
        assert "50000001" in str(caught.value)


def test_names_are_checked() -> None:
    assert check_sections(" Findings,IMPRESSION,last  paragraph") == ("findings", "impression", "last_paragraph")
    assert check_sections(["wet_read", "conclusion"]) == ("wet read", "conclusion")
    assert check_sections(KNOWN_SECTIONS) == KNOWN_SECTIONS
    with pytest.raises(ConfigError, match=r"'fidnings'") as caught:
        check_sections("impression,fidnings")
    assert "'findings'" in str(caught.value)
    assert all(name in str(caught.value) for name in KNOWN_SECTIONS)
    with pytest.raises(ConfigError, match="twice"):
        check_sections("findings,impression,FINDINGS")
    for nothing in ("", "findings,", " , ", ()):
        with pytest.raises(ConfigError, match="empty"):
            check_sections(nothing)


@pytest.mark.parametrize(
    "piece", ["\n A", ":", "A", " ", "\n", "\n \n", "\n\t", "\r", "\n A A", "FINAL REPORT ", " \n FINAL REPORT"]
)
def test_a_hostile_report_takes_less_than_a_second(piece: str) -> None:
    for start in ("", "A: b\n"):
        report = start + piece * ((1 << 20) // len(piece))
        began = time.process_time()
        split_sections(report)
        assert time.process_time() - began < 1


@pytest.mark.alone
@pytest.mark.parametrize(
    "piece",
    [": ", "S: ", "a FINDINGS: ", "\n A: b", "\n A: ", "A:\n", "\n FINDINGS:\n", "\n FINDINGS: \n \n", "A (/,-B: "],
)
def test_time_is_linear_in_the_headers(piece: str) -> None:
    # Half a second; copying the rest of the text at each header would take seven.
    report = piece * ((1 << 20) // len(piece))
    began = time.process_time()
    split_sections(report)
    assert time.process_time() - began < 3
