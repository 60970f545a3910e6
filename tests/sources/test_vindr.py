from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Box
from mrm_stream.sources.registry import list_records
from mrm_stream.sources.vindr import FINDINGS

A, B, C, D = (letter * 32 for letter in "abcd")
READERS = ("R8", "R9", "R10")
CORNERS = ["x_min", "y_min", "x_max", "y_max"]

BOXES_TRAIN = [
    [A, "R8", "Cardiomegaly", "10.5", "20.0", "110.5", "70.0"],
    [A, "R9", "No finding", "", "", "", ""],
    [A, "R10", "Cardiomegaly", "12", "21", "100", "69"],
    [B, "R8", "No finding", "", "", "", ""],
]
BOXES_TEST = [[C, "Nodule/Mass", "1", "2", "4", "8"], [D, "No finding", "", "", "", ""]]


def _votes(image_id: str, *seen: set[str]) -> list[list[str]]:
    """One row a reader; a reader who sees nothing says so."""
    rows = []
    for reader, found in zip(READERS, seen, strict=True):
        names = found or {"No finding"}
        assert names <= set(FINDINGS)
        rows.append([image_id, reader, *(str(int(finding in names)) for finding in FINDINGS)])
    return rows


LABELS_TRAIN = [
    *_votes(A, {"Cardiomegaly", "Other diseases"}, set(), {"Cardiomegaly", "Pneumonia"}),
    *_votes(B, set(), {"Pneumonia"}, set()),
]
LABELS_TEST = [[C, *(str(int(finding in ("Nodule/Mass", "Other diseases"))) for finding in FINDINGS)]]
LABELS_TEST += [[D, *(str(int(finding == "No finding")) for finding in FINDINGS)]]


def _table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write(
    root: Path,
    *,
    labels_train: list[list[str]] = LABELS_TRAIN,
    labels_test: list[list[str]] = LABELS_TEST,
    boxes_train: list[list[str]] = BOXES_TRAIN,
    boxes_test: list[list[str]] = BOXES_TEST,
    other_in_test: str = "Other disease",
    suffix: str = ".dicom",
) -> Path:
    for split, image_ids in (("train", (A, B)), ("test", (C, D))):
        (root / split).mkdir(exist_ok=True)
        for image_id in image_ids:
            (root / split / f"{image_id}{suffix}").write_bytes(b"image")
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    in_test = [other_in_test if finding == "Other diseases" else finding for finding in FINDINGS]
    _table(folder / "image_labels_train.csv", ["image_id", "rad_id", *FINDINGS], labels_train)
    _table(folder / "image_labels_test.csv", ["image_id", *in_test], labels_test)
    _table(folder / "annotations_train.csv", ["image_id", "rad_id", "class_name", *CORNERS], boxes_train)
    _table(folder / "annotations_test.csv", ["image_id", "class_name", *CORNERS], boxes_test)
    return root


def test_the_two_folders_are_the_two_splits(tmp_path: Path) -> None:
    records = list_records("vindr", _write(tmp_path))
    assert [(record.key, record.split, record.image_path) for record in records] == [
        (A, "train", f"train/{A}.dicom"),
        (B, "train", f"train/{B}.dicom"),
        (C, "test", f"test/{C}.dicom"),
        (D, "test", f"test/{D}.dicom"),
    ]
    assert {record.subject for record in records} == {""}


def test_a_training_label_is_what_two_of_three_readers_say(tmp_path: Path) -> None:
    records = list_records("vindr", _write(tmp_path))
    present = [{finding for finding, value in record.labels.items() if value} for record in records]
    assert present == [{"Cardiomegaly"}, {"No finding"}, {"Nodule/Mass", "Other diseases"}, {"No finding"}]
    assert all(tuple(record.labels) == FINDINGS for record in records)
    assert {value for record in records for value in record.labels.values()} == {0, 1}


def test_one_of_two_readers_is_no_majority(tmp_path: Path) -> None:
    two = _votes(A, {"Edema"}, set(), set())[:2]
    first = list_records("vindr", _write(tmp_path, labels_train=two, boxes_train=[]))[0]
    assert not any(first.labels.values())


@pytest.mark.parametrize("other", ["Other disease", "Other diseases"])
def test_both_spellings_of_the_other_diseases_are_one_finding(tmp_path: Path, other: str) -> None:
    records = list_records("vindr", _write(tmp_path, other_in_test=other))
    assert [record.labels["Other diseases"] for record in records] == [0, 0, 1, 0]


