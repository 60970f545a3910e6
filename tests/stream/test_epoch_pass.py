"""The epoch pass: each sample exactly once over any number of ranks, the padding told, what is bad skipped."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrm_stream.errors import DamagedSamplesError, ShardError, TrainingError
from mrm_stream.stream.epoch_pass import EpochPass, PassBatch, part_of_rank
from mrm_stream.stream.joined import JoinedSets
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.shard_set import DamagedShardError, ShardSet
from mrm_stream.stream.source import Needs, SampleSource
from tests.stream.conftest import MakeSet

Keys = list[tuple[int, str]]


def keys_of(draws: Sequence[Draw]) -> Keys:
    return [(draw.epoch, draw.sample.key) for draw in draws]


def damaging(bad: set[int]) -> Callable[[Sequence[Draw]], Keys]:
    """A transform that cannot take these samples."""

    def transform(draws: Sequence[Draw]) -> Keys:
        if reasons := {slot: "planted damage" for slot, draw in enumerate(draws) if draw.sample.index in bad}:
            raise DamagedSamplesError(reasons)
        return keys_of(draws)

    return transform


def passes(
    shards: SampleSource, world: int, transform: Callable[[Sequence[Draw]], Keys] = keys_of, **choices: Any
) -> list[EpochPass[Keys]]:
    """One a rank."""
    defaults = {"batch_size": 2, "prefetch": 2}
    return [EpochPass(shards, transform, rank=rank, world=world, **{**defaults, **choices}) for rank in range(world)]


def counted(batches: Sequence[PassBatch[Keys]]) -> list[int]:
    """The samples that count, in order."""
    return [int(index) for made in batches for index in made.indexes_B[~made.is_padding_B]]


@pytest.fixture
def shards(small_set: Path) -> ShardSet:
    return ShardSet.open(small_set, "train")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name == "mrm-stream-prefetch"] == []


@pytest.mark.parametrize("world", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 11, 16])
def test_each_sample_counts_once_on_any_number_of_ranks(shards: ShardSet, world: int, batch_size: int) -> None:
    ranks = passes(shards, world, batch_size=batch_size)
    made = [list(rank) for rank in ranks]
    assert [index for batches in made for index in counted(batches)] == list(range(11))
    # The fewest steps that hold the longest part, as many on each rank, each of as many rows.
    steps = math.ceil(math.ceil(11 / world) / batch_size)
    assert [len(rank) for rank in ranks] == [len(batches) for batches in made] == [steps] * world
    for batch in (batch for batches in made for batch in batches):
        assert len(batch.batch) == batch_size
        assert batch.indexes_B.shape == batch.is_padding_B.shape == (batch_size,)
        # Each row, of padding too, is the sample that it is told to be.
        assert batch.batch == [(0, f"train-{index}") for index in batch.indexes_B]
    assert max(len(counted(batches)) for batches in made) - min(len(counted(batches)) for batches in made) <= 1


def test_parts_are_contiguous_and_equal() -> None:
    for samples in range(40):
        for world in range(1, 9):
            parts = [part_of_rank(samples, rank, world) for rank in range(world)]
            assert [index for part in parts for index in part] == list(range(samples))
            assert max(map(len, parts)) == -(-samples // world)
            assert min(map(len, parts)) == samples // world


def test_a_rank_without_samples_steps_with_the_others(small_set: Path) -> None:
    few = ShardSet.open(small_set, "validate")
    made = [list(rank) for rank in passes(few, 5, batch_size=3)]
    assert [counted(batches) for batches in made] == [[], [], [0], [], [1]]
    assert [[batch.is_padding_B.tolist() for batch in batches] for batches in made] == [
        [[index not in counted(batches) or row > 0 for row, index in enumerate(batches[0].indexes_B)]]
        for batches in made
    ]
    assert all(len(batches) == 1 and len(batches[0].batch) == 3 for batches in made)


def test_joined_sets_count_each_sample_once_whatever_their_shares(make_set: MakeSet) -> None:
    roots = [make_set("a", splits={"train": [4, 3]}), make_set("b", splits={"train": [5]})]
    sets = JoinedSets([ShardSet.open(root, "train") for root in roots], (10.0, 1.0))
    for world in (1, 2, 3, 5):
        made = [list(rank) for rank in passes(sets, world, batch_size=2)]
        assert [index for batches in made for index in counted(batches)] == list(range(12))
        keys = [
            key
            for batches in made
            for batch in batches
            for key, pad in zip(batch.batch, batch.is_padding_B, strict=True)
            if not pad
        ]
        assert keys == [(0, f"train-{index}") for index in [*range(7), *range(5)]]


def test_a_pass_can_be_repeated_and_is_the_same(shards: ShardSet) -> None:
    (rank,) = passes(shards, 1, batch_size=4)
    first, second = ([(made.batch, made.is_padding_B.tolist()) for made in rank] for _ in range(2))
    assert first == second
    assert first[-1] == ([(0, "train-8"), (0, "train-9"), (0, "train-10"), (0, "train-8")], [False, False, False, True])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("read", [set(), {0}, {4, 5}])
@pytest.mark.parametrize("decoded", [set(), {3}, {6, 7, 8, 9, 10}])
def test_bad_samples_are_skipped_counted_and_told(
    make_set: MakeSet, caplog: pytest.LogCaptureFixture, world: int, read: set[int], decoded: set[int]
) -> None:
    root = make_set(splits={"train": [4, 1, 6]}, labels={f"train-{index}": None for index in read})
    shards = ShardSet.open(root, "train", needs=Needs(labels=True))
    ranks = passes(shards, world, damaging(decoded), batch_size=3)
    for _ in range(2):
        made = [list(rank) for rank in ranks]
        good = [index for index in range(11) if index not in read | decoded]
        assert [index for batches in made for index in counted(batches)] == good
        assert {len(batches) for batches in made} == {len(ranks[0])}
        rows = [index for batches in made for batch in batches for index in batch.indexes_B.tolist()]
        assert not set(rows) & (read | decoded), "no row is of a bad sample, padding neither"
    assert [set(rank.skipped) for rank in ranks] == [
        {index for index in part_of_rank(11, rank, world) if index in read | decoded} for rank in range(world)
    ]
    reasons = {index: reason for rank in ranks for index, reason in rank.skipped.items()}
    assert all("labels" in reasons[index] for index in read)
    assert {reasons[index] for index in decoded} <= {"planted damage"}
    # Once each, however many passes there are.
    assert len(caplog.records) == len(read | decoded)
    assert all("is skipped" in record.getMessage() for record in caplog.records)


def test_a_split_without_a_good_sample_is_an_error(shards: ShardSet) -> None:
    for world in (1, 3):
        for rank in passes(shards, world, damaging(set(range(11)))):
            with pytest.raises(ShardError, match="no sample of the split can be used"):
                list(rank)


def test_a_damaged_shard_ends_the_pass(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [4, 4]})
    (rank,) = passes(ShardSet.open(root, "train"), 1)
    tar = root / "train-00001.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    seen: list[PassBatch[Keys]] = []
    with pytest.raises(DamagedShardError, match="SHA-256"):
        seen.extend(rank)
    assert rank.skipped == {}


def test_an_error_of_the_transform_is_raised_in_its_place(shards: ShardSet) -> None:
    def transform(draws: Sequence[Draw]) -> Keys:
        if draws[0].sample.index == 4:
            raise ZeroDivisionError("planted")
        return keys_of(draws)

    (rank,) = passes(shards, 1, transform, prefetch=5)
    batches = iter(rank)
    assert counted([next(batches), next(batches)]) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="planted"):
        next(batches)


def test_batches_are_made_ahead_and_what_is_left_early_ends_its_thread(shards: ShardSet) -> None:
    made = threading.Semaphore(0)

    def transform(draws: Sequence[Draw]) -> Keys:
        made.release()
        return keys_of(draws)

    (rank,) = passes(shards, 1, transform, batch_size=1, prefetch=3)
    assert not made.acquire(timeout=0.05), "nothing is read before it is asked for"
    for number, _ in enumerate(rank):
        if number == 0:
            for _ in range(4):  # the one at hand and three ahead
                assert made.acquire(timeout=5)
            assert not made.acquire(timeout=0.05)
            break
    gc.collect()
    assert counted(list(rank)) == list(range(11))


def test_storage_that_hangs_is_told(shards: ShardSet) -> None:
    def transform(draws: Sequence[Draw]) -> Keys:
        time.sleep(0.3)
        return keys_of(draws)

    (rank,) = passes(shards, 1, transform, stalled_after=0.05)
    with pytest.raises(TrainingError, match="no batch was ready"):
        list(rank)


def test_ranks_fetch_their_own_shards_ahead_and_release_them_at_the_end(make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(splits={"train": [4] * 6})
    fetched = []
    for rank in range(3):
        shards = ShardSet.open(root, "train", (tmp_path / f"cache-{rank}", 1))
        each = EpochPass(shards, keys_of, batch_size=2, prefetch=1, rank=rank, world=3)
        assert counted(list(each)) == list(part_of_rank(24, rank, 3))
        fetched.append(shards.cache_counts().fetched)
        # All are released, so that asking for another one evicts them: the limit is that of none.
        shards.sample(0 if rank else 23)
        left = {tar.name for tar in (tmp_path / f"cache-{rank}").rglob("*.tar")}
        assert left == {"train-00000.tar" if rank else "train-00005.tar"}
        shards.close()
    assert fetched == [2, 2, 2]


def test_nothing_of_a_report_is_logged(make_set: MakeSet, caplog: pytest.LogCaptureFixture) -> None:
    root = make_set(splits={"train": [3]}, tokens={"train-1": b""})
    with caplog.at_level(logging.DEBUG):
        list(passes(ShardSet.open(root, "train"), 1)[0])
    (record,) = caplog.records
    assert "train-00000.tar: train-1" in record.getMessage()
    assert "lungs" not in caplog.text


def test_padding_is_a_mask_that_a_sum_can_use(shards: ShardSet) -> None:
    """A mean over a split is the same on any number of ranks."""
    for world in (1, 2, 3, 5):
        total = weight = 0.0
        for rank in passes(shards, world, batch_size=4):
            for made in rank:
                values_B = made.indexes_B.astype(np.float64)
                total += float((values_B * ~made.is_padding_B).sum())
                weight += int((~made.is_padding_B).sum())
        assert (total, weight) == (55.0, 11)
