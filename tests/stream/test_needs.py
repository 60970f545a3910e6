"""What a task needs of its samples: reports, labels, masks; what a set lacks is told when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mrm_stream.config.base import DataConfig
from mrm_stream.errors import ShardError
from mrm_stream.stream.joined import JoinedSets
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.opening import open_data, open_set
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.stream.source import Needs, reports_of
from tests.stream.conftest import MakeSet

REFUSAL = r"the set has no reports: it is for fine-tuning\n.*Pre-train on a set of radiographs with reports"


@pytest.fixture
def bare(make_set: MakeSet) -> Path:
    """Five samples without reports; the second has other labels, the fourth none."""
    labels = {"train-1": {"edema": -1, "fracture": 0}, "train-3": {}}
    return make_set("bare", splits={"train": [2, 3]}, has_reports=False, labels=labels)


def test_a_set_without_reports_has_images_and_says_what_it_lacks(bare: Path) -> None:
    shards = ShardSet.open(bare, "train")
    assert shards.reports is None
    for index in range(5):
        sample = shards.sample(index)
        assert (sample.key, bytes(sample.jpeg)) == (f"train-{index}", f"jpeg {index}".encode())
        assert (sample.token_ids, sample.labels, sample.mask) == (None, None, None)
        assert shards.metadata(index)["subject"] == f"s{index}"
    assert shards.location(4) == "train-00001.tar: train-4"
    asking: tuple[Callable[[], object], ...] = (
        shards.tokenizer_file,
        lambda: shards.report(0),
        lambda: reports_of(shards),
    )
    for ask in asking:
        with pytest.raises(ShardError, match=REFUSAL):
            ask()


def test_who_needs_reports_is_told_before_anything_is_read(bare: Path, small_set: Path) -> None:
    assert ShardSet.open(small_set, "train", needs=Needs(reports=True)).sample(0).token_ids is not None
    (bare / "train-00000.idx").unlink()
    opening: tuple[Callable[[], object], ...] = (
        lambda: ShardSet.open(bare, "train", needs=Needs(reports=True)),
        lambda: open_data(DataConfig(shards=str(bare)), Needs(reports=True)),
        lambda: open_data(DataConfig(shards=str(small_set), mixture={str(bare): 1.0}), Needs(reports=True)),
        lambda: open_set(bare, "train", DataConfig(), Needs(reports=True)),
    )
    for opened in opening:
        with pytest.raises(ShardError, match=REFUSAL) as refusal:
            opened()
        assert str(refusal.value.where) == str(bare)


def test_labels_come_where_they_are_needed_and_cost_nothing_elsewhere(
    bare: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [ShardSet.open(bare, "train", needs=Needs(labels=True)).sample(index).labels for index in range(5)]
    assert labels == [{"edema": 1}, {"edema": -1, "fracture": 0}, {"edema": 1}, {}, {"edema": 1}]
    with_reports = ShardSet.open(small_set, "train", needs=Needs(labels=True)).sample(7)
    assert with_reports.labels == {"edema": 1}
    assert with_reports.token_ids is not None

    def parse(text: bytes) -> object:
        raise AssertionError("labels were read for nobody")

    monkeypatch.setattr("mrm_stream.stream.shard_set.parse_json", parse)
    assert ShardSet.open(small_set, "train").sample(7).labels is None
    with pytest.raises(AssertionError, match="for nobody"):
        ShardSet.open(small_set, "train", needs=Needs(labels=True)).sample(7)


@pytest.mark.parametrize("labels", [None, [], {"edema": 2}, {"edema": True}, {"edema": 0.0}, {"edema": "1"}])
def test_labels_that_are_none_are_refused_by_sample(make_set: MakeSet, labels: object) -> None:
    root = make_set(splits={"train": [3]}, labels={"train-1": labels})
    shards = ShardSet.open(root, "train", needs=Needs(labels=True))
    with pytest.raises(ShardError, match=r"train-00000\.tar: train-1: the labels"):
        shards.sample(1)
    assert shards.sample(2).labels == {"edema": 1}
    # Damage to what is not needed is nobody's business.
    assert ShardSet.open(root, "train").sample(1).key == "train-1"

    def indexes(draws: Sequence[Draw]) -> list[int]:
        return [draw.sample.index for draw in draws]

    options = LoaderOptions(seed=0, batch_size=3, window=1, prefetch=1, max_bad_samples=1)
    with Loader(shards, indexes, options) as loader:
        assert sorted(next(loader)) == [0, 2, 2]
        assert loader.bad_samples == [1]


@pytest.mark.parametrize("has_reports", [True, False])
def test_masks_come_where_they_are_needed(make_set: MakeSet, has_reports: bool) -> None:
    root = make_set(splits={"train": [2, 3]}, has_masks=True, has_reports=has_reports)
    for needs in (Needs(masks=True), Needs(masks=True, labels=True)):
        shards = ShardSet.open(root, "train", needs=needs)
        for index in range(5):
            sample = shards.sample(index)
            assert isinstance(sample.mask, memoryview)
            assert bytes(sample.mask) == f"mask {index}".encode()
            assert bytes(sample.jpeg) == f"jpeg {index}".encode()
            assert (sample.token_ids is not None) == has_reports
            assert (sample.labels is not None) == needs.labels
    assert ShardSet.open(root, "train").sample(0).mask is None


def test_a_set_without_masks_is_refused_to_who_needs_them(bare: Path) -> None:
    with pytest.raises(ShardError, match="has no masks") as refusal:
        ShardSet.open(bare, "train", needs=Needs(masks=True))
    assert refusal.value.remedy


def test_what_is_needed_is_read_through_a_cache_too(make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(splits={"train": [2]}, has_masks=True, has_reports=False)
    data = DataConfig(shards=str(root), cache=str(tmp_path / "cache"))
    shards = open_data(data, Needs(labels=True, masks=True))
    sample = shards.sample(1)
    assert sample.mask is not None
    assert (sample.labels, bytes(sample.mask), sample.token_ids) == ({"edema": 1}, b"mask 1", None)
    shards.close()


def test_sets_with_and_without_reports_are_joined_for_who_needs_none(bare: Path, small_set: Path) -> None:
    for roots in ((bare, small_set), (small_set, bare)):
        sets = JoinedSets([ShardSet.open(root, "train", needs=Needs(labels=True)) for root in roots], (1.0, 1.0))
        assert sets.reports is None
        assert [sets.sample(index).labels is not None for index in range(len(sets))] == [True] * 16
        with pytest.raises(ShardError, match=REFUSAL):
            reports_of(sets)
        with pytest.raises(ShardError, match=REFUSAL):
            sets.tokenizer_file()
