"""Reports that say nothing are told from short ones, in every source."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.records import Record
from mrm_stream.sources.openi import parse_report
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.text.blank_reports import says_something

NOTHING = [
    *("nan", "NaN", "None", "none.", "null", "N/A", "n/a", "#N/A", "<NA>", "NA", "not available", "No report."),
    *("___", "___ ___.", "XXXX", "XXXX, XXXX.", "[**Hospital 12**]", "...", "-", "1. 2.", "?", "nan nan", "\ufeff"),
    "FINDINGS:\nIMPRESSION:",
    "Findings: \nImpression: ",
    "FINDINGS: IMPRESSION:",
    "Findings: Impression: nan",
    "FINDINGS: ___ IMPRESSION: None.",
    "FINDINGS\nIMPRESSION\n",
    "FINAL REPORT",
    "                                 FINAL REPORT\n EXAMINATION:  ___\n \n FINDINGS:\n \n IMPRESSION: \n None.\n",
    "CHEST (PA AND LAT):\n\nREASON FOR EXAMINATION: ...\n",
]
SHORT = [
    *("Normal.", "NORMAL", "Negative.", "COPD.", "ok", "Clear", "Emphysema.", "Unchanged", "Nonacute", "Nana", "X"),
    *(
        "Negative chest x-XXXX.",
        "Sin cambios",
        "\u6b63\u5e38",
        "No change",
        "None seen",
        "Findings normal",
        "Normal exam",
    ),
    *(
        "FINDINGS: Clear.",
        "Impression: normal",
        "FINDINGS: ___ IMPRESSION: Normal.",
        "CHEST: NORMAL",
        "No report changes",
    ),
    "FINDINGS AND HISTORY AND COMPARISON ARE ALL AS THEY WERE TWO DAYS AGO, SEE: 5",
    # Reports in capitals: what stands before the next header is no part of it.
    "FINDINGS: THE LUNGS ARE CLEAR\nIMPRESSION: ___",
    "IMPRESSION: CARDIOMEGALY\nCOMPARISON: N/A",
    "EXAM: CHEST\nIMPRESSION: NO ACUTE CARDIOPULMONARY DISEASE\nRECOMMENDATION: NONE",
    "NO ACUTE DISEASE\n\nDICTATED BY: ___",
    "FINAL REPORT\n IMPRESSION:  NO ACUTE CARDIOPULMONARY PROCESS\n\n COMPARISON:  None.\n",
    "NORMAL CHEST X-RAY (PA, LATERAL) COMPARISON: N/A",
    "FINDINGS: NORMAL CHEST IMPRESSION: NONE",
]


@pytest.mark.parametrize("report", NOTHING)
def test_a_report_that_says_nothing_is_refused(report: str) -> None:
    assert not says_something(report)
    with pytest.raises(RecordError, match=r"the report (says nothing|is empty)"):
        read_report(Path("/"), Record("key", "image.png", report_text=report))


@pytest.mark.parametrize("report", SHORT)
def test_a_short_report_is_none_of_those(report: str) -> None:
    assert says_something(report)
    assert read_report(Path("/"), Record("key", "image.png", report_text=report)) == report


@pytest.mark.parametrize(
    "piece", ["A", "A:", "A ", "_", "[**", "x", "\n", "findings:", "nan ", "n/", ". ", "FINDINGS: "]
)
def test_a_hostile_report_takes_seconds_at_most(piece: str) -> None:
    began = time.process_time()
    says_something(piece * ((1 << 20) // len(piece)))
    assert time.process_time() - began < 5


def test_no_real_report_is_lost(shared: Path) -> None:
    with (shared / "data/covid-cxr/training.csv").open(newline="") as file:
        notes = [row["report_content"] for row in csv.DictReader(file)]
    with (shared / "data/openi-256/indiana_reports.csv").open(newline="") as file:
        reports = [row[name] for row in csv.DictReader(file) for name in ("findings", "impression")]
    assert len(notes) == 511
    assert len(reports) > 7000
    assert all(says_something(text) for text in [*notes, *reports] if text.strip())


def test_a_report_file_of_mimic_that_says_nothing(tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "tree", 20, size=64, workers=1, progress=None)
    options = PackOptions(short_side=64, vocabulary=200)
    reports = sorted((tmp_path / "tree/files").glob("*/*/s*.txt"))
    reports[0].write_text(" " * 33 + "FINAL REPORT\n FINDINGS:\n \n IMPRESSION: ___\n")
    images = len(list(reports[0].with_suffix("").glob("*.jpg")))
    manifest = pack("mimic", tmp_path / "tree", tmp_path / "out", options=options, supervision=Supervision(max_bad=0.5))
    assert manifest.quarantined == {"report-says-nothing": images}
    with pytest.raises(SourceError, match=f"{images} report-says-nothing"):
        pack("mimic", tmp_path / "tree", tmp_path / "strict", options=options)


def test_notes_of_covid_that_say_nothing_are_no_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = ["patientid", "offset", "finding", "view", "modality", "folder", "filename", "clinical_notes"]
    rows = [
        ["1", "0", "Viral", "PA", "X-ray", "images", f"{n}.png", note] for n, note in enumerate(("nan", "Fever", ""))
    ]
    (tmp_path / "images").mkdir()
    for row in rows:
        (tmp_path / "images" / row[6]).write_bytes(b"image")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    with caplog.at_level("INFO"):
        assert [record.report_text for record in list_records("covid", tmp_path)] == ["Fever"]
    assert "2 radiographs without notes are skipped" in caplog.text


def test_a_study_of_openi_whose_findings_and_impression_say_nothing_has_no_report() -> None:
    head = '<e><uId id="CXR1"/><parentImage id="CXR1_IM-1"/><AbstractText Label="INDICATION">Cough.</AbstractText>'
    for findings, impression in (("XXXX", "None."), ("nan", ""), ("...", "___")):
        body = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        body += f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></e>'
        assert parse_report(head + body, "1.xml").report is None
    body = (
        '<AbstractText Label="FINDINGS">XXXX</AbstractText><AbstractText Label="IMPRESSION">Normal.</AbstractText></e>'
    )
    assert str(parse_report(head + body, "1.xml").report).endswith("IMPRESSION: Normal.\n")
