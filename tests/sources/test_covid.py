from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.covid import COLUMNS
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records

ROWS = [
    ["2", "0", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "images", "a.jpg", "Fever."],
    ["2", "3", "COVID-19, ARDS", "AP Supine", "X-ray", "images", "b.b.png", "Worse."],
    ["3", "", "todo", "?", "X-ray", "images", "c.jpg", "Cough."],
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
    assert [read_report(root, record) for record in list_records("covid", root)] == ["Fever.", "Worse.", "Cough."]


def test_radiographs_without_notes_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path, [*ROWS[:2], [*ROWS[2][:7], " "]])
    with caplog.at_level(logging.INFO):
        assert len(list_records("covid", root)) == 2
    assert "1 radiographs without notes are skipped" in caplog.text


def test_images_that_are_not_there_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        records = list_records("covid", _write(tmp_path, ROWS, "a.jpg"))
    assert [record.image_path for record in records] == ["images/b.b.png", "images/c.jpg"]
    assert "images: it has 2 of the 3 images of metadata.csv" in caplog.text


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


def _write_lists(folder: Path, **lists: str) -> Path:
    folder.mkdir()
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def test_lists_give_the_split_and_the_label(tmp_path: Path) -> None:
    root = _write(tmp_path, ROWS)
    lists = _write_lists(tmp_path / "covid1", iscovid_train="b.b.png 1\na.jpg 1\n", iscovid_test="c.jpg 0\n")
    first, second, third = list_records("covid", root, lists)
    assert first == Record(
        key=first.key,
        image_path="images/b.b.png",
        report_text="Worse.",
        subject="2",
        study="2-3",
        view="AP Supine",
        split="train",
        labels={"COVID-19": 1},
        lists=("iscovid_train",),
    )
    assert (second.image_path, second.report_text) == ("images/a.jpg", "Fever.")
    assert (third.split, third.labels, third.report_text) == ("test", {"COVID-19": 0}, "Cough.")
    assert {record.key for record in list_records("covid", root)} == {first.key, second.key, third.key}


def test_the_other_task_is_told_by_the_lists_names(tmp_path: Path) -> None:
    root = _write(tmp_path, ROWS)
    lists = _write_lists(tmp_path / "viral1", isviral_val="a.jpg 1\n")
    (record,) = list_records("covid", root, lists)
    assert (record.split, record.labels) == ("validate", {"Viral": 1})
    _write_lists(tmp_path / "mixed", isviral_val="a.jpg 1\n", iscovid_val="a.jpg 1\n")
    with pytest.raises(SourceError, match=r"the finding of isviral_val\.txt is not known, or another than that of isc"):
        list_records("covid", root, tmp_path / "mixed")
    with pytest.raises(SourceError, match=r"the finding of bacterial_val\.txt is not known"):
        list_records("covid", root, _write_lists(tmp_path / "other", bacterial_val="a.jpg 1\n"))


def test_listed_images_without_a_row_or_a_file_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path, ROWS, "b.b.png")
    (root / "images" / "renamed.jpg").write_bytes(b"image")
    lists = _write_lists(tmp_path / "covid1", iscovid_train="a.jpg 1\nb.b.png 1\nrenamed.jpg 0\ngone.jpg 1\n")
    with caplog.at_level(logging.WARNING):
        known, unknown = list_records("covid", root, lists)
    assert known.subject == "2"
    assert unknown == Record(
        key="renamed", image_path="images/renamed.jpg", labels={"COVID-19": 0}, lists=("iscovid_train",)
    )
    assert "metadata.csv: it has 2 of the 4 images of the lists" in caplog.text
    assert "images: it has 2 of the 4 images of the lists" in caplog.text


def test_bad_lists_are_refused(tmp_path: Path) -> None:
    root = _write(tmp_path, ROWS)
    for name, line, what in (
        ("outside", "../a.jpg 1", "line 1: the path leaves its folder"),
        ("labels", "a.jpg 1 0", "line 1: 2 labels, expected 1"),
        ("twice", "a.jpg 1\na.jpg 1", "'a.jpg' on lines 1 and 2"),
    ):
        with pytest.raises(SourceError, match=what):
            list_records("covid", root, _write_lists(tmp_path / name, iscovid_train=line))


def test_the_real_lists(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The counts are those of the lists; 40 and 26 of their images are on the disk, but not in this table."""
    root = shared / "data" / "covid-cxr"
    with caplog.at_level(logging.WARNING):
        records = list_records("covid", root, root / "splits" / "covid1")
    assert Counter(record.split for record in records) == {"train": 324, "validate": 46, "test": 91}
    assert sum(record.labels["COVID-19"] for record in records) == 333
    assert sum(not record.subject for record in records) == 40
    assert "metadata.csv: it has 421 of the 461 images of the lists" in caplog.text
    for number in (1, 2, 3):
        records = list_records("covid", root, root / "splits" / f"viral{number}")
        assert len(records) == 394
        assert sum(not record.subject for record in records) == 26


def test_the_real_collection(shared: Path) -> None:
    root = shared / "data" / "covid-cxr"
    records = list_records("covid", root)
    assert len(records) == 511
    assert len({record.subject for record in records}) == 291
    assert Counter(label for record in records for label in record.labels)["COVID-19"] == 342
    assert all(read_report(root, record).strip() for record in records)
