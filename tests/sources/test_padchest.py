from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.sources.padchest import TABLE
from mrm_stream.sources.reading import read_image, read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import parse_path

HEADER = [
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "ViewPosition_DICOM", "Projection",
    "MethodProjection", "Pediatric", "ReportID", "Report", "MethodLabel", "Labels",
]  # fmt: skip
ROWS = [
    ["0", "1111_aaaa.png", "0", "20140915", "S1", "P1", "POSTEROANTERIOR", "PA", "Manual", "No", "1",
     "sin hallazg patolog .", "Physician", "['normal']"],
    ["1", "1.2.840.1.png", "0", "20140915", "S1", "P1", "LATERAL", "L", "Manual", "No", "1",
     "cardiomegali .", "Physician", "['cardiomegaly', ' pleural effusion', ' unchanged', \"kerley's lines\"]"],
    ["2", "2222_bbbb.png", "14", "20140915", "S2", "P2", "ANTEROPOSTERIOR", "AP_horizontal", "Manual", "No", "2",
     "", "RNN_model", ""],
    ["3", "3333_cccc.png", "14", "20140915", "S3", "P3", "", "EXCLUDE", "Manual", "No", "3",
     "abdom .", "RNN_model", "['exclude']"],
    ["4", "4444_dddd.png", "14", "20140915", "S4", "P4", "", "UNK", "Manual", "No", "4",
     "torax .", "RNN_model", "[]"],
]  # fmt: skip
LISTED = [0, 1, 2, 4]


def write(root: Path, rows: list[list[str]], header: list[str] = HEADER, name: str = TABLE) -> Path:
    with (root / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def swap(column: str, value: str) -> list[list[str]]:
    return [[value if name == column else cell for name, cell in zip(HEADER, ROWS[0], strict=True)], *ROWS[1:]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images in two folders, as published."""
    for row in ROWS:
        (tmp_path / row[2]).mkdir(exist_ok=True)
        (tmp_path / row[2] / row[1]).write_bytes(row[1].encode())
    return write(tmp_path, ROWS)


def test_each_radiograph_of_a_chest_becomes_a_record(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        records = list_records("padchest", root)
    assert [record.image_path for record in records] == [f"{ROWS[i][2]}/{ROWS[i][1]}" for i in LISTED]
    assert [read_image(root, record) for record in records] == [ROWS[i][1].encode() for i in LISTED]
    assert [record.view for record in records] == ["PA", "L", "AP horizontal", ""]
    assert {record.split for record in records} == {"train"}
    assert (records[0].key, records[0].subject, records[0].study) == ("1111_aaaa", "P1", "S1")
    assert records[1].key.startswith("1_2_840_1-")
    assert "1 of 5 rows are excluded by their projection" in caplog.text


def test_labels_are_those_of_the_list(root: Path) -> None:
    first, second, third, fourth = list_records("padchest", root)
    assert first.labels == {"No Finding": 1}
    assert second.labels == {"cardiomegaly": 1, "pleural effusion": 1, "kerley's lines": 1}
    assert third.labels == fourth.labels == {}


def test_the_report_is_as_published_and_may_be_missing(root: Path) -> None:
    first, _, third, _ = list_records("padchest", root)
    assert read_report(root, first) == "sin hallazg patolog ."
    with pytest.raises(RecordError, match="the report is missing"):
        read_report(root, third)


def test_images_may_lie_at_the_root_and_keep_their_keys(root: Path) -> None:
    before = list_records("padchest", root)
    for row in ROWS:
        (root / row[2] / row[1]).rename(root / row[1])
    (root / "0").rmdir()
    (root / "14").rmdir()
    records = list_records("padchest", root)
    assert [record.image_path for record in records] == [ROWS[i][1] for i in LISTED]
    assert [record.key for record in records] == [record.key for record in before]


def test_the_table_may_be_compressed_or_have_another_name_but_must_be_one(root: Path) -> None:
    before = list_records("padchest", root)
    content = (root / TABLE).read_bytes()
    (root / TABLE).unlink()
    (root / f"{TABLE}.gz").write_bytes(gzip.compress(content))
    assert list_records("padchest", root) == before
    (root / f"{TABLE}.gz").rename(root / "PADCHEST_subset.csv.gz")
    assert list_records("padchest", root) == before
    write(root, ROWS, name="PADCHEST_other.csv")
    with pytest.raises(SourceError, match=r"there are 2 tables, 'PADCHEST_other\.csv' and 'PADCHEST_subset\.csv'"):
        list_records("padchest", root)


def test_a_root_may_be_remote(root: Path) -> None:
    remote = parse_path("memory://padchest-test")
    (root / TABLE).rename(root / "PADCHEST_subset.csv")
    for path in root.rglob("*.*"):
        (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    assert list_records("padchest", remote) == list_records("padchest", root)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([*ROWS, ROWS[0]], "key appears twice: '1111_aaaa.png' on lines 2 and 7"),
        (swap("ImageID", ".."), "line 2: ImageID or ImageDir is blank, or no plain name"),
        (swap("ImageID", "../secret.png"), "ImageID or ImageDir is blank, or no plain name"),
        (swap("ImageID", ""), "ImageID or ImageDir is blank, or no plain name"),
        (swap("ImageDir", ".."), "ImageID or ImageDir is blank, or no plain name"),
        (swap("ImageDir", "/etc"), "ImageID or ImageDir is blank, or no plain name"),
        (swap("StudyID", ""), "line 2: StudyID or PatientID is blank"),
        (swap("PatientID", " "), "StudyID or PatientID is blank"),
        (swap("Labels", "derram pleural"), "line 2: Labels is no list of names"),
        (swap("Labels", "['derram', 3]"), "Labels is no list of names"),
        (swap("Labels", "['derram'] + ['x']"), "Labels is no list of names"),
        (swap("Labels", "[" * 100_000), "Labels is no list of names"),
    ],
)
def test_a_bad_row_is_named(root: Path, rows: list[list[str]], what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("padchest", write(root, rows))
    assert "derram" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_tables_that_are_missing_cut_short_or_of_another_form_are_named(root: Path) -> None:
    path = root / TABLE
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="line 6: the row has 12 cells, the header has 14"):
        list_records("padchest", root)
    with pytest.raises(SourceError, match=r"column 'Labels' is missing\n.*'labels'"):
        list_records("padchest", write(root, ROWS, [*HEADER[:-1], "labels"]))
    path.unlink()
    with pytest.raises(SourceError, match=r"nor another PADCHEST_\*\.csv"):
        list_records("padchest", root)
    (root / f"{TABLE}.gz").write_bytes(packed[:-30])
    with pytest.raises(SourceError, match=r"csv\.gz: the table cannot be read"):
        list_records("padchest", root)
