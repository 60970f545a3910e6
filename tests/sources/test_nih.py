from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.nih import FINDINGS
from mrm_stream.sources.registry import find_source, list_records

# As published in 2017: a comma inside the names of two columns, and one at the end of each line.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
ROWS = {
    "00000001_000.png": ("Cardiomegaly", "1", "PA"),
    "00000001_001.png": ("Cardiomegaly|Emphysema", "1", "PA"),
    "00000002_000.png": ("No Finding", "2", "AP"),
    "00000003_000.png": ("Hernia", "3", "PA"),
}
OFFICIAL = {"train_val_list": "00000001_000.png\n00000001_001.png\n00000002_000.png", "test_list": "00000003_000.png"}


def _row(name: str, findings: str, patient: str, view: str) -> str:
    return f"{name},{findings},0,{patient},058Y,M,{view},2682,2749,0.143,0.143,"


def _write(root: Path, *more_rows: str, header: str = HEADER, folder: str = "images", **lists: str) -> Path:
    lines = [header, *(_row(name, *cells) for name, cells in ROWS.items()), *more_rows]
    root.mkdir(exist_ok=True)
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    for name, content in (OFFICIAL | lists).items():
        (root / f"{name}.txt").write_text(content)
    for name in ROWS:
        _put(root / folder, name)
    return root


def _put(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"image")


def _lists(folder: Path, **lists: str) -> Path:
    folder.mkdir()
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def _line(name: str, *present: str) -> str:
    return f"{name} {' '.join(str(int(finding in present)) for finding in FINDINGS)}\n"


def test_the_official_split_and_all_findings(tmp_path: Path) -> None:
    records = list_records("nih", _write(tmp_path))
    absent = dict.fromkeys(FINDINGS, 0)
    assert records[1] == Record(
        key="00000001_001",
        image_path="images/00000001_001.png",
        subject="1",
        view="PA",
        split="train",
        labels=absent | {"Cardiomegaly": 1, "Emphysema": 1},
    )
    assert (records[2].labels, records[2].view) == (absent, "AP")
    assert [record.split for record in records] == ["train", "train", "train", "test"]
    assert not find_source("nih").has_reports


@pytest.mark.parametrize("folder", ["images", "images_001/images", "images_012", ""])
def test_each_published_layout(tmp_path: Path, folder: str) -> None:
    paths = [record.image_path for record in list_records("nih", _write(tmp_path, folder=folder))]
    assert paths == [f"{folder}/{name}".lstrip("/") for name in ROWS]
    assert all((tmp_path / path).is_file() for path in paths)


def test_images_in_several_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path, _row("00000004_000.png", "Mass", "4", "PA"), _row("00000005_000.png", "Mass", "5", "PA"))
    (root / "test_list.txt").write_text("00000003_000.png\n00000004_000.png\n00000005_000.png\n")
    _put(root / "images_007" / "images", "00000004_000.png")
    _put(root / "images_007" / "images", "notes.txt")
    with caplog.at_level(logging.WARNING):
        records = list_records("nih", root)
    assert records[-1].image_path == "images_007/images/00000004_000.png"
    assert "it has 5 of the 6 images of Data_Entry_2017.csv" in caplog.text


def test_the_later_table_is_preferred(tmp_path: Path) -> None:
    """Its lines do not end in a comma."""
    root = _write(tmp_path)
    lines = [_row(name, "Fibrosis", cells[1], cells[2]).rstrip(",") for name, cells in ROWS.items()]
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([HEADER.rstrip(","), *lines]) + "\n")
    assert all(record.labels["Fibrosis"] == 1 for record in list_records("nih", root))


def test_lists_give_split_and_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path / "nih")
    lists = _lists(
        tmp_path / "lists",
        train_list=_line("00000003_000.png", "Hernia") + _line("00000001_000.png", "Cardiomegaly"),
        train_1=_line("00000001_000.png", "Cardiomegaly").rstrip(),
        val_list=_line("00000002_000.png", "Pneumonia"),
    )
    with caplog.at_level(logging.WARNING):
        records = list_records("nih", root, lists)
    assert [(record.key, record.split, record.lists) for record in records] == [
        ("00000001_000", "train", ("train_1", "train_list")),
        ("00000003_000", "train", ("train_list",)),
        ("00000002_000", "validate", ("val_list",)),
    ]
    assert [sum(record.labels.values()) for record in records] == [1, 1, 1]
    assert records[0].labels["Cardiomegaly"] == 1
    assert records[1].labels["Hernia"] == 1
    assert records[2].labels["Pneumonia"] == 1
    assert (records[0].subject, records[0].view) == ("1", "PA")
    assert "1 of 3 listed images have other labels in Data_Entry_2017.csv" in caplog.text


