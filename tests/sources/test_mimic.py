from __future__ import annotations

import csv
import gzip
import logging
import zipfile
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.sources.mimic import list_mimic
from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.reading import read_image, read_report
from mrm_stream.sources.registry import list_records

METADATA_HEADER = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
METADATA = [
    ["aaaa-1", "10000032", "50414267", "CHEST (PA AND LAT)", "PA", "3056"],
    ["aaaa-2", "10000032", "50414267", "CHEST (PA AND LAT)", "LATERAL", "3056"],
    ["bbbb-1", "11000011", "50000002", "", "", "2544"],
]
SPLITS = [
    ["bbbb-1", "50000002", "11000011", "test"],
    ["aaaa-1", "50414267", "10000032", "train"],
    ["aaaa-2", "50414267", "10000032", "train"],
]
LABELS = [
    ["10000032", "50414267", *(["1.0", "0.0", "-1.0"] + [""] * 11)],
]


def _write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of two studies, reports as a tree."""
    _write_table(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_HEADER, METADATA)
    _write_table(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], SPLITS)
    _write_table(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *FINDINGS], LABELS)
    for dicom_id, subject, study, *_ in METADATA:
        folder = tmp_path / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{dicom_id}.jpg").write_bytes(dicom_id.encode())
        folder.with_suffix(".txt").write_text(f" FINAL REPORT\n of study {study}")
    return tmp_path


def test_each_image_becomes_a_record(root: Path) -> None:
    first, second, third = list_records("mimic", root)
    assert (first.key, first.subject, first.study, first.view, first.split) == (
        "aaaa-1", "10000032", "50414267", "PA", "train",
    )  # fmt: skip
    assert first.image_path == "files/p10/p10000032/s50414267/aaaa-1.jpg"
    assert first.report_path == second.report_path == "files/p10/p10000032/s50414267.txt"
    assert second.view == "LATERAL"
    assert third.image_path == "files/p11/p11000011/s50000002/bbbb-1.jpg"
    assert (third.view, third.split) == ("", "test")
    assert [read_image(root, record) for record in (first, second, third)] == [b"aaaa-1", b"aaaa-2", b"bbbb-1"]
    assert read_report(root, third) == " FINAL REPORT\n of study 50000002"


def test_labels_leave_out_blanks_and_are_shared_by_the_views_of_a_study(root: Path) -> None:
    first, second, third = list_mimic(root)
    assert first.labels == {FINDINGS[0]: 1, FINDINGS[1]: 0, FINDINGS[2]: -1}
    assert first.labels is second.labels
    assert third.labels == {}


def test_unpacked_tables_will_do(root: Path) -> None:
    before = list(list_mimic(root))
    for path in list(root.glob("*.csv.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert list(list_mimic(root)) == before


def test_reports_may_lie_in_the_zip(root: Path) -> None:
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(root.glob("files/p*/p*/s*.txt")):
            archive.write(path, path.relative_to(root).as_posix())
            path.unlink()
    first, _, third = list_records("mimic", root)
    assert first.report_path == "mimic-cxr-reports.zip::files/p10/p10000032/s50414267.txt"
    assert read_report(root, third) == " FINAL REPORT\n of study 50000002"


def test_one_report_that_is_missing_is_left_to_packing(root: Path) -> None:
    (root / "files/p10/p10000032/s50414267.txt").unlink()
    first, _, third = list_records("mimic", root)
    with pytest.raises(RecordError, match="the report is missing"):
        read_report(root, first)
    assert read_report(root, third)


def test_no_reports_at_all_is_an_error_that_says_where_to_get_them(root: Path) -> None:
    for path in root.glob("files/p*/p*/s*.txt"):
        path.unlink()
    with pytest.raises(SourceError, match=r"no reports under the root\n.*mimic-cxr-reports.zip of MIMIC-CXR"):
        list_records("mimic", root)


def test_no_images_at_all_is_an_error(root: Path) -> None:
    images = sorted(root.glob("files/**/*.jpg"))
    for path in images[:-1]:
        path.unlink()
    assert len(list_records("mimic", root)) == 3
    images[-1].unlink()
    with pytest.raises(SourceError, match="no images under the root"):
        list_records("mimic", root)


def _swap(rows: list[list[str]], row: int, column: int, value: str) -> list[list[str]]:
    rows = [list(cells) for cells in rows]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("table", "rows", "what", "line"),
    [
        ("metadata", [*METADATA, METADATA[0]], "key appears twice: 'aaaa-1' on lines 2 and 5", None),
        (
            "metadata",
            _swap(METADATA, 1, 0, "cccc-9"),
            r"'cccc-9' is not among the images of .*split\.csv\.gz, 'bbbb-1' here",
            3,
        ),
        ("metadata", _swap(METADATA, 1, 0, "../aaaa"), "not of the expected form", 3),
        ("metadata", _swap(METADATA, 1, 1, "10/../.."), "not of the expected form", 3),
        ("metadata", _swap(METADATA, 2, 2, ""), "not of the expected form", 4),
        ("split", [*SPLITS, SPLITS[0]], "key appears twice: 'bbbb-1' on lines 2 and 5", None),
        ("split", _swap(SPLITS, 0, 3, "val"), "unknown split 'val'", 2),
        ("chexpert", [*LABELS, LABELS[0]], "key appears twice: '50414267' on lines 2 and 3", None),
        ("chexpert", _swap(LABELS, 0, 4, "2.0"), "label '2.0' of Consolidation", 2),
    ],
)
def test_a_bad_row_is_named(root: Path, table: str, rows: list[list[str]], what: str, line: int | None) -> None:
    path = root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    header = gzip.decompress(path.read_bytes()).decode().splitlines()[0].split(",")
    _write_table(path, header, rows)
    with pytest.raises(SourceError, match=what) as caught:
        list_records("mimic", root)
    assert caught.value.where == (f"{path}, line {line}" if line else str(path))


def test_a_subject_in_two_splits_is_an_error(root: Path) -> None:
    rows = _swap(SPLITS, 2, 3, "validate")
    _write_table(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], rows)
    with pytest.raises(SourceError, match="subject '10000032' is in two splits: train and validate"):
        list_records("mimic", root)


@pytest.mark.parametrize("table", ["metadata", "split", "chexpert"])
def test_a_table_that_is_missing_is_named(root: Path, table: str) -> None:
    (root / f"mimic-cxr-2.0.0-{table}.csv.gz").unlink()
    with pytest.raises(SourceError, match=f"neither mimic-cxr-2.0.0-{table}.csv.gz nor"):
        list_records("mimic", root)


def test_a_renamed_column_is_named_with_the_nearest(root: Path) -> None:
    header = [name.replace("ViewPosition", "view_position") for name in METADATA_HEADER]
    _write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", header, METADATA)
    with pytest.raises(SourceError, match=r"column 'ViewPosition' is missing\n.*'view_position'"):
        list_records("mimic", root)


RADIOLOGIST_COLUMNS = ["Airspace Opacity" if finding == "Lung Opacity" else finding for finding in FINDINGS]


def _write_radiologists_table(root: Path, columns: list[str], rows: list[list[str]]) -> None:
    with (root / "mimic-cxr-2.1.0-test-set-labeled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["study_id", *columns], *rows])


def test_release_2_1_0_has_radiologists_labels_for_test_studies(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A study of the training split keeps the labeler's, even if their table had it."""
    test_labels = ["1.0" if name == "Airspace Opacity" else "" for name in RADIOLOGIST_COLUMNS]
    _write_radiologists_table(
        root, RADIOLOGIST_COLUMNS, [["50000002", *test_labels], ["50414267", *["0"] * len(test_labels)]]
    )
    labeler = ["11000011", "50000002", *["0.0"] * len(FINDINGS)]
    _write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *FINDINGS], [*LABELS, labeler])
    with caplog.at_level(logging.INFO):
        first, _, third = list_records("mimic", root)
    assert third.labels == {"Lung Opacity": 1}
    assert first.labels == {FINDINGS[0]: 1, FINDINGS[1]: 0, FINDINGS[2]: -1}
    assert "test-set-labeled.csv: it has 1 of the 1 test studies of mimic-cxr-2.0.0-split.csv.gz" in caplog.text


def test_the_radiologists_table_may_lack_no_finding_and_nothing_else(root: Path) -> None:
    columns = [name for name in RADIOLOGIST_COLUMNS if name != "No Finding"]
    _write_radiologists_table(root, columns, [["50000002", *["0.0"] * len(columns)]])
    *_, third = list_mimic(root)
    assert third.labels == {finding: 0 for finding in FINDINGS if finding != "No Finding"}
    _write_radiologists_table(root, columns[1:], [["50000002", *["0.0"] * len(columns[1:])]])
    with pytest.raises(SourceError, match=rf"test-set-labeled\.csv: column '{columns[0]}' is missing"):
        list(list_mimic(root))
    _write_radiologists_table(root, RADIOLOGIST_COLUMNS, [["50000002", *["2.0"] * len(FINDINGS)]])
    with pytest.raises(SourceError, match=r"label '2\.0' of Atelectasis"):
        list(list_mimic(root))


def test_the_table_of_the_negbio_labeler_is_not_read(root: Path) -> None:
    before = list(list_mimic(root))
    (root / "mimic-cxr-2.0.0-negbio.csv.gz").write_bytes(b"no table")
    assert list(list_mimic(root)) == before
