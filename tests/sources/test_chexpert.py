from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.chexpert import LISTED_UNCERTAIN
from mrm_stream.sources.registry import find_source, list_records

# The tables' own order, which is not the sorted one.
FINDINGS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]


def _row(path: str, side: str, projection: str, **labels: str) -> list[str]:
    cells = {finding.replace(" ", "_"): "" for finding in FINDINGS} | labels
    return [f"CheXpert-v1.0-small/{path}", "Female", "68", side, projection, *cells.values()]


TRAIN = [
    _row("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", No_Finding="1.0", Edema="0.0"),
    _row("train/patient00002/study2/view1_frontal.jpg", "Frontal", "PA", Edema="-1.0", Pleural_Effusion="1.0"),
    _row("train/patient00002/study2/view2_lateral.jpg", "Lateral", "", Edema="-1.0", Pleural_Effusion="1.0"),
]
VALID = [_row("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "AP", Cardiomegaly="1.0")]
TEST = [_row("test/patient64741/study1/view1_frontal.jpg", "Frontal", "AP", Fracture="0.0")]


def _write(root: Path, header: list[str] = HEADER, **tables: list[list[str]]) -> Path:
    """Write the tables, and the images that they name."""
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in ({"train": TRAIN, "valid": VALID} | tables).items():
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        for row in rows:
            path = row[0].partition("/")[2]
            if ".." not in path:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(b"image")
    return root


def _lists(folder: Path, **lists: str) -> Path:
    folder.mkdir()
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def test_rows_become_records(tmp_path: Path) -> None:
    records = list_records("chexpert", _write(tmp_path, test=TEST))
    assert records[2] == Record(
        key="train-patient00002-study2-view2_lateral",
        image_path="train/patient00002/study2/view2_lateral.jpg",
        subject="patient00002",
        study="patient00002-study2",
        view="Lateral",
        split="train",
        labels={"Edema": -1, "Pleural Effusion": 1},
    )
    assert [record.labels for record in records[:2]] == [
        {"No Finding": 1, "Edema": 0},
        {"Edema": -1, "Pleural Effusion": 1},
    ]
    assert [record.view for record in records] == ["AP", "PA", "Lateral", "AP", "AP"]
    assert [record.split for record in records] == ["train", "train", "train", "validate", "test"]
    assert not find_source("chexpert").has_reports


def test_the_test_table_may_be_absent(tmp_path: Path) -> None:
    assert [record.split for record in list_records("chexpert", _write(tmp_path))] == ["train"] * 3 + ["validate"]


@pytest.mark.parametrize("folder", ["CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_the_root_may_be_the_folder_or_its_parent(tmp_path: Path, folder: str) -> None:
    """Whatever folder the tables name: copies are renamed. The keys stay."""
    inside = list_records("chexpert", _write(tmp_path / folder))
    above = list_records("chexpert", tmp_path)
    assert [record.image_path for record in above] == [f"{folder}/{record.image_path}" for record in inside]
    assert [record.key for record in above] == [record.key for record in inside]
    assert all((tmp_path / record.image_path).is_file() for record in above)


def test_which_copy_must_be_clear(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"there is no train\.csv in it, nor in CheXpert-v1\.0-small or CheXpert-v1\.0"
    ):
        list_records("chexpert", tmp_path)
    for folder in ("CheXpert-v1.0-small", "CheXpert-v1.0"):
        _write(tmp_path / folder)
    with pytest.raises(SourceError, match=r"there are both CheXpert-v1\.0-small and CheXpert-v1\.0 in it"):
        list_records("chexpert", tmp_path)


def test_lists_give_split_and_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path / "CheXpert-v1.0")
    lists = _lists(
        tmp_path / "lists",
        train_1="CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg 0 0 0 1 1\n",
        train_10="CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg 0 0 0 1 1\n",
        val_list="CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg 0 0 0 1 0\n",
        test_list="CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg 0 1 0 0 0\n",
    )
    with caplog.at_level(logging.WARNING):
        first, second, third = list_records("chexpert", root, lists)
    assert first == Record(
        key="train-patient00002-study2-view1_frontal",
        image_path="train/patient00002/study2/view1_frontal.jpg",
        subject="patient00002",
        study="patient00002-study2",
        view="PA",
        split="train",
        labels={"Atelectasis": 0, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1},
        lists=("train_1", "train_10"),
    )
    assert (second.split, second.labels["Edema"]) == ("validate", 1)
    assert (third.split, third.labels["Cardiomegaly"], sum(third.labels.values())) == ("test", 1, 1)
    # An uncertain Edema is 1 on the lists, and a blank 0: the first agrees. The 0 in the table of the second does not.
    assert "1 of 3 listed images have other labels in the tables" in caplog.text


def test_the_listed_findings_are_among_the_tables_columns() -> None:
    assert set(LISTED_UNCERTAIN) < set(FINDINGS)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (TRAIN[0], r"key appears twice: 'train/patient00001/study1/view1_frontal\.jpg' on lines 2 and 5"),
        (_row("train/patient00003/study1/view1_frontal.jpg", "Frontal", "AP", Edema="x"), "5: label 'x' of Edema"),
        (_row("train/patient00003/study1/view1_frontal.jpg", "Frontal", "AP", Edema="0.5"), "5: label '0.5' of Edema"),
        (_row("train/../../patient00003/study1/view1_frontal.jpg", "Frontal", "AP"), "5: Path is not of the expected"),
        (_row("../train/patient00003/study1/view1_frontal.jpg", "Frontal", "AP"), "5: Path is not of the expected"),
        (_row("train/patient00003/study1/../view1_frontal.jpg", "Frontal", "AP"), "5: Path is not of the expected"),
        (_row("valid/patient00003/study1/view1_frontal.jpg", "Frontal", "AP"), "5: Path is not of the expected"),
        (_row("train/patient00003", "Frontal", "AP"), "5: Path is not of the expected form"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, row: list[str], what: str) -> None:
    with pytest.raises(SourceError, match=what):
        list_records("chexpert", _write(tmp_path, train=[*TRAIN, row]))


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column 'Pleural Effusion' is missing"):
        list_records("chexpert", _write(tmp_path / "column", [name.replace("Effusion", "Fluid") for name in HEADER]))
    patient = [_row("valid/patient00001/study9/view1_frontal.jpg", "Frontal", "AP")]
    with pytest.raises(SourceError, match="subject 'patient00001' is in two splits: train and validate"):
        list_records("chexpert", _write(tmp_path / "splits", valid=patient))
    root = _write(tmp_path / "valid")
    (root / "valid.csv").unlink()
    with pytest.raises(SourceError, match=r"there is neither valid\.csv\.gz nor valid\.csv"):
        list_records("chexpert", root)


LISTED = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"


@pytest.mark.parametrize(
    ("lists", "what"),
    [
        (
            {"train_1": LISTED.replace("study1", "study7") + " 0 0 0 0 0"},
            r"train_1\.txt: 'train/patient00001/study7/view1_frontal\.jpg' is not among the images of .*, 'train/pat",
        ),
        (
            {"train_1": "README 0 0 0 0 0"},
            r"train_1\.txt: 'README' is not among the images of .*, 'train/patient00001/study1/view1_",
        ),
        ({"train_1": "../" + LISTED + " 0 0 0 0 0"}, "line 1: the path leaves its folder"),
        ({"train_1": LISTED + " 0 0 0 0"}, "line 1: 4 labels, expected 5"),
        ({"train_1": LISTED + " 0 0 0 0 -1"}, "line 1: label '-1'"),
        ({"list": LISTED + " 0 0 0 0 0"}, "the list's name says no split"),
        ({"train_1": f"{LISTED} 0 0 0 0 0\n{LISTED} 0 0 0 0 0"}, "on lines 1 and 2"),
        (
            {"train_1": f"{LISTED} 0 0 0 0 0\n{LISTED.replace('-small', '')} 0 0 0 0 0"},
            "one image is listed as 'CheXpert-v1.0-small/train/.*' and as 'CheXpert-v1.0/train/",
        ),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, lists: dict[str, str], what: str) -> None:
    root = _write(tmp_path / "chexpert")
    with pytest.raises(SourceError, match=what):
        list_records("chexpert", root, _lists(tmp_path / "lists", **lists))
