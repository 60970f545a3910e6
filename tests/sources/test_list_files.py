from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.sources import list_files
from mrm_stream.sources.list_files import ListedImage, read_list, read_lists


def _write(folder: Path, **lists: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def _refused(folder: Path, match: str, *, values: int | None = 2, may_repeat: bool = False) -> None:
    with pytest.raises(SourceError, match=match):
        read_lists(folder, values=values, may_repeat=may_repeat)


def test_an_image_on_several_lists_of_a_split_is_returned_once(tmp_path: Path) -> None:
    folder = _write(
        tmp_path,
        train_list="a.png 0 1\nb.png 1 0\nc.png 0 0\n",
        train_10="b.png 1 0\na.png 0 1",  # no line end at the end, as NIH's
        train_1="b.png 1 0 \r\n\n",  # a space at the end, as RSNA's
        test_list="d/e.png 1 1\n",
        iscovid_val="f.png 0 0\n",
    )
    assert read_lists(folder, values=2) == [
        ListedImage("b.png", (1, 0), "train", ("train_1", "train_10", "train_list")),
        ListedImage("a.png", (0, 1), "train", ("train_10", "train_list")),
        ListedImage("c.png", (0, 0), "train", ("train_list",)),
        ListedImage("f.png", (0, 0), "validate", ("iscovid_val",)),
        ListedImage("d/e.png", (1, 1), "test", ("test_list",)),
    ]


def test_lists_without_labels(tmp_path: Path) -> None:
    folder = _write(tmp_path, train_1="1.2.276.0\n1.2.276.1\n")
    assert [image.values for image in read_lists(folder, values=None)] == [(), ()]
    _refused(_write(tmp_path, val_list="1.2.276.2 1\n"), r"val_list\.txt, line 1: 1 labels, expected 0", values=None)


def test_an_image_in_two_splits_is_refused_or_returned_for_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _write(tmp_path, train_1="a\nb\n", train_list="b\na\n", test_list="a\na\nc\n")
    _refused(folder, r"test_list\.txt, line 1: 'a' is in two splits: train \(train_1\.txt\) and test", values=0)
    with caplog.at_level(logging.WARNING):
        images = read_lists(folder, values=0, may_repeat=True)
    assert [(image.path, image.split) for image in images] == [
        ("a", "train"),
        ("b", "train"),
        ("a", "test"),
        ("c", "test"),
    ]
    assert images[0].lists == ("train_1", "train_list")
    assert images[2].lists == ("test_list",)
    assert "1 of 3 images are on lists of two splits" in caplog.text


def test_an_image_twice_on_one_list_is_refused(tmp_path: Path) -> None:
    _refused(
        _write(tmp_path, train_1="a 0 0\nb 0 0\na 0 0\n"), r"train_1\.txt: key appears twice: 'a' on lines 1 and 3"
    )


@pytest.mark.parametrize("may_repeat", [False, True])
def test_different_labels_are_refused(tmp_path: Path, may_repeat: bool) -> None:
    folder = _write(tmp_path, train_1="a 0 1\n", train_10="b 0 0\na 1 1\n")
    _refused(folder, r"train_10\.txt, line 2: 'a' has other labels on train_1\.txt", may_repeat=may_repeat)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a 0", "1 labels, expected 2"),
        ("a 0 1 1", "3 labels, expected 2"),
        ("a", "0 labels, expected 2"),
        ("a 0 x", "label 'x'"),
        ("a 0 -1", "label '-1'"),
        ("a 0 1.0", "label '1.0'"),
        ("../a 0 1", "the path leaves its folder: '../a'"),
        ("b/../../a 0 1", "the path leaves its folder"),
        ("/etc/a 0 1", "the path leaves its folder"),
        ("b//a 0 1", "the path leaves its folder"),
        ("b\\a 0 1", "the path leaves its folder"),
        ("a" * 1_001, "the line is longer than 1,000 characters"),
        ("The lungs are clear.", "3 labels, expected 2"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path: Path, line: str, what: str) -> None:
    _refused(_write(tmp_path, train_1=f"ok 0 1\n{line}\n"), r"train_1\.txt, line 2: " + re.escape(what))


def test_no_message_repeats_prose(tmp_path: Path) -> None:
    for line in ("a 0 no\u2014effusion;", "../no;effusion 0 1"):
        with pytest.raises(SourceError, match="not shown") as caught:
            read_lists(_write(tmp_path, train_1=line), values=2)
        assert "effusion" not in str(caught.value)


def test_the_published_slip_is_read_as_what_was_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reference code's viral1/isviral_test.txt has a label 11."""
    with caplog.at_level(logging.WARNING):
        (image,) = read_lists(_write(tmp_path, isviral_test="gr1_lrg-a.jpg 11\n"), values=1)
    assert image.values == (1,)
    assert "isviral_test.txt, line 1: label 11 is read as 1" in caplog.text


@pytest.mark.parametrize(("name", "what"), [("README", "no split"), ("train_val_list", "two splits")])
def test_a_list_must_name_one_split(tmp_path: Path, name: str, what: str) -> None:
    _refused(_write(tmp_path, train_1="a 0 1\n", **{name: "b 0 1\n"}), rf"{name}\.txt: the list's name says {what}")


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _refused(tmp_path, r"there are no list files \(\*\.txt\)")
    _refused(tmp_path / "absent", "there are no list files")
    _refused(_write(tmp_path / "empty", train_1="\n \n"), r"train_1\.txt: the list is empty")
    (_write(tmp_path / "bytes") / "test_1.txt").write_bytes(b"a\xff 0 1\n")
    _refused(tmp_path / "bytes", "not UTF-8")
    (tmp_path / "folder" / "test_1.txt").mkdir(parents=True)
    _refused(tmp_path / "folder", "the list cannot be read")
    with pytest.raises(SourceError, match="the list does not exist"):
        next(read_list(tmp_path / "train.txt", values=None))
    monkeypatch.setattr(list_files, "LIST_LIMIT", 5)
    _refused(_write(tmp_path / "large", train_1="a 0 1\n"), "the list is larger than 5 bytes")


def test_what_an_editor_puts_before_the_first_path_is_no_part_of_it(tmp_path: Path) -> None:
    for name, text in (("train_1", "a.png 0 1\r\nb.png 1 0\r\n"), ("test_1", "c.png 0 0\n")):
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [image.path for image in read_lists(tmp_path, values=2)] == ["a.png", "b.png", "c.png"]


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    folder = _write(tmp_path, train_1="a 0 1\n")
    (folder / "._train_1.txt").write_bytes(b"\0\xff")
    assert len(read_lists(folder, values=2)) == 1


def test_the_published_covid_lists(shared: Path) -> None:
    """Counts of `wc -l`; some of the collection's images are not on them."""
    folder = shared / "data" / "covid-cxr" / "splits"
    images = read_lists(folder / "covid1", values=1)
    assert Counter(image.split for image in images) == {"train": 324, "validate": 46, "test": 91}
    assert sum(image.values[0] for image in images) == 249 + 30 + 54
    assert sum(image.values[0] for image in read_lists(folder / "viral1", values=1)) == 255 + 37 + 66
