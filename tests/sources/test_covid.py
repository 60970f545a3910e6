from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.sources.covid import COLUMNS
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records

ROWS = [
    ["2", "0", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "images", "a.jpg", "Fever."],
    ["2", "3", "COVID-19, ARDS", "AP Supine", "X-ray", "images", "b.b.png", "Worse."],
    ["3", "", "todo", "?", "X-ray", "images", "c.jpg", " "],
    ["4", "1", "No Finding", "Axial", "CT", "volumes", "d.nii.gz", "Scan."],
]


def _write(root: Path, rows: list[list[str]], *absent: str) -> Path:
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(COLUMNS), *rows])
    (root / "images").mkdir(exist_ok=True)
    for row in rows:
        if row[5] == "images" and row[6] and row[6] not in absent:
            (root / "images" / row[6]).write_bytes(b"image")
    return root


def test_radiographs_are_listed_and_ct_is_not(tmp_path: Path) -> None:
    first, second, third = list_records("covid", _write(tmp_path, ROWS))
    assert (first.key, first.image_path, first.subject, first.study) == ("a", "images/a.jpg", "2", "2-0")
    assert (second.subject, second.study, second.view) == ("2", "2-3", "AP Supine")
    assert second.key.startswith("b_b-")
    assert (third.study, third.view, third.split) == ("3", "", "train")


def test_each_level_of_a_finding_is_a_label(tmp_path: Path) -> None:
    first, second, third = list_records("covid", _write(tmp_path, ROWS))
    assert first.labels == {"Pneumonia": 1, "Viral": 1, "COVID-19": 1}
    assert second.labels == {"COVID-19": 1, "ARDS": 1}
    assert third.labels == {}


def test_the_clinical_notes_are_the_report(tmp_path: Path) -> None:
    root = _write(tmp_path, ROWS)
    first, _, third = list_records("covid", root)
    assert read_report(root, first) == "Fever."
    with pytest.raises(RecordError, match="the report is missing"):
        read_report(root, third)


def test_images_that_are_not_there_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        records = list_records("covid", _write(tmp_path, ROWS, "a.jpg"))
    assert [record.image_path for record in records] == ["images/b.b.png", "images/c.jpg"]
    assert "1 of the 3 radiographs listed are not on the disk" in caplog.text


def test_keys_do_not_depend_on_which_images_are_there(tmp_path: Path) -> None:
    """A copy that gains an image keeps the keys of the others."""
    rows = [["2", "0", "", "PA", "X-ray", folder, "a.jpg", "x"] for folder in ("images", "more")]
    root = _write(tmp_path, rows)
    (key,) = (record.key for record in list_records("covid", root))
    (root / "more").mkdir()
    (root / "more" / "a.jpg").write_bytes(b"image")
    assert next(record.key for record in list_records("covid", root)) == key


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"key appears twice: 'images/a\.jpg' on lines 2 and 6"):
        list_records("covid", _write(tmp_path, [*ROWS, ROWS[0]]))
    with pytest.raises(SourceError, match="line 6: filename is blank"):
        list_records("covid", _write(tmp_path, [*ROWS, [*ROWS[0][:6], "", "x"]]))
    with pytest.raises(SourceError, match="no images are listed"):
        list_records("covid", _write(tmp_path, ROWS[3:]))
    (tmp_path / "metadata.csv").write_text("patientid,offset\n1,2\n")
    with pytest.raises(SourceError, match="column 'finding' is missing"):
        list_records("covid", tmp_path)


def test_the_real_collection(shared: Path) -> None:
    root = shared / "data" / "covid-cxr"
    records = list_records("covid", root)
    assert len(records) == 634
    assert len({record.subject for record in records}) == 360
    assert Counter(label for record in records for label in record.labels)["COVID-19"] == 440
    refused = 0
    for record in records:
        try:
            read_report(root, record)
        except RecordError:
            refused += 1
    assert refused == 123
