from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.sources.reading import read_image, read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import parse_path

HEADER = [
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order",
    "report", "section_narrative", "section_impression", "age", "split",
]  # fmt: skip
REPORT = "NARRATIVE:\nRadiograph of a phantom.\n\nIMPRESSION:\n\n1.  No change."
ROWS = [
    ["train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view1_frontal.dcm", "Frontal", "AP",
     "patient00001", "2", REPORT, "Radiograph of a phantom.", "1.  No change.", "68", "train"],
    ["train/patient00001/study1/view2_lateral.jpg", "train/patient00001/study1/view2_lateral.dcm", "Lateral", "LL",
     "patient00001", "2", REPORT, "Radiograph of a phantom.", "1.  No change.", "68", "train"],
    ["valid/patient64541/study1/view1_frontal.jpg", "valid/patient64541/study1/view1_frontal.dcm", "Frontal", "",
     "patient64541", "1", " ", "", "", "73", "valid"],
]  # fmt: skip
TABLE = "df_chexpert_plus_240401.csv"


def write(root: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    with (root / TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def swap(column: str, value: str) -> list[list[str]]:
    return [*ROWS[:2], [value if name == column else cell for name, cell in zip(HEADER, ROWS[2], strict=True)]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The PNG release: names as in the table, but for their suffix."""
    for row in ROWS:
        path = (tmp_path / "PNG" / row[0]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row[0].encode())
    return write(tmp_path, ROWS)


def test_each_image_becomes_a_record(root: Path) -> None:
    records = list_records("chexpert-plus", root)
    first, second, third = records
    assert first.image_path == "PNG/train/patient00001/study1/view1_frontal.png"
    assert [read_image(root, record) for record in records] == [row[0].encode() for row in ROWS]
    assert [record.view for record in records] == ["AP", "Lateral", "Frontal"]
    assert [record.split for record in records] == ["train", "train", "validate"]
    assert (first.subject, first.study) == (second.subject, second.study) == ("patient00001", "patient00001-2")
    assert first.key.startswith("view1_frontal-")
    assert third.key != first.key


def test_the_report_is_the_whole_column(root: Path) -> None:
    first, second, third = list_records("chexpert-plus", root)
    assert read_report(root, first) == read_report(root, second) == REPORT
    with pytest.raises(RecordError, match="the report is missing"):
        read_report(root, third)


def test_the_zip_unpacked_into_its_own_folder_will_do(root: Path) -> None:
    (root / "PNG").rename(root / "unpacked")
    (root / "PNG").mkdir()
    (root / "unpacked").rename(root / "PNG" / "PNG")
    first, *_ = list_records("chexpert-plus", root)
    assert first.image_path == "PNG/PNG/train/patient00001/study1/view1_frontal.png"
    assert read_image(root, first)


def test_a_root_may_be_remote(root: Path) -> None:
    remote = parse_path("memory://chexpert-plus-test")
    for path in root.rglob("*.*"):
        (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    assert list_records("chexpert-plus", remote) == list_records("chexpert-plus", root)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([*ROWS, ROWS[0]], "key appears twice: 'PNG/train/patient00001/study1/view1_frontal.png' on lines 2 and 15"),
        (swap("path_to_image", "../patient1/study1/view1_frontal.jpg"), r"path_to_image is '\.\./patient1"),
        (swap("path_to_image", "train/../../view1_frontal.jpg"), "path_to_image is"),
        (swap("path_to_image", "/train/patient1/view1_frontal.jpg"), "path_to_image is"),
        (swap("path_to_image", ""), "line 14: path_to_image is"),
        (swap("path_to_image", "The lungs are clear."), "path_to_image is .not shown"),
        (swap("deid_patient_id", " "), "line 14: deid_patient_id or patient_report_date_order is blank"),
        (swap("patient_report_date_order", ""), "deid_patient_id or patient_report_date_order is blank"),
        (swap("split", "test"), "line 14: split is 'test'\n  Expected train or valid"),
    ],
)
def test_a_bad_row_is_named(root: Path, rows: list[list[str]], what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("chexpert-plus", write(root, rows))
    assert "clear" not in str(caught.value)


def test_tables_that_are_missing_cut_short_or_of_another_form_are_named(root: Path) -> None:
    path = root / TABLE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="line 14: the row has 5 cells, the header has 11"):
        list_records("chexpert-plus", root)
    with pytest.raises(SourceError, match=r"column 'frontal_lateral' is missing\n.*'Frontal/Lateral'"):
        list_records("chexpert-plus", write(root, ROWS, [*HEADER[:2], "Frontal/Lateral", *HEADER[3:]]))
    path.unlink()
    with pytest.raises(SourceError, match=rf"neither {TABLE}.gz nor {TABLE}"):
        list_records("chexpert-plus", root)
