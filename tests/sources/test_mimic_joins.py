"""MIMIC-CXR's tables are joined by ids that tools rewrite: read in each way, and counted."""

from __future__ import annotations

import csv
import gzip
import logging
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.sources.joins import Join
from mrm_stream.sources.mimic_tables import FINDINGS, Splits, read_labels
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import parse_path

IMAGES = [(f"aaaa-{number}", f"1000003{number}", f"5041426{number}") for number in range(4)]
BLANK = [""] * (len(FINDINGS) - 1)
JPG_TABLES = {
    "mimic-cxr-2.0.0-metadata": [
        ["dicom_id", "subject_id", "study_id", "ViewPosition"],
        *([*ids, "PA"] for ids in IMAGES),
    ],
    "mimic-cxr-2.0.0-split": [
        ["dicom_id", "study_id", "subject_id", "split"],
        *([image, study, subject, "test"] for image, subject, study in IMAGES),
    ],
    "mimic-cxr-2.0.0-chexpert": [
        ["subject_id", "study_id", *FINDINGS],
        *([subject, study, "1.0", *BLANK] for _, subject, study in IMAGES),
    ],
}  # fmt: skip
LABELED = "mimic-cxr-2.1.0-test-set-labeled"
RADIOLOGISTS = [
    ["study_id", *(finding.replace("Lung Opacity", "Airspace Opacity") for finding in FINDINGS)],
    *([study, "0.0", *BLANK] for _, _, study in IMAGES),
]
LISTS = {
    "cxr-record-list": [
        ["subject_id", "study_id", "dicom_id", "path"],
        *([p, s, image, f"files/p10/p{p}/s{s}/{image}.dcm"] for image, p, s in IMAGES),
    ],
    "cxr-study-list": [
        ["subject_id", "study_id", "path"],
        *([p, s, f"files/p10/p{p}/s{s}.txt"] for _, p, s in IMAGES),
    ],
}
SOURCES = {"mimic": JPG_TABLES | {LABELED: RADIOLOGISTS}, "mimic-dicom": JPG_TABLES | {LABELED: RADIOLOGISTS} | LISTS}


def _write(root: Path, tables: dict[str, list[list[str]]]) -> Path:
    for name, rows in tables.items():
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    for image, subject, study in IMAGES:
        folder = root / f"files/p10/p{subject}/s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".jpg", ".dcm"):
            (folder / f"{image}{suffix}").write_bytes(b"image")
        folder.with_suffix(".txt").write_text(f" FINAL REPORT\n of study {study}")
    return root


def _rewritten(table: list[list[str]], rewrite: Callable[[str], str], *columns: str) -> list[list[str]]:
    header, *rows = table
    return [
        header,
        *([rewrite(c) if name in columns else c for name, c in zip(header, row, strict=True)] for row in rows),
    ]


WAYS: dict[str, Callable[[str], str]] = {
    "float": "{}.0".format,
    "power": lambda cell: f"{int(cell):.7e}",
    "grouped": lambda cell: f"{int(cell):,}",
    "zeros": "00{}".format,
    "blanks": " {} ".format,
    "quotes": '"{}"'.format,
    "apostrophe": "'{}".format,
    "formula": '="{}"'.format,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("source", "table"), [(source, table) for source, tables in SOURCES.items() for table in tables]
)
def test_ids_that_a_tool_rewrote_in_one_table_match_as_before(
    tmp_path: Path, source: str, table: str, way: str
) -> None:
    expected = list_records(source, _write(tmp_path, SOURCES[source]))
    assert [record.labels for record in expected] == [{"Atelectasis": 0}] * 4
    rewritten = _rewritten(SOURCES[source][table], WAYS[way], "subject_id", "study_id")
    assert rewritten != SOURCES[source][table]
    assert list_records(source, _write(tmp_path, {table: rewritten})) == expected


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rewrite", [" {} ".format, '"{}"'.format])
def test_names_of_images_may_be_quoted_too(tmp_path: Path, source: str, rewrite: Callable[[str], str]) -> None:
    expected = list_records(source, _write(tmp_path, SOURCES[source]))
    for table, rows in SOURCES[source].items():
        if "dicom_id" in rows[0]:
            assert list_records(source, _write(tmp_path, {table: _rewritten(rows, rewrite, "dicom_id")})) == expected


@pytest.mark.parametrize("source", SOURCES)
def test_rounded_ids_are_refused_by_name(tmp_path: Path, source: str) -> None:
    for table, rows in SOURCES[source].items():
        if source == "mimic-dicom" and table.endswith("metadata"):
            continue  # only its views are read
        _write(tmp_path, SOURCES[source] | {table: _rewritten(rows, lambda _: "5.04143E+07", "study_id")})
        with pytest.raises(
            SourceError, match=rf"{table}\.csv, line 2: study_id is '5\.04143E\+07', a number that lost"
        ):
            list_records(source, tmp_path)
        with pytest.raises(SourceError, match=rf"{table}\.csv, line 2: study_id is not of the expected form: 'nan'"):
            list_records(source, _write(tmp_path, {table: _rewritten(rows, lambda _: "nan", "study_id")}))


@pytest.mark.parametrize("source", SOURCES)
def test_a_table_of_other_studies_is_an_error(tmp_path: Path, source: str) -> None:
    table = "mimic-cxr-2.0.0-chexpert"
    other = _rewritten(SOURCES[source][table], lambda cell: str(int(cell) + 100), "study_id")
    with pytest.raises(SourceError, match="none of the 4 ") as caught:
        list_records(source, _write(tmp_path, SOURCES[source] | {table: other}))
    assert f"{table}.csv" in str(caught.value)
    assert "'50414260'" in str(caught.value)
    assert "'50414360'" in str(caught.value)