def test_the_order_of_the_labels_is_not_the_sorted_one(tmp_path: Path) -> None:
    lists = _lists(tmp_path / "lists", train_1="00000001_000.png 0 0 1 1 0 0 0 1 0 0 0 0 0 1\n")
    (record,) = list_records("nih", _write(tmp_path / "nih"), lists)
    present = [finding for finding, value in record.labels.items() if value]
    assert present == ["Effusion", "Infiltration", "Pneumothorax", "Hernia"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (_row("00000001_000.png", "Mass", "1", "PA"), "key appears twice: '00000001_000.png' on lines 2 and 6"),
        (_row("../0000001_000.png", "Mass", "1", "PA"), "line 6: Image Index is not of the expected form: '../"),
        (_row("00000009_000.jpg", "Mass", "1", "PA"), "line 6: Image Index is not of the expected form"),
        (_row("00000009_000.png", "Mass|Wart", "1", "PA"), "line 6: unknown finding 'Wart'"),
        (_row("00000009_000.png", "Mass|No Finding", "1", "PA"), "line 6: unknown finding"),
        (_row("00000009_000.png", "", "1", "PA"), "line 6: unknown finding"),
        (
            _row("00000009_000.png", "Mass", "1", "PA"),
            "'00000009_000.png' is not among the images of .*/train_val_list.txt and .*/test_list.txt, '0000000",
        ),
        ("00000009_000.png,Mass,0", "line 6: the row has 3 cells, the header has 12"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, row: str, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        list_records("nih", _write(tmp_path, row))


def test_bad_trees_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="column 'Patient ID' is missing"):
        list_records("nih", _write(tmp_path / "column", header=HEADER.replace("Patient ID", "Patient")))
    with pytest.raises(SourceError, match=r"test_list\.txt, line 1: image '00000001_000\.png' is in the training list"):
        list_records("nih", _write(tmp_path / "both", test_list="00000001_000.png\n"))
    with pytest.raises(SourceError, match=r"'00000003_000\.png' on lines 1 and 2"):
        list_records("nih", _write(tmp_path / "twice", test_list="00000003_000.png\n00000003_000.png\n"))
    root = _write(tmp_path / "lists")
    (root / "test_list.txt").unlink()
    with pytest.raises(SourceError, match=r"test_list\.txt: the list does not exist"):
        list_records("nih", root)
    with pytest.raises(SourceError, match="there are no images"):
        list_records("nih", _write(tmp_path / "images", folder="elsewhere"))
    (root / "Data_Entry_2017.csv").unlink()
    with pytest.raises(SourceError, match=r"there is neither Data_Entry_2017_v2020\.csv nor Data_Entry_2017\.csv"):
        list_records("nih", root)


@pytest.mark.parametrize(
    ("lists", "what"),
    [
        (
            {"train_1": _line("00000099_000.png")},
            r"train_1\.txt: '00000099_000\.png' is not among the images of .*Data_Entry_2017\.csv, '00000001_000",
        ),
        ({"train_1": _line("../00000001_000.png")}, "line 1: the path leaves its folder"),
        ({"train_1": _line("00000001_000.png") + "00000002_000.png 0 1\n"}, "line 2: 2 labels, expected 14"),
        ({"train_1": _line("00000001_000.png").replace("0\n", "x\n")}, "line 1: label 'x'"),
        ({"README": "a\n"}, r"README\.txt: the list's name says no split"),
        (
            {"train_1": _line("00000001_000.png"), "test_list": _line("00000001_000.png")},
            r"'00000001_000\.png' is in two splits",
        ),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, lists: dict[str, str], what: str) -> None:
    root = _write(tmp_path / "nih")
    with pytest.raises(SourceError, match=what):
        list_records("nih", root, _lists(tmp_path / "lists", **lists))
