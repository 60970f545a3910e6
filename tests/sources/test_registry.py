from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources import registry
from mrm_stream.sources.registry import SOURCES, find_source, list_records
from mrm_stream.sources.source import Source
from mrm_stream.storage.paths import AnyPath


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Records that the source `made-up` lists, to be filled by the test; `a.jpg` exists."""
    records: list[Record] = []

    def list_made_up(root: AnyPath) -> Iterator[Record]:
        assert root == tmp_path
        yield from records

    module = ModuleType("mrm_stream.sources.made_up")
    module.SOURCE = Source(list_made_up)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.SOURCES, "made-up", "made_up")
    (tmp_path / "a.jpg").write_bytes(b"image")
    return records


def test_the_sources_of_the_command_line() -> None:
    for_pre_training = ["mimic", "mimic-dicom", "chexpert-plus", "openi", "padchest", "training-csv"]
    assert list(SOURCES) == [*for_pre_training, "nih", "chexpert", "rsna", "siim", "covid", "vindr"]
    for name in SOURCES:
        source = find_source(name)
        assert source.has_reports == (name in for_pre_training or name == "covid")
        assert source.has_masks == (name == "siim")
        assert (source.list_by_files is not None) == (name in ("nih", "chexpert", "rsna", "siim", "covid"))


def test_list_files_for_a_source_without_them_are_refused(tmp_path: Path, listed: list[Record]) -> None:
    with pytest.raises(SourceError, match="no list files for made-up"):
        list_records("made-up", tmp_path, tmp_path)
    with pytest.raises(SourceError, match="no such directory"):
        list_records("made-up", tmp_path, tmp_path / "lists")


def test_records_come_in_the_source_s_order(tmp_path: Path, listed: list[Record]) -> None:
    listed += [Record(key="z", image_path="none.jpg"), Record(key="a", image_path="a.jpg", subject="1", split="test")]
    assert list_records("made-up", tmp_path) == listed


def test_an_unknown_source_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown source 'mimc'\n  Did you mean 'mimic'\?"):
        list_records("mimc", tmp_path)


def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such directory"):
        list_records("covid", tmp_path / "none")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "é", "a b", "a\n", "x" * 81])
def test_a_key_that_is_not_valid_is_refused(tmp_path: Path, listed: list[Record], key: str) -> None:
    listed += [Record(key="x" * 80, image_path="a.jpg"), Record(key=key, image_path="b.jpg")]
    with pytest.raises(SourceError, match=r"b\.jpg: key .* is not valid"):
        list_records("made-up", tmp_path)


def test_a_record_that_is_listed_twice_is_refused(tmp_path: Path, listed: list[Record]) -> None:
    listed += [Record(key="a", image_path="a.jpg"), Record(key="a", image_path="a.jpg")]
    with pytest.raises(SourceError, match=r"key appears twice: 'a' of 'a\.jpg' and of 'a\.jpg'"):
        list_records("made-up", tmp_path)


def test_a_key_that_appears_twice_is_refused_with_both_paths(tmp_path: Path, listed: list[Record]) -> None:
    listed += [Record(key="a", image_path="a.jpg"), Record(key="a", image_path="b/a.jpg")]
    with pytest.raises(SourceError, match=r"key appears twice: 'a' of 'a\.jpg' and of 'b/a\.jpg'"):
        list_records("made-up", tmp_path)


def test_a_subject_in_two_splits_is_refused_and_unknown_subjects_are_not(tmp_path: Path, listed: list[Record]) -> None:
    listed += [Record(key="a", image_path="a.jpg"), Record(key="b", image_path="b.jpg", split="test")]
    assert len(list_records("made-up", tmp_path)) == 2
    listed += [
        Record(key=key, image_path="c", subject="7", split=split) for key, split in (("c", "train"), ("d", "test"))
    ]
    with pytest.raises(SourceError, match="subject '7' is in two splits: train and test"):
        list_records("made-up", tmp_path)


def test_an_unknown_split_is_refused(tmp_path: Path, listed: list[Record]) -> None:
    listed += [Record(key="a", image_path="a.jpg", split="val")]
    with pytest.raises(SourceError, match="unknown split 'val'"):
        list_records("made-up", tmp_path)


def test_nothing_listed_and_nothing_there_are_told_apart(tmp_path: Path, listed: list[Record]) -> None:
    with pytest.raises(SourceError, match="no images are listed"):
        list_records("made-up", tmp_path)
    listed += [Record(key="b", image_path="b.jpg"), Record(key="c", image_path="c.jpg")]
    with pytest.raises(SourceError, match="no images under the root: none of the 2 listed exists"):
        list_records("made-up", tmp_path)


def test_cells_that_may_be_a_report_are_not_repeated(tmp_path: Path, listed: list[Record]) -> None:
    sentence = "the lungs are clear"
    wrong = [
        [Record(sentence, sentence)],
        [Record("a", "a.jpg", split=sentence)],
        [Record(split, "a.jpg", subject=sentence, split=split) for split in ("train", "test")],
    ]
    for rows in wrong:
        listed[:] = rows
        with pytest.raises(SourceError, match="not shown") as caught:
            list_records("made-up", tmp_path)
        assert "lungs" not in str(caught.value)