def test_views_of_other_images_are_an_error(tmp_path: Path) -> None:
    other = _rewritten(JPG_TABLES["mimic-cxr-2.0.0-metadata"], lambda cell: f"b{cell}", "dicom_id")
    with pytest.raises(SourceError, match=r"none of the 4 images of .*: 'aaaa-0' there, 'baaaa-0' here"):
        list_records("mimic-dicom", _write(tmp_path, SOURCES["mimic-dicom"] | {"mimic-cxr-2.0.0-metadata": other}))


def test_few_labels_are_a_warning_and_the_count_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path, JPG_TABLES)
    for kept, level in ((3, "INFO"), (2, "INFO"), (1, "WARNING")):
        _write(root, {"mimic-cxr-2.0.0-chexpert": JPG_TABLES["mimic-cxr-2.0.0-chexpert"][: 1 + kept]})
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert sum(bool(record.labels) for record in list_records("mimic", root)) == kept
        told = [record for record in caplog.records if "chexpert.csv: it has" in record.getMessage()]
        assert [record.levelname for record in told] == [level]
        assert f"it has {kept} of the 4 studies of mimic-cxr-2.0.0-metadata.csv" in told[0].getMessage()


def test_radiologists_labels_without_a_test_split_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path, SOURCES["mimic-dicom"])
    (root / "mimic-cxr-2.0.0-split.csv").unlink()
    with caplog.at_level(logging.WARNING):
        assert list_records("mimic-dicom", root)[0].labels == {"Atelectasis": 1}
    assert f"{LABELED}.csv is not used: no study is known to be of the test split" in caplog.text


def _zip(root: Path, prefix: str = "") -> None:
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/", "")
        for path in sorted(root.glob("files/p*/p*/s*.txt")):
            archive.write(path, prefix + path.relative_to(root).as_posix())


def test_a_zip_of_another_layout_is_an_error(tmp_path: Path) -> None:
    root = _write(tmp_path, JPG_TABLES)
    _zip(root, "reports/")
    with pytest.raises(SourceError, match=r"mimic-cxr-reports\.zip: none of the 4 reports of .* is in it: 'files/p10/.*"
                       r"s50414260\.txt' there, 'reports/files/p10/.*s50414260\.txt' here"):  # fmt: skip
        list_records("mimic", root)


def test_reports_that_were_unpacked_beside_their_zip_are_compared_with_it(tmp_path: Path) -> None:
    root = _write(tmp_path, JPG_TABLES)
    _zip(root)
    records = list_records("mimic", root)
    assert all(read_report(root, record) for record in records)
    copy = root / "files/p10/p10000031/s50414261.txt"
    for edited in (" FINAL REPORT\n of study 50414269", ""):
        copy.write_text(edited)
        with pytest.raises(SourceError, match="the report in the zip is not the same as its unpacked copy") as caught:
            read_report(root, records[1])
        assert "mimic-cxr-reports.zip::files/p10/p10000031/s50414261.txt" in str(caught.value.where)
        assert f"The copy is {copy}." in str(caught.value.remedy)
        assert all(read_report(root, records[number]) for number in (0, 2, 3))
    copy.unlink()
    assert read_report(root, records[1])


def test_below_a_remote_root_the_zip_is_read_and_the_other_form_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PhysioNet's own buckets have both, and nobody can move one away there."""
    root = _write(tmp_path, JPG_TABLES)
    _zip(root)
    remote = parse_path(f"memory://{tmp_path.name}")
    for path in root.rglob("*.*"):
        (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    records = list_records("mimic", remote)
    assert all(str(record.report_path).startswith("mimic-cxr-reports.zip::") for record in records)
    assert caplog.text.count("the reports are there twice; those of mimic-cxr-reports.zip are read") == 1


@pytest.mark.parametrize("count", [49, 50])
def test_a_few_test_studies_may_have_no_labels_of_radiologists_and_many_may_not(tmp_path: Path, count: int) -> None:
    table = tmp_path / "mimic-cxr-2.0.0-chexpert.csv"
    header = ",".join(("subject_id", "study_id", *FINDINGS))
    table.write_text("\n".join([header, *(f"1,{study}{',' * len(FINDINGS)}" for study in range(1, count + 1))]))
    theirs = ",".join(("study_id", *("Airspace Opacity" if name == "Lung Opacity" else name for name in FINDINGS)))
    (tmp_path / f"{LABELED}.csv").write_text(f"{theirs}\n999{',' * len(FINDINGS)}\n")
    studies = {str(study): True for study in range(1, count + 1)}
    splits = Splits(Path("split.csv"), Join({}, "split.csv", "images"), studies)
    with pytest.raises(SourceError, match="none of the 50 test studies") if count == 50 else nullcontext():
        read_labels(tmp_path, table, splits)


@pytest.mark.parametrize(
    ("source", "table"), [(source, table) for source, tables in SOURCES.items() for table in tables]
)
def test_an_edited_table_beside_its_compressed_form_is_an_error(tmp_path: Path, source: str, table: str) -> None:
    root = _write(tmp_path, SOURCES[source])
    expected = list_records(source, root)
    plain = root / f"{table}.csv"
    (root / f"{table}.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert list_records(source, root) == expected
    plain.write_text(plain.read_text().replace("\r\n", "\n", 1))
    with pytest.raises(
        SourceError, match=rf"{table}\.csv\.gz and {table}\.csv are both there, and differ from line 1 on"
    ):
        list_records(source, root)
