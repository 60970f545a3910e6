"""The sources on the reference code's own list files, as it publishes them; tables and images are made to fit."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mrm_stream.records import Record
from mrm_stream.sources import nih, siim
from mrm_stream.sources.joins import Join
from mrm_stream.sources.list_files import ListedImage, read_lists
from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.registry import list_records
from mrm_stream.storage.paths import AnyPath


def _table(path: Path, *rows: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _splits(records: list[Record]) -> Counter[str]:
    return Counter(record.split for record in records)


def _listed(records: list[Record], name: str) -> int:
    return sum(name in record.lists for record in records)


def _lists(shared: Path, name: str) -> Path:
    return shared / "data" / "reference-lists" / name


def test_nih(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the labels is that of published predictions for the same list, with their classes' names."""
    lists = _lists(shared, "NIH_ChestX-ray")
    images = read_lists(lists, values=14)
    published = np.load(shared / "data" / "published-predictions" / "nih_refers.npz")
    assert tuple(published["classes"]) == nih.FINDINGS
    rows = ([image.path, "No Finding", image.path.partition("_")[0], "PA"] for image in images)
    _table(tmp_path / "Data_Entry_2017.csv", ["Image Index", "Finding Labels", "Patient ID", "View Position"], *rows)
    (tmp_path / images[0].path).write_bytes(b"image")
    with caplog.at_level(logging.WARNING):
        (record,) = list_records("nih", tmp_path, lists)
    assert record.image_path == images[0].path
    assert "it has 1 of the 112120 images of the lists" in caplog.text

    def all_found(root: AnyPath) -> Join[str]:
        return Join({image.path: image.path for image in images}, root, "images")

    monkeypatch.setattr(nih, "_find_images", all_found)
    records = list(nih.list_nih_by_files(tmp_path, lists))
    assert _splits(records) == {"train": 78_468, "validate": 11_219, "test": 22_433}
    assert [_listed(records, name) for name in ("train_1", "train_10")] == [785, 7_847]
    labels = np.array([list(record.labels.values()) for record in records if record.split == "test"])
    assert (labels == published["labels"]).all()
    assert labels.sum(axis=0).tolist()[-1] == 42  # Hernia
    assert len({record.subject for record in records}) == 21_528 + 3_090 + 6_187


# Spelt out here, as found by joining the lists with the published table: not what the source says of itself.
BECAME = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1}


def _chexpert_row(image: ListedImage, *, swapped: bool) -> list[str]:
    """The table's row that became a list's line, with all that is present uncertain where the lists make that 1."""
    order = list(BECAME)
    if swapped:
        order[0], order[4] = order[4], order[0]
    values = dict(zip(order, image.values, strict=True))
    cells = ["" if values.get(f) is None else _uncertain(f, values[f]) for f in FINDINGS]
    return [image.path, "Frontal", "AP", *cells]


def _uncertain(finding: str, value: int) -> str:
    return "-1.0" if BECAME[finding] == value else f"{value}.0"


@pytest.mark.parametrize("swapped", [False, True])
def test_chexpert(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, swapped: bool) -> None:
    lists = _lists(shared, "CheXpert")
    images = read_lists(lists, values=5)
    for name in ("train", "valid"):
        rows = [_chexpert_row(image, swapped=swapped) for image in images if f"/{name}/" in image.path]
        _table(tmp_path / f"{name}.csv", ["Path", "Frontal/Lateral", "AP/PA", *FINDINGS], *rows)
    first = tmp_path / images[0].path.partition("/")[2]
    first.parent.mkdir(parents=True)
    first.write_bytes(b"image")
    with caplog.at_level(logging.WARNING):
        records = list_records("chexpert", tmp_path, lists)
    assert _splits(records)["validate"] == 5_000
    assert _splits(records)["test"] == 234
    assert [_listed(records, name) for name in ("train_1", "train_10")] == [2_184, 21_841]
    assert ("have other labels in the tables" in caplog.text) == swapped
    assert all(record.image_path.startswith("valid/") == (record.split == "test") for record in records)


def test_rsna(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The test list is of the challenge's test images, which its tables do not have."""
    lists = _lists(shared, "RSNA_Pneumonia")
    images = [image for image in read_lists(lists, values=1) if image.split != "test"]
    ids = [(Path(image.path).stem, image.values[0]) for image in images]
    box = {0: ["", "", "", "", "0"], 1: ["1", "2", "3", "4", "1"]}
    header = ["patientId", "x", "y", "width", "height", "Target"]
    _table(tmp_path / "stage_2_train_labels.csv", header, *([name, *box[value]] for name, value in ids))
    _table(tmp_path / "stage_2_detailed_class_info.csv", ["patientId", "class"], *([name, "Normal"] for name, _ in ids))
    (tmp_path / "stage_2_train_images").mkdir()
    (tmp_path / images[0].path).write_bytes(b"image")
    with caplog.at_level(logging.WARNING):
        records = list_records("rsna", tmp_path, lists)
    assert not caplog.records
    assert _splits(records) == {"train": 25_184, "validate": 1_500, "test": 3_000}
    assert [_listed(records, name) for name in ("train_1", "train_10")] == [251, 2_518]
    tests = [record for record in records if record.split == "test"]
    assert {record.image_path.partition("/")[0] for record in tests} == {"stage_2_test_images"}
    assert {(*record.labels,) for record in tests} == {("Pneumonia",)}
    positives = {split: sum(r.labels["Pneumonia"] for r in records if r.split == split) for split in _splits(records)}
    shares = {split: round(100 * count / _splits(records)[split], 1) for split, count in positives.items()}
    assert shares == {"train": 23.0, "validate": 14.9, "test": 36.5}


def test_siim(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lists share is packed in each split, and told."""
    lists = _lists(shared, "SIIM-ACR_Pneumothorax")
    images = sorted({image.path for image in read_lists(lists, values=0, may_repeat=True)})
    assert len(images) == 10_675
    _table(tmp_path / "train-rle.csv", ["ImageId", " EncodedPixels"], *([name, " -1"] for name in images))
    monkeypatch.setattr(siim, "_find_images", lambda root: {name: (f"{name}.dcm", "") for name in images})
    with caplog.at_level(logging.WARNING):
        records = list(siim.list_siim_by_files(tmp_path, lists))
    assert _splits(records) == {"train": 7_969, "validate": 1_898, "test": 1_904}
    assert _listed(records, "train_10") == 797
    assert "images are on lists of two splits" in caplog.text
    members = {split: {r.image_path for r in records if r.split == split} for split in _splits(records)}
    assert len(members["train"] & members["validate"]) == 478
    assert len(members["train"] & members["test"]) == 494
    assert len(members["validate"] & members["test"]) == 124


def test_the_label_11_of_the_covid_lists_is_a_1(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared / "data" / "covid-cxr" / "splits" / "viral1"
    with caplog.at_level(logging.WARNING):
        images = {image.path: image for image in read_lists(folder, values=1)}
    assert (images["gr1_lrg-a.jpg"].values, images["gr1_lrg-a.jpg"].split) == ((1,), "test")
    assert "isviral_test.txt, line 1: label 11 is read as 1" in caplog.text
