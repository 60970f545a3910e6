from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.errors import SourceError
from mrm_stream.sources.registry import list_records
from mrm_stream.sources.siim import PIXELS, read_relative_runs, united_runs
from mrm_stream.storage.paths import AnyPath, parse_path

SIDE = 1024
A, B, C, D = (f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875160.{number}" for number in (11, 222, 3333, 44444))


def _place(root: Path, *image_ids: str) -> Path:
    for image_id in image_ids:
        folder = root / "dicom-images-train" / image_id.replace(".1.4.", ".1.2.") / image_id.replace(".1.4.", ".1.3.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image_id}.dcm").write_bytes(b"image")
    return root


def _write(root: Path, rows: list[tuple[str, str]], header: str = "ImageId, EncodedPixels") -> Path:
    """The table as published: a space after each comma."""
    lines = [header, *(f"{image_id}, {cell}" for image_id, cell in rows), ""]
    (root / "train-rle.csv").write_text("\n".join(lines))
    return root


def _decode_relative(cell: str) -> np.ndarray:
    """The challenge's rule, pixel by pixel: a mask of the image as it is seen, (H, W) of bool."""
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    numbers = [int(number) for number in cell.split()]
    if numbers != [-1]:
        position = 0
        for skipped, length in zip(numbers[::2], numbers[1::2], strict=True):
            position += skipped
            flat[position : position + length] = True
            position += length
    return flat.reshape(SIDE, SIDE).T


def _encode_relative(mask_HW: np.ndarray) -> str:
    """The inverse: gaps and lengths down the columns."""
    flat = np.concatenate([[0], mask_HW.T.reshape(-1).astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {length}" for gap, length in zip(gaps, ends - starts, strict=True)) or "-1"


def _decode_absolute(runs: str) -> np.ndarray:
    """`Record.mask_runs`, by looking up each run's pixels one by one: (H, W) of bool."""
    mask_HW = np.zeros((SIDE, SIDE), dtype=bool)
    numbers = [int(number) for number in runs.split()]
    for first, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(first - 1, first - 1 + length):
            mask_HW[pixel % SIDE, pixel // SIDE] = True
    return mask_HW


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """A few rectangles and single pixels, the image's edges and corners among them."""
    edge = st.integers(0, SIDE - 1) | st.sampled_from([0, SIDE - 1])
    mask_HW = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(edge), draw(edge)
        mask_HW[top : top + draw(st.integers(1, 40)), left : left + draw(st.integers(1, 40))] = True
    return mask_HW


@settings(max_examples=40, deadline=None)
@given(st.lists(masks(), min_size=1, max_size=3))
def test_the_runs_are_the_union_of_the_masks_that_the_challenge_encoded(drawn: list[np.ndarray]) -> None:
    cells = [_encode_relative(mask_HW) for mask_HW in drawn]
    for mask_HW, cell in zip(drawn, cells, strict=True):
        assert (_decode_relative(cell) == mask_HW).all()
    runs = united_runs([run for cell in cells for run in read_relative_runs(cell, "line 2")])
    assert (_decode_absolute(runs) == np.logical_or.reduce(drawn)).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12), max_size=3))
def test_any_numbers_decode_as_the_challenge_decodes_them(regions: list[list[tuple[int, int]]]) -> None:
    """Runs that touch, of no pixels, or over each other included; the result is sorted and no two runs of it touch."""
    cells = [" ".join(f"{skipped} {length}" for skipped, length in pairs) for pairs in regions]
    expected = np.zeros((SIDE, SIDE), dtype=bool)
    for cell in cells:
        expected |= _decode_relative(cell)
    runs = united_runs([run for cell in cells for run in read_relative_runs(cell, "line 2")])
    assert (_decode_absolute(runs) == expected).all()
    numbers = [int(number) for number in runs.split()]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert all(first + length < later for (first, length), (later, _) in pairwise(pairs))
    assert all(length > 0 for _, length in pairs)


def test_runs_may_end_with_the_image_and_no_further() -> None:
    assert united_runs(read_relative_runs(f"0 {PIXELS}", "line 2")) == f"1 {PIXELS}"
    assert united_runs(read_relative_runs(f"{PIXELS - 1} 1", "line 2")) == f"{PIXELS} 1"
    # Relative starts add up: each of these numbers alone would be inside.
    with pytest.raises(SourceError, match=r"ends at pixel 1,048,577, an image has 1,048,576"):
        read_relative_runs(f"5 5 {PIXELS - 10} 1", "line 2")


def test_the_rows_of_an_image_are_united_and_the_empty_are_empty(tmp_path: Path) -> None:
    root = _write(_place(tmp_path, A, B), [(A, "9 3 2 1"), (B, "-1"), (A, "10 3")])
    first, second = list_records("siim", root)
    assert (first.key, first.mask_runs, first.labels) == (A.replace(".", "-"), "10 4 15 1", {"Pneumothorax": 1})
    assert (second.mask_runs, second.labels) == ("", {"Pneumothorax": 0})
    study = A.replace(".1.4.", ".1.2.")
    assert first.image_path == f"dicom-images-train/{study}/{A.replace('.1.4.', '.1.3.')}/{A}.dcm"
    assert (first.study, first.subject, first.split) == (study, "", "train")


@pytest.mark.parametrize("folder", ["dicom-images-train", "dicom-images-train/more"])
def test_a_copy_without_folders_by_study_is_read_too(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / f"{A}.dcm").write_bytes(b"image")
    (record,) = list_records("siim", _write(tmp_path, [(A, "-1")]))
    assert (record.image_path, record.study) == (f"{folder}/{A}.dcm", "")


def test_images_without_a_row_and_rows_without_an_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (record,) = list_records("siim", _write(_place(tmp_path, A, B, C), [(A, "-1"), (D, "1 1")]))
    assert record.key == A.replace(".", "-")
    assert "dicom-images-train: it has 1 of the 2 images of train-rle.csv" in caplog.text
    assert "2 of the 3 DICOMs have no row" in caplog.text


def _write_lists(folder: Path, **lists: list[str]) -> Path:
    """As published: an ImageId a line, no labels."""
    folder.mkdir(exist_ok=True)
    for name, image_ids in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids))
    return folder