def test_boxes_are_kept_as_each_reader_drew_them(tmp_path: Path) -> None:
    records = list_records("vindr", _write(tmp_path))
    assert records[0].boxes == (Box("Cardiomegaly", 10.5, 20, 100, 50), Box("Cardiomegaly", 12, 21, 88, 48))
    assert records[2].boxes == (Box("Nodule/Mass", 1, 2, 3, 6),)
    assert records[1].boxes == records[3].boxes == ()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_converted_copy_is_found_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    root = _write(tmp_path, suffix=suffix)
    (root / "train" / "index.html").write_text("listing")
    assert [record.image_path for record in list_records("vindr", root)][::3] == [
        f"train/{A}{suffix}",
        f"test/{D}{suffix}",
    ]


def test_the_original_is_taken_where_there_are_both(tmp_path: Path) -> None:
    _write(tmp_path, suffix=".png")
    root = _write(tmp_path, suffix=".dicom")
    assert all(record.image_path.endswith(".dicom") for record in list_records("vindr", root))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([A, "R8", "Edema", "1", "2", "wide", "4"], "x_max of a box is no number: 'wide'"),
        ([A, "R8", "Edema", "1", "", "3", "4"], "y_min of a box is no number"),
        ([A, "R8", "Edema", "1", "2", "inf", "4"], "x_max of a box is no number"),
        ([A, "R8", "Edema", "5", "2", "3", "4"], "ends before it begins"),
        ([A, "R8", "The lungs are clear.", "1", "2", "3", "4"], "class_name is not of the expected form"),
        (
            [C, "R8", "Edema", "1", "2", "3", "4"],
            rf"'{C}' is not among the images of .*image_labels_train\.csv, '{A}'",
        ),
        (["../x", "R8", "Edema", "1", "2", "3", "4"], "image_id is not of the expected form"),
    ],
)
def test_a_bad_box_is_refused_with_its_line(tmp_path: Path, row: list[str], what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("vindr", _write(tmp_path, boxes_train=[*BOXES_TRAIN, row]))
    assert str(caught.value.where).endswith("annotations_train.csv, line 6")


def test_bad_labels_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"key appears twice: '{A}:R8' on lines 2 and 8"):
        list_records("vindr", _write(tmp_path, labels_train=[*LABELS_TRAIN, LABELS_TRAIN[0]]))
    with pytest.raises(SourceError, match=rf"key appears twice: '{C}' on lines 2 and 4"):
        list_records("vindr", _write(tmp_path, labels_test=[*LABELS_TEST, LABELS_TEST[0]]))
    bad = [C, *("2" if finding == "COPD" else "0" for finding in FINDINGS)]
    with pytest.raises(SourceError, match=r"test\.csv, line 2: label '2' of COPD"):
        list_records("vindr", _write(tmp_path, labels_test=[bad]))
    with pytest.raises(SourceError, match="line 4: image_id is not of the expected form"):
        list_records("vindr", _write(tmp_path, labels_test=[*LABELS_TEST, ["../../x", *LABELS_TEST[0][1:]]]))


def test_a_missing_column_or_folder_is_named(tmp_path: Path) -> None:
    root = _write(tmp_path, other_in_test="Another disease")
    with pytest.raises(SourceError, match="column 'Other diseases' is missing"):
        list_records("vindr", root)
    _write(tmp_path)
    for path in (root / "test").iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="there are no images"):
        list_records("vindr", root)
    (root / "test").rmdir()
    with pytest.raises(SourceError, match="there are no images"):
        list_records("vindr", root)


@pytest.mark.parametrize("missing", ["image_labels_train", "annotations_test"])
def test_of_a_missing_table_the_root_is_told_and_not_the_folder_below_it(tmp_path: Path, missing: str) -> None:
    (_write(tmp_path) / "annotations" / f"{missing}.csv").unlink()
    with pytest.raises(SourceError) as caught:
        list_records("vindr", tmp_path)
    assert caught.value.where == str(tmp_path)
    assert f"neither annotations/{missing}.csv.gz nor" in caught.value.what
    assert caught.value.remedy == "Give the directory that holds annotations/ with this table in it as root."
