from __future__ import annotations

import csv
import gzip
import logging
import zipfile
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.sources.mimic_dicom import list_mimic_dicom
from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import parse_path

RECORD_HEADER = ["subject_id", "study_id", "dicom_id", "path"]
RECORDS = [
    ["10000032", "50414267", "aaaa-1", "files/p10/p10000032/s50414267/aaaa-1.dcm"],
    ["10000032", "50414267", "aaaa-2", "files/p10/p10000032/s50414267/aaaa-2.dcm"],
    ["11000011", "50000002", "bbbb-1", "files/p11/p11000011/s50000002/bbbb-1.dcm"],
]
STUDIES = [
    ["10000032", "50414267", "files/p10/p10000032/s50414267.txt"],
    ["11000011", "50000002", "files/p11/p11000011/s50000002.txt"],
]
SPLITS = [["aaaa-1", "50414267", "train"], ["aaaa-2", "50414267", "train"], ["bbbb-1", "50000002", "test"]]


def write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def swap(rows: list[list[str]], row: int, column: int, value: str) -> list[list[str]]:
    rows = [list(cells) for cells in rows]
    rows[row][column] = value
    return rows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of two studies as MIMIC-CXR has them, without anything of MIMIC-CXR-JPG."""
    write_table(tmp_path / "cxr-record-list.csv.gz", RECORD_HEADER, RECORDS)
    write_table(tmp_path / "cxr-study-list.csv.gz", ["subject_id", "study_id", "path"], STUDIES)
    for *_, path in RECORDS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"image")
    for _, study, path in STUDIES:
        (tmp_path / path).write_text(f" FINAL REPORT\n of study {study}")
    return tmp_path


def add_tables_of_jpg(root: Path) -> None:
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "split"], SPLITS)
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", ["dicom_id", "ViewPosition"],
                [["aaaa-1", "PA"], ["aaaa-2", "LATERAL"], ["bbbb-1", ""]])  # fmt: skip
    blank = [""] * (len(FINDINGS) - 1)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *FINDINGS],
                [["10000032", "50414267", "1.0", *blank], ["11000011", "50000002", "-1.0", *blank]])  # fmt: skip


def test_each_image_becomes_a_record_of_the_training_split(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = list_records("mimic-dicom", root)
    assert (first.key, first.subject, first.study) == ("aaaa-1", "10000032", "50414267")
    assert first.image_path == "files/p10/p10000032/s50414267/aaaa-1.dcm"
    assert first.report_path == second.report_path == "files/p10/p10000032/s50414267.txt"
    assert read_report(root, third) == " FINAL REPORT\n of study 50000002"
    assert {(record.view, record.split, len(record.labels)) for record in (first, second, third)} == {("", "train", 0)}
    for what in ("every record is of the training split", "no view is known", "no record has labels"):
        assert what in caplog.text


def test_tables_of_mimic_cxr_jpg_tell_splits_views_and_labels(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_tables_of_jpg(root)
    first, second, third = list_records("mimic-dicom", root)
    assert [record.split for record in (first, second, third)] == ["train", "train", "test"]
    assert [record.view for record in (first, second, third)] == ["PA", "LATERAL", ""]
    assert first.labels == second.labels == {FINDINGS[0]: 1}
    assert third.labels == {FINDINGS[0]: -1}
    assert not caplog.records


def test_radiologists_labels_take_the_place_of_the_labeler_s(root: Path) -> None:
    add_tables_of_jpg(root)
    names = ["Airspace Opacity" if finding == "Lung Opacity" else finding for finding in FINDINGS]
    with (root / "mimic-cxr-2.1.0-test-set-labeled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["study_id", *names], ["50000002", *["0.0"] * len(names)]])
    first, _, third = list_mimic_dicom(root)
    assert first.labels == {FINDINGS[0]: 1}
    assert third.labels == dict.fromkeys(FINDINGS, 0)


def test_reports_may_lie_in_the_zip(root: Path) -> None:
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for _, _, path in STUDIES:
            archive.write(root / path, path)
            (root / path).unlink()
    first, *_ = list_records("mimic-dicom", root)
    assert first.report_path == "mimic-cxr-reports.zip::files/p10/p10000032/s50414267.txt"
    assert read_report(root, first) == " FINAL REPORT\n of study 50414267"


def test_a_root_may_be_remote(root: Path) -> None:
    remote = parse_path("memory://mimic-dicom-test")
    for path in root.rglob("*.*"):
        (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    assert list_records("mimic-dicom", remote) == list_records("mimic-dicom", root)


@pytest.mark.parametrize(
    ("table", "rows", "what", "line"),
    [
        ("record", [*RECORDS, RECORDS[0]], "key appears twice: 'aaaa-1' on lines 2 and 5", None),
        ("record", swap(RECORDS, 0, 3, "../other/aaaa-1.dcm"), r"the path is '\.\./other/aaaa-1\.dcm', and not", 2),
        ("record", swap(RECORDS, 1, 3, RECORDS[0][3]), "the path is .*aaaa-1.dcm', and not '.*aaaa-2.dcm'", 3),
        ("record", [["../../x", "5", "a", "files/p../p../../x/s5/a.dcm"]], "subject_id is not of the expected form", 2),
        ("record", [["10000032", "50414267", "", "files/p10/p10000032/s50414267/.dcm"]], "not of the expected form", 2),
        ("record", [["", "5", "a", "files/p/p/s5/a.dcm"]], "subject_id is not of the expected form", 2),
        ("study", STUDIES[:1], r"'50000002' is not among the studies of .*-list\.csv\.gz, '50414267' here", 4),
        (
            "record",
            swap(swap(RECORDS, 2, 1, "50414267"), 2, 3, "files/p11/p11000011/s50414267/bbbb-1.dcm"),
            "study '50414267' is another subject's in the study list",
            4,
        ),
        ("study", [*STUDIES, STUDIES[1]], "key appears twice: '50000002' on lines 3 and 4", None),
        ("study", swap(STUDIES, 0, 2, "/etc/s50414267.txt"), "the path is '/etc/s50414267.txt', and not", 2),
    ],
)
def test_a_bad_row_is_named(root: Path, table: str, rows: list[list[str]], what: str, line: int | None) -> None:
    path = root / f"cxr-{table}-list.csv.gz"
    write_table(path, RECORD_HEADER if table == "record" else ["subject_id", "study_id", "path"], rows)
    with pytest.raises(SourceError, match=what) as caught:
        list_records("mimic-dicom", root)
    named = path if table == "study" and "not among" not in what else root / "cxr-record-list.csv.gz"
    assert caught.value.where == (f"{named}, line {line}" if line else str(named))


def test_ids_that_lead_out_of_the_root_are_refused_though_both_lists_agree(root: Path) -> None:
    write_table(root / "cxr-record-list.csv.gz", RECORD_HEADER, [["../../x", "5", "a", "files/p../p../../x/s5/a.dcm"]])
    write_table(root / "cxr-study-list.csv.gz", ["subject_id", "study_id", "path"],
                [["../../x", "5", "files/p../p../../x/s5.txt"]])  # fmt: skip
    with pytest.raises(SourceError, match="not of the expected form"):
        list_records("mimic-dicom", root)


def test_an_image_without_a_split_is_refused_where_there_are_splits(root: Path) -> None:
    add_tables_of_jpg(root)
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "split"], SPLITS[:2])
    with pytest.raises(SourceError, match=r"'bbbb-1' is not among the images of .*split\.csv\.gz, 'aaaa-1' here"):
        list_records("mimic-dicom", root)


@pytest.mark.parametrize("table", ["record", "study"])
def test_lists_that_are_missing_cut_short_or_of_another_form_are_named(root: Path, table: str) -> None:
    path = root / f"cxr-{table}-list.csv.gz"
    packed = path.read_bytes()
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(SourceError, match=rf"cxr-{table}-list\.csv\.gz: the table cannot be read"):
        list_records("mimic-dicom", root)
    write_table(path, ["subject_id", "study", "dicom_id", "path"], RECORDS)
    with pytest.raises(SourceError, match=r"column 'study_id' is missing\n.*'study'"):
        list_records("mimic-dicom", root)
    path.unlink()
    with pytest.raises(SourceError, match=f"neither cxr-{table}-list.csv.gz nor"):
        list_records("mimic-dicom", root)


def test_no_reports_at_all_is_an_error(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _, _, path in STUDIES:
        (root / path).unlink()
    with caplog.at_level(logging.ERROR), pytest.raises(SourceError, match="no reports under the root"):
        list_records("mimic-dicom", root)
