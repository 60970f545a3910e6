"""Samples by index: whole, from any thread, and refused where the set is damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.formats.manifest import read_manifest, write_manifest
from mrm_stream.formats.shard import read_index
from mrm_stream.stream import opened_shards
from mrm_stream.stream.shard_set import ShardSet

MakeSet = Callable[..., Path]


def test_each_sample_is_what_was_packed(small_set: Path) -> None:
    shards = ShardSet.open(small_set, "train")
    assert len(shards) == 11
    assert shards.shard_sizes == (4, 1, 6)
    for index in range(11):
        sample = shards.sample(index)
        assert (sample.index, sample.key) == (index, f"train-{index}")
        assert isinstance(sample.jpeg, memoryview)
        assert bytes(sample.jpeg) == f"jpeg {index}".encode()
        assert sample.token_ids is not None
        assert sample.token_ids.dtype == "<u2"
        assert sample.token_ids.tolist() == [index % 40 + 4, *range(index % 3)]
        assert shards.metadata(index)["subject"] == f"s{index}"
        assert shards.report(index) == f"report {index}: the lungs are clear"
    assert shards.location(4) == "train-00001.tar: train-4"


def test_splits_are_apart(small_set: Path) -> None:
    validate = ShardSet.open(small_set, "validate")
    assert [validate.sample(index).key for index in range(len(validate))] == ["validate-0", "validate-1"]
    assert validate.fingerprint != ShardSet.open(small_set, "train").fingerprint


def test_fingerprints_tell_sets_apart(make_set: MakeSet, small_set: Path) -> None:
    other = make_set("other", splits={"train": [4, 1, 6], "validate": [2]}, seed=1)
    same = make_set("same", splits={"train": [4, 1, 6], "validate": [2]})
    ours = ShardSet.open(small_set, "train").fingerprint
    assert ours == ShardSet.open(same, "train").fingerprint
    assert ours != ShardSet.open(other, "train").fingerprint


@pytest.mark.parametrize("index", [-1, 11, 10**12])
def test_an_index_out_of_bounds_is_refused(small_set: Path, index: int) -> None:
    shards = ShardSet.open(small_set, "train")
    for read in (shards.sample, shards.metadata, shards.report, shards.location):
        with pytest.raises(IndexError, match="a split of 11"):
            read(index)


def test_views_outlive_the_set(small_set: Path) -> None:
    sample = ShardSet.open(small_set, "train").sample(9)
    assert bytes(sample.jpeg) == b"jpeg 9"
    assert sample.token_ids is not None
    assert sample.token_ids[0] == 13
    assert not sample.token_ids.flags.writeable


def test_a_split_that_is_not_there(small_set: Path) -> None:
    with pytest.raises(ShardError, match=r"'test'.*\n.*train, validate"):
        ShardSet.open(small_set, "test")


def test_an_empty_split(make_set: MakeSet) -> None:
    with pytest.raises(ShardError, match="no samples"):
        ShardSet.open(make_set(splits={"train": [], "validate": [1]}), "train")


def test_an_unfinished_set(make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(splits={"train": [2]})
    (root / "manifest.json").unlink()
    for directory in (root, tmp_path / "nothing"):
        with pytest.raises(ShardError, match="manifest") as refusal:
            ShardSet.open(directory, "train")
        assert refusal.value.remedy


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_missing_file_is_named(make_set: MakeSet, suffix: str) -> None:
    root = make_set(splits={"train": [2, 2]})
    (root / f"train-00001.{suffix}").unlink()
    with pytest.raises(ShardError, match=f"train-00001.{suffix}") as refusal:
        ShardSet.open(root, "train")
    assert refusal.value.remedy


@pytest.mark.parametrize("change", [-10240, -1, 1, 512])
def test_a_tar_of_another_length_is_refused(make_set: MakeSet, change: int) -> None:
    root = make_set(splits={"train": [2, 2]})
    tar = root / "train-00001.tar"
    os.truncate(tar, tar.stat().st_size + change)
    with pytest.raises(ShardError, match=r"train-00001\.tar.*bytes long"):
        ShardSet.open(root, "train")


@pytest.mark.parametrize("name", ["train-00000.tar", "train-00000.idx", "reports.zdict"])
def test_what_may_not_be_read_is_no_damage(make_set: MakeSet, unprivileged: None, name: str) -> None:
    root = make_set(splits={"train": [2]})
    shards = ShardSet.open(root, "train")
    (root / name).chmod(0)
    with pytest.raises(StorageError, match=rf"{name}: cannot be read: permission denied"):
        shards.report(0) if name == "reports.zdict" else shards.sample(0)


def test_a_tar_cut_short_after_opening_is_refused(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [2, 2]})
    shards = ShardSet.open(root, "train")
    shards._opened.index(1)
    os.truncate(root / "train-00001.tar", 1024)
    with pytest.raises(ShardError, match=r"train-00001\.tar.*bytes long"):
        shards.sample(2)
    (root / "train-00001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.tar.*cannot be mapped"):
        shards.sample(2)
    assert shards.sample(0).key == "train-0"


def test_every_flipped_byte_of_an_index_is_found(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [3]})
    path = root / "train-00000.idx"
    whole = path.read_bytes()
    for place in range(len(whole)):
        # 1 turns a digit into another one: the worst kind.
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ShardError, match="train-00000"):
            ShardSet.open(root, "train").sample(1)
    path.write_bytes(whole)
    assert ShardSet.open(root, "train").sample(1).key == "train-1"


def test_another_shards_index_is_refused(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [2, 2]})
    shutil.copy(root / "train-00000.idx", root / "train-00001.idx")
    shards = ShardSet.open(root, "train")
    with pytest.raises(ShardError, match=r"train-00001\.idx"):
        shards.sample(3)
    assert shards.location(3) == "train-00001.tar: sample 2"


def test_a_manifest_that_counts_otherwise_is_refused(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [3]})
    manifest = read_manifest(root)
    shorter = dataclasses.replace(manifest.splits["train"][0], samples=2)
    write_manifest(root, dataclasses.replace(manifest, splits={"train": (shorter,)}))
    with pytest.raises(ShardError, match=r"train-00000\.idx"):
        ShardSet.open(root, "train").sample(0)


def damage(root: Path, row: int, column: int, content: bytes) -> None:
    """Write over one member of the first shard, blanks after it."""
    tar = root / "train-00000.tar"
    table = read_index(tar)
    assert len(content) <= table.sizes[row, column]
    with tar.open("r+b") as file:
        file.seek(int(table.offsets[row, column]))
        file.write(content.ljust(table.sizes[row, column]))


@pytest.mark.parametrize(
    ("tokens", "reason"), [(b"\x31\0\x32\0\x04\0", "vocabulary"), (b"", "absent"), (b"\x04\0\x04", "cut short")]
)
def test_token_ids_that_cannot_be_are_refused(make_set: MakeSet, tokens: bytes, reason: str) -> None:
    shards = ShardSet.open(make_set(splits={"train": [3]}, tokens={"train-1": tokens}), "train")
    with pytest.raises(ShardError, match=rf"train-00000\.tar: train-1: .*{reason}"):
        shards.sample(1)
    assert shards.sample(2).key == "train-2"


@pytest.mark.parametrize("content", [b"\xff", b"[", b"[1]", b'{"a": "\x00'])
def test_damaged_metadata_is_refused(make_set: MakeSet, content: bytes) -> None:
    root = make_set(splits={"train": [3]})
    damage(root, 1, 2, content)
    shards = ShardSet.open(root, "train")
    with pytest.raises(ShardError, match=r"train-00000\.tar: train-1: .*JSON"):
        shards.metadata(1)
    assert shards.metadata(2)["subject"] == "s2"


def test_a_damaged_report_is_refused_without_its_text(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [3]})
    damage(root, 1, 3, b"\x00\x00\x00\x00")
    shards = ShardSet.open(root, "train")
    with pytest.raises(ShardError, match=r"train-00000\.tar: train-1") as refusal:
        shards.report(1)
    assert "lungs" not in str(refusal.value)
    assert shards.report(2).startswith("report 2")


def test_another_dictionary_is_refused(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [3]})
    (root / "reports.zdict").write_bytes(b"another")
    shards = ShardSet.open(root, "train")
    with pytest.raises(ShardError, match=r"reports\.zdict"):
        shards.report(0)
    (root / "reports.zdict").unlink()
    with pytest.raises(ShardError, match=r"reports\.zdict"):
        shards.report(0)


def test_names_in_a_manifest_may_not_leave_the_set(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [3]})
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = "../set/train-00000.tar"
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="manifest"):
        ShardSet.open(root, "train")


def test_file_descriptors_are_bounded(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_shards, "MAPPED_SHARDS", 3)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc: open descriptors cannot be counted")
    shards = ShardSet.open(make_set(splits={"train": [1] * 20}), "train")
    before = len(list(descriptors.iterdir()))
    for _ in range(2):
        for index in range(20):
            assert shards.sample(index).key == f"train-{index}"
            assert len(list(descriptors.iterdir())) <= before + 4
    # Samples in use keep their shards mapped; once they are gone, so are the maps.
    held = [shards.sample(index) for index in range(20)]
    assert [bytes(sample.jpeg) for sample in held] == [f"jpeg {index}".encode() for index in range(20)]
    del held
    assert len(list(descriptors.iterdir())) <= before + 3


def test_the_maps_used_last_are_kept(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_shards, "MAPPED_SHARDS", 2)
    shards = ShardSet.open(make_set(splits={"train": [1] * 3}), "train")
    for index in (0, 1, 0, 2):
        shards.sample(index)
    assert set(shards._opened._maps) == {0, 2}


def test_nothing_is_read_before_it_is_needed(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(splits={"train": [2] * 5})
    read: list[str] = []

    def counted(path: Path, members: tuple[str, ...]) -> object:
        read.append(path.name)
        return read_index(path, members)

    monkeypatch.setattr(opened_shards, "read_index", counted)
    shards = ShardSet.open(root, "train")
    assert read == []
    for _ in range(3):
        shards.sample(5)
        shards.sample(4)
    assert read == ["train-00002.tar"]


def test_many_threads_read_the_same(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_shards, "MAPPED_SHARDS", 2)
    shards = ShardSet.open(make_set(splits={"train": [3] * 8}), "train")
    together = threading.Barrier(4)

    def read(start: int) -> list[tuple[bytes, str]]:
        together.wait(5)
        order = [(start * 7 + step * 5) % 24 for step in range(200)]
        return [(bytes(shards.sample(index).jpeg), shards.report(index)) for index in order]

    with ThreadPoolExecutor(4) as pool:
        for start, found in enumerate(pool.map(read, range(4))):
            expected = [(start * 7 + step * 5) % 24 for step in range(200)]
            assert found == [(f"jpeg {i}".encode(), f"report {i}: the lungs are clear") for i in expected]
