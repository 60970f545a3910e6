from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Box
from mrm_stream.sources.registry import list_records

A, B, C = (f"{letter * 8}-0b1c-4d2e-8f3a-{letter * 12}" for letter in "abc")

LABELS = [
    f"{A},,,,,0",
    f"{B},264.0,152.0,213.0,379.0,1",
    f"{B},562.0,152.0,256.0,453.0,1",
    f"{C},,,,,0",
]
CLASSES = [f"{A},No Lung Opacity / Not Normal", f"{B},Lung Opacity", f"{B},Lung Opacity", f"{C},Normal"]


def _write(root: Path, labels: list[str], classes: list[str] = CLASSES, header: str = "x,y,width,height") -> Path:
    (root / "stage_2_train_images").mkdir(exist_ok=True)
    for patient in (A, B, C):
        (root / "stage_2_train_images" / f"{patient}.dcm").write_bytes(b"image")
    (root / "stage_2_train_labels.csv").write_text("\n".join([f"patientId,{header},Target", *labels, ""]))
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *classes, ""]))
    return root


def _write_lists(folder: Path, **lists: list[str]) -> Path:
    """Each line as the published ones: path, label, and a space at its end."""
    folder.mkdir(exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"stage_2_train_images/{line} \n" for line in lines))
    return folder


def test_the_rows_of_an_image_are_one_record_with_all_its_boxes(tmp_path: Path) -> None:
    records = list_records("rsna", _write(tmp_path, LABELS))
    assert [record.key for record in records] == [A, B, C]
    assert records[1].image_path == f"stage_2_train_images/{B}.dcm"
    assert records[1].boxes == (
        Box("Pneumonia", 264.0, 152.0, 213.0, 379.0),
        Box("Pneumonia", 562.0, 152.0, 256.0, 453.0),
    )
    assert records[0].boxes == records[2].boxes == ()
    assert {(record.split, record.subject, record.lists) for record in records} == {("train", "", ())}


def test_target_and_class_are_labels(tmp_path: Path) -> None:
    names = ("Pneumonia", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
    values = [tuple(record.labels[name] for name in names) for record in list_records("rsna", _write(tmp_path, LABELS))]
    assert values == [(0, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 1)]


def test_the_lists_say_split_and_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = _write_lists(
        tmp_path / "lists",
        train_list=[f"{B}.dcm 1"],
        train_10=[f"{B}.dcm 1"],
        train_1=[f"{B}.dcm 1"],
        val_list=[f"{A}.dcm 1"],
        test_list=[f"{C}.dcm 1"],
    )
    with caplog.at_level(logging.WARNING):
        records = {record.key: record for record in list_records("rsna", _write(tmp_path, LABELS), lists)}
    assert {key: record.split for key, record in records.items()} == {A: "validate", B: "train", C: "test"}
    assert {"train_1", "train_10"} <= set(records[B].lists)
    assert len(records[B].boxes) == 2
    assert records[B].labels["Lung Opacity"] == 1
    assert records[C].labels == {
        "Pneumonia": 1,
        "Lung Opacity": 0,
        "No Lung Opacity / Not Normal": 0,
        "Normal": 1,
    }
    assert "2 labels differ from stage_2_train_labels.csv" in caplog.text


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (f"../{A}.dcm", "the path leaves its folder"),
        (f"more/{A}.dcm", "is not among the images of .*stage_2_train_labels.csv"),
        (f"{A}.png", "is not among the images of .*stage_2_train_labels.csv"),
        ("dddd.dcm", f"'stage_2_train_images/dddd.dcm' is not among .*, 'stage_2_train_images/{A}.dcm' here"),
    ],
)
def test_a_listed_image_that_is_not_in_the_table_is_refused(tmp_path: Path, name: str, what: str) -> None:
    lists = _write_lists(tmp_path / "lists", train_list=[f"{B}.dcm 1", f"{name} 0"])
    with pytest.raises(SourceError, match=what):
        list_records("rsna", _write(tmp_path, LABELS), lists)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("../../etc/passwd,,,,,0", "patientId is not of the expected form"),
        (f"{C}/..,,,,,0", "patientId is not of the expected form"),
        (f"{A},1,2,3,wide,1", "height of a box is no number: 'wide'"),
        (f"{A},nan,2,3,4,1", "x of a box is no number"),
        (f"{A},1,2,inf,4,1", "width of a box is no number"),
        (f"{A},1,,3,4,1", "y of a box is no number"),
        (f"{A},-1,2,3,4,1", "outside the image"),
        (f"{A},1,2,0,4,1", "a box is empty"),
        (f"{A},,,,,2", "Target is '2'"),
        (f"{A},,,,,The lungs are clear.", r"Target is \(not shown"),
        (f"{A},,,,,1", "Target and box contradict"),
        (f"{A},1,2,3,4,0", "Target and box contradict"),
        (f"{A},1,2,3,4,1", "rows of Target 0 and of Target 1"),
        ("dddd,,,,,0", f"'dddd' is not among the images of .*stage_2_detailed_class_info.csv, '{A}' here"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str, what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("rsna", _write(tmp_path, [*LABELS, row]))
    assert str(caught.value.where).endswith("stage_2_train_labels.csv, line 6")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("../x,Normal", "patientId is not of the expected form"),
        (f"{A},Clear", "unknown class 'Clear'"),
        (f"{A},Normal", "has two classes"),
    ],
)
def test_a_bad_class_is_refused_with_its_line(tmp_path: Path, row: str, what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("rsna", _write(tmp_path, LABELS, [*CLASSES, row]))
    assert str(caught.value.where).endswith("stage_2_detailed_class_info.csv, line 6")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column 'height' is missing"):
        list_records("rsna", _write(tmp_path, LABELS, header="x,y,width,tallness"))
