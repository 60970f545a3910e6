"""One table in two forms, and tables that match nothing, in every source: never one of them in silence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.sources.padchest import TABLE
from mrm_stream.sources.registry import list_records
from tests.sources import (
    test_chexpert,
    test_covid,
    test_nih,
    test_openi,
    test_padchest,
    test_rsna,
    test_siim,
    test_vindr,
)


def _training_csv(root: Path) -> None:
    (root / "training.csv").write_text("image_path,report_content\na.jpg,Clear.\n")
    (root / "a.jpg").write_bytes(b"image")


def _padchest(root: Path) -> None:
    test_padchest.write(root, test_padchest.ROWS)
    (root / "1111_aaaa.png").write_bytes(b"image")


def _siim(root: Path) -> None:
    test_siim._write(test_siim._place(root, test_siim.A), [(test_siim.A, "-1")])


TREES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "training-csv": (_training_csv, ["training.csv"]),
    "nih": (lambda root: test_nih._write(root), ["Data_Entry_2017.csv"]),
    "chexpert": (
        lambda root: test_chexpert._write(root, test=test_chexpert.TEST),
        ["train.csv", "valid.csv", "test.csv"],
    ),
    "covid": (lambda root: test_covid._write(root, test_covid.ROWS), ["metadata.csv"]),
    "rsna": (
        lambda root: test_rsna._write(root, test_rsna.LABELS),
        ["stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"],
    ),
    "siim": (_siim, ["train-rle.csv"]),
    "padchest": (_padchest, [TABLE]),
    "vindr": (
        lambda root: test_vindr._write(root),
        [f"annotations/{name}_{split}.csv" for name in ("image_labels", "annotations") for split in ("train", "test")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "table"), [(name, table) for name, (_, tables) in TREES.items() for table in tables]
)
def test_two_forms_of_a_table_must_be_equal(tmp_path: Path, source: str, table: str) -> None:
    TREES[source][0](tmp_path)
    expected = list_records(source, tmp_path)
    plain, packed = tmp_path / table, tmp_path / f"{table}.gz"
    content = plain.read_bytes()
    packed.write_bytes(gzip.compress(content))
    assert list_records(source, tmp_path) == expected
    plain.write_bytes(content + b"\n")
    with pytest.raises(SourceError, match=r"\.csv\.gz and .*\.csv are both there, and differ from line"):
        list_records(source, tmp_path)
    plain.unlink()
    assert list_records(source, tmp_path) == expected


def test_open_i_s_archive_and_its_unpacked_copy_must_be_equal(tmp_path: Path) -> None:
    for form in ("archive", "tree"):
        test_openi.write(tmp_path, test_openi.REPORTS, form)
    (tmp_path / "CXR2_IM-0001-1001.png").write_bytes(b"image")
    expected = list_records("openi", tmp_path)
    report = tmp_path / "ecgen-radiology/2.xml"
    text = report.read_text()
    report.write_text(text.replace("Normal", "Ill"))
    with pytest.raises(SourceError, match=r"1 reports are not the same in .*, ecgen-radiology/2\.xml among them"):
        list_records("openi", tmp_path)
    report.unlink()
    with pytest.raises(SourceError, match=r"1 reports are not the same in .*, ecgen-radiology/2\.xml among them"):
        list_records("openi", tmp_path)
    report.write_text(text)
    archive = tmp_path / "NLMCXR_reports.tgz"
    archive.write_bytes(gzip.decompress(archive.read_bytes()))  # as a browser leaves it
    assert list_records("openi", tmp_path) == expected


def test_images_of_another_part_are_an_error(tmp_path: Path) -> None:
    root = test_nih._write(tmp_path, folder="elsewhere")
    test_nih._put(root / "images", "00000099_000.png")
    with pytest.raises(SourceError, match=r"none of the 4 images of .*: '00000001_000\.png' there, '00000099_000"):
        list_records("nih", root)


def test_a_siim_table_of_other_images_is_an_error(tmp_path: Path) -> None:
    test_siim._write(test_siim._place(tmp_path, test_siim.A), [(test_siim.B, "-1")])
    with pytest.raises(SourceError, match=f"none of the 1 images of train-rle.csv is in it: '{test_siim.B}' there"):
        list_records("siim", tmp_path)


def test_lists_of_other_images_are_an_error(tmp_path: Path) -> None:
    _siim(tmp_path)
    lists = test_siim._write_lists(tmp_path / "lists", train_list=[test_siim.B])
    with pytest.raises(SourceError, match=f"none of the 1 images of the lists is in it: '{test_siim.B}' there"):
        list_records("siim", tmp_path, lists)
    covid = tmp_path / "covid"
    covid.mkdir()
    other = test_covid._write_lists(tmp_path / "covid1", iscovid_train="z.jpg 1\n")
    with pytest.raises(SourceError, match=r"none of the 1 images of the lists is in it: 'images/z\.jpg' there"):
        list_records("covid", test_covid._write(covid, test_covid.ROWS), other)
