"""The order: every epoch an exact permutation, the same for every number of ranks, resumable anywhere."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.randomness import Purpose, permutation
from mrm_stream.stream.order import EPOCHS, Order, rank_slice

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any)
SEEDS = st.integers(0, 2**63 - 1)
WINDOWS = st.integers(1, 12)
WORLDS = (1, 2, 3, 4, 6, 8)


def members_of(sizes: list[int], shard: int) -> range:
    return range(sum(sizes[:shard]), sum(sizes[: shard + 1]))


def check_epoch(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    """An epoch holds each sample once, and a window holds the samples of its own shards only."""
    order = Order(sizes, seed, window)
    samples = sum(sizes)
    epochs, indexes = order.indexes(np.arange(samples) + epoch * samples)
    assert set(epochs.tolist()) == {epoch}
    assert sorted(indexes.tolist()) == list(range(samples))
    start = 0
    shards = permutation(seed, epoch, 0, Purpose.SHARDS, len(sizes))
    for first in range(0, len(sizes), window):
        ours = [index for shard in shards[first : first + window] for index in members_of(sizes, int(shard))]
        assert sorted(indexes[start : start + len(ours)].tolist()) == sorted(ours)
        start += len(ours)


def check_ranks(sizes: list[int], seed: int, window: int, start: int, share: int, hops: list[int]) -> None:
    """Steps taken by changing numbers of ranks make up one and the same ordered stretch."""
    samples = sum(sizes)
    tail: list[tuple[int, int]] = []
    position = start
    for world in hops:
        batch = share * world
        per_rank = []
        for rank in range(world):
            # Every rank has an order object of its own.
            part = rank_slice(batch, rank, world)
            epochs, indexes = Order(sizes, seed, window).indexes(np.arange(position + part.start, position + part.stop))
            per_rank.append(list(zip(epochs.tolist(), indexes.tolist(), strict=True)))
            assert len(per_rank[-1]) == share
        tail += [pair for pairs in per_rank for pair in pairs]
        position += batch
    reference = Order(sizes, seed, window)
    epochs, indexes = reference.indexes(range(start, position))
    assert tail == list(zip(epochs.tolist(), indexes.tolist(), strict=True))
    assert all(epoch == place // samples for place, (epoch, _) in enumerate(tail, start))


@settings(max_examples=700, deadline=None)
@given(SIZES, SEEDS, WINDOWS, st.integers(0, 1000) | st.just(EPOCHS - 1))
def test_an_epoch_is_a_permutation(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    check_epoch(sizes, seed, window, epoch)


@settings(max_examples=500, deadline=None)
@given(
    SIZES,
    SEEDS,
    WINDOWS,
    st.integers(0, 100),
    st.integers(1, 5),
    st.lists(st.sampled_from(WORLDS), min_size=1, max_size=3),
)
def test_ranks_share_one_order(
    sizes: list[int], seed: int, window: int, start: int, share: int, hops: list[int]
) -> None:
    check_ranks(sizes, seed, window, start, share, hops)


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 64), st.sampled_from(WORLDS))
def test_rank_slices_tile_the_batch(share: int, world: int) -> None:
    batch = list(range(share * world))
    assert [place for rank in range(world) for place in batch[rank_slice(len(batch), rank, world)]] == batch


@pytest.mark.campaign
@settings(max_examples=10_000, deadline=None)
@given(
    SIZES,
    SEEDS,
    WINDOWS,
    st.integers(0, 100),
    st.integers(1, 5),
    st.lists(st.sampled_from(WORLDS), min_size=1, max_size=4),
)
def test_order_at_length(sizes: list[int], seed: int, window: int, start: int, share: int, hops: list[int]) -> None:
    check_epoch(sizes, seed, window, start)
    check_ranks(sizes, seed, window, start, share, hops)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
def test_every_position_has_the_same_tail(window: int) -> None:
    sizes = [4, 1, 0, 6]
    end = 3 * sum(sizes)
    whole = Order(sizes, 5, window).indexes(range(end))[1].tolist()
    for position in range(end):
        fresh = Order(sizes, 5, window)
        assert [fresh.locate(place)[1] for place in range(position, end)] == whole[position:]


def test_positions_in_any_order_and_shape() -> None:
    order = Order([3, 4, 5], 1, 2)
    whole = order.indexes(range(60))[1]
    scattered = np.random.default_rng(0).permutation(60)
    assert order.indexes(scattered)[1].tolist() == whole[scattered].tolist()
    assert order.indexes([])[1].tolist() == []


def test_fewer_samples_than_a_batch() -> None:
    epochs, indexes = Order([1, 2], 0, 1).indexes(range(256))
    assert epochs.tolist() == [place // 3 for place in range(256)]
    for epoch in range(85):
        assert sorted(indexes[epoch * 3 : epoch * 3 + 3].tolist()) == [0, 1, 2]


def test_seed_epoch_and_window_change_the_order() -> None:
    sizes = [50] * 8
    first = Order(sizes, 0, 4).indexes(range(400))[1]
    assert (first != Order(sizes, 1, 4).indexes(range(400))[1]).mean() > 0.9
    assert (first != Order(sizes, 0, 4).indexes(range(400, 800))[1]).mean() > 0.9
    assert (first != Order(sizes, 0, 3).indexes(range(400))[1]).mean() > 0.9
    # Two windows of one epoch are not shuffled alike.
    one = Order([50, 50], 0, 1).indexes(range(100))[1] % 50
    assert (one[:50] != one[50:]).any()


def test_a_window_over_the_whole_set_mixes_all_of_it() -> None:
    indexes = Order([100] * 10, 3, 99).indexes(range(100))[1]
    assert len(set((indexes // 100).tolist())) == 10


def test_a_window_touches_its_shards_only() -> None:
    indexes = Order([100] * 10, 3, 2).indexes(range(1000))[1]
    for start in range(0, 1000, 200):
        assert len(set((indexes[start : start + 200] // 100).tolist())) == 2


def test_order_is_what_it_was() -> None:
    # Written down: a checkpoint of an older release continues in the same order.
    assert Order([3, 2, 4], 7, 2).indexes(range(12))[1].tolist() == [7, 8, 6, 2, 5, 1, 0, 3, 4, 4, 3, 6]


def test_memory_does_not_grow_with_the_set() -> None:
    order = Order([1000] * 100_000, 0, 4)
    for position in range(50_000_000, 50_040_000, 4_000):
        order.indexes(range(position, position + 256))
    order.indexes(range(3 * 10**8, 3 * 10**8 + 256))
    for cache in (order._blocks, order._shards, order._permuted):
        assert 1 <= cache.cache_info().currsize <= 4
    assert len(order._permuted(0, 3, 17)) == 4000


def test_a_set_of_many_blocks_is_permuted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrm_stream.stream.order.BLOCK", 8)
    sizes = [index % 4 for index in range(43)]
    order = Order(sizes, 3, 3)
    for epoch in range(3):
        epochs, indexes = order.indexes(np.arange(sum(sizes)) + epoch * sum(sizes))
        assert sorted(indexes.tolist()) == list(range(sum(sizes)))
        assert set(epochs.tolist()) == {epoch}
        positions = np.arange(sum(sizes))[::-1] + epoch * sum(sizes)
        assert order.indexes(positions)[1].tolist() == indexes[::-1].tolist()
    firsts = [order.locate(epoch * sum(sizes))[1] for epoch in range(30)]
    assert len({int(np.searchsorted(np.cumsum(sizes), first, side="right")) // 8 for first in firsts}) > 3


@pytest.mark.parametrize("block", [8, 1 << 14])
def test_the_shards_ahead_are_those_that_the_order_comes_to(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrm_stream.stream.order.BLOCK", block)
    sizes = [3, 1, 4, 2, 5, 0, 2, 6, 1, 3, 2]
    order, ends = Order(sizes, 1, 2), np.cumsum(sizes)
    for position in range(2 * sum(sizes)):
        windows = [shards for _, shards in islice(order.windows_from(position), 14)]
        left = next(order.windows_from(position))[0]
        rest = order.indexes(np.arange(position, position + left))[1]
        assert {int(np.searchsorted(ends, index, side="right")) for index in rest.tolist()} <= set(windows[0])
        met = dict.fromkeys(
            int(np.searchsorted(ends, index, side="right"))
            for index in order.indexes(np.arange(position, position + 8))[1].tolist()
        )
        ahead = [shard for window in windows for shard in window]
        assert set(met) <= set(ahead[:16])
        assert int(np.searchsorted(ends, order.locate(position)[1], side="right")) in windows[0]


@pytest.mark.parametrize(("batch_size", "rank", "world"), [(10, 0, 3), (4, 2, 2), (4, -1, 2), (0, 0, 1)])
def test_impossible_slices_are_refused(batch_size: int, rank: int, world: int) -> None:
    with pytest.raises(AssertionError):
        rank_slice(batch_size, rank, world)


def test_impossible_positions_are_refused() -> None:
    order = Order([2, 1], 0, 1)
    for position in (-1, 3 * EPOCHS):
        with pytest.raises(AssertionError):
            order.locate(position)
    with pytest.raises(AssertionError):
        Order([0, 0], 0, 1)