def test_an_image_of_two_published_lists_is_in_both_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(_place(tmp_path, A, B, C), [(A, "1 2"), (B, "-1"), (C, "3 4")])
    lists = _write_lists(
        tmp_path / "lists", train_list=[A, B], train_10=[A], train_1=[A], val_list=[C, D], test_list=[A]
    )
    with caplog.at_level(logging.WARNING):
        records = list_records("siim", root, lists)
    keys = {image_id: image_id.replace(".", "-") for image_id in (A, B, C)}
    assert {record.key: record.split for record in records} == {
        f"{keys[A]}-train": "train",
        f"{keys[B]}-train": "train",
        f"{keys[C]}-validate": "validate",
        f"{keys[A]}-test": "test",
    }
    by_key = {record.key: record for record in records}
    assert by_key[f"{keys[A]}-test"].mask_runs == by_key[f"{keys[A]}-train"].mask_runs == "2 2"
    assert {"train_1", "train_10"} <= set(by_key[f"{keys[A]}-train"].lists)
    assert not {"train_1", "train_10"} & set(by_key[f"{keys[A]}-test"].lists)
    assert "dicom-images-train and train-rle.csv: it has 4 of the 5 images of the lists" in caplog.text


@pytest.mark.parametrize(
    ("image_id", "cell", "what"),
    [
        (A, "1 2 3", "EncodedPixels has 3 numbers"),
        (A, "", "EncodedPixels has 0 numbers"),
        (A, "5 -3", "EncodedPixels has '-3' among"),
        (A, "-1 4", "EncodedPixels has '-1' among"),
        (A, "-1 -1", "EncodedPixels has '-1' among"),
        (A, "1 2_0", "EncodedPixels has '2_0' among"),
        (A, "1 \u0663", r"EncodedPixels has \(not shown"),
        (A, f"1 {'9' * 5000}", r"EncodedPixels has \(not shown"),
        (A, f"{PIXELS} 1", "an image has 1,048,576"),
        ("../../etc/passwd", "-1", "ImageId is not of the expected form"),
        ("1..2", "-1", "ImageId is not of the expected form"),
        ("1.2/3", "-1", "ImageId is not of the expected form"),
        ("1" * 65, "-1", "ImageId is not of the expected form"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, image_id: str, cell: str, what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        list_records("siim", _write(_place(tmp_path, A), [(A, "-1"), (image_id, cell)]))
    assert str(caught.value.where).endswith("train-rle.csv, line 3")


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no folder dicom-images-train"):
        list_records("siim", _write(tmp_path, [(A, "-1")]))
    with pytest.raises(SourceError, match="column 'EncodedPixels' is missing"):
        list_records("siim", _write(_place(tmp_path, A), [(A, "-1")], header="ImageId, Pixels"))
    _write(tmp_path, [(A, "-1")])
    (tmp_path / "dicom-images-train" / f"{A}.dcm").write_bytes(b"image")
    with pytest.raises(SourceError, match="two DICOMs of one ImageId"):
        list_records("siim", tmp_path)


@pytest.fixture
def remote() -> Iterator[AnyPath]:
    root = parse_path("memory://test-siim/root")
    assert not isinstance(root, Path)
    yield root
    root.fs.store.clear()


def test_remote_storage_is_walked_as_a_disk_is(tmp_path: Path, remote: AnyPath) -> None:
    root = _write(_place(tmp_path, A, B), [(A, "1 2"), (B, "-1")])
    for path in root.rglob("*"):
        if path.is_file():
            (remote / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    assert list_records("siim", remote) == list_records("siim", root)
