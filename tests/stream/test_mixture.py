"""Several sets as one: exact shares, each set in its own order, resumable anywhere."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.stream.mixture import DEALT, Mixture
from mrm_stream.stream.order import Order

# The least share of four: 1 in 1,500, and 1 in 2,048 is allowed.
SETS = st.lists(
    st.tuples(st.lists(st.integers(3, 7), min_size=1, max_size=4), st.floats(0.02, 10)), min_size=1, max_size=4
)


def make(sets: list[tuple[list[int], float]], seed: int) -> Mixture:
    return Mixture([Order(sizes, seed, 2) for sizes, _ in sets], [share for _, share in sets], seed)


@settings(max_examples=40, deadline=None)
@given(sets=SETS, seed=st.integers(0, 2**63 - 1), start=st.integers(0, 10**9))
def test_each_set_follows_its_own_order_whatever_lies_between(
    sets: list[tuple[list[int], float]], seed: int, start: int
) -> None:
    mixture = make(sets, seed)
    epochs, indexes = mixture.indexes(np.arange(start, start + 60))
    offsets = np.cumsum([0, *(sum(sizes) for sizes, _ in sets)])
    for number, (sizes, _) in enumerate(sets):
        mine = (indexes >= offsets[number]) & (indexes < offsets[number + 1])
        own = Order(sizes, seed, 2)
        first = make(sets, seed).own_position(number, start)
        expected = own.indexes(np.arange(first, first + int(mine.sum())))
        assert epochs[mine].tolist() == expected[0].tolist()
        assert (indexes[mine] - offsets[number]).tolist() == expected[1].tolist()


@settings(max_examples=100, deadline=None)
@given(sets=SETS, seed=st.integers(0, 2**63 - 1), blocks=st.integers(1, 10**6))
def test_shares_are_kept_to_within_a_sample(sets: list[tuple[list[int], float]], seed: int, blocks: int) -> None:
    mixture = make(sets, seed)
    total = sum(share for _, share in sets)
    for number, (_, share) in enumerate(sets):
        seen = mixture.own_position(number, blocks * DEALT)
        # A share is kept in millionths.
        assert abs(seen - blocks * DEALT * share / total) <= 1 + blocks * DEALT * 2e-6 * len(sets)


def test_positions_may_be_asked_for_in_any_order() -> None:
    mixture = make([([50, 30], 2.0), ([40], 1.0), ([90, 90, 90], 0.5)], 7)
    epochs, indexes = mixture.indexes(np.arange(5_000))
    again = make([([50, 30], 2.0), ([40], 1.0), ([90, 90, 90], 0.5)], 7)
    places = np.random.default_rng(0).permutation(5_000)
    assert again.indexes(places)[0].tolist() == epochs[places].tolist()
    assert again.indexes(places)[1].tolist() == indexes[places].tolist()


def test_the_sets_are_mixed_and_not_dealt_in_turn() -> None:
    mixture = make([([50], 1.0), ([50], 1.0)], 0)
    which = mixture.indexes(np.arange(DEALT))[1] >= 50
    changes = int((which[1:] != which[:-1]).sum())
    assert abs(changes - DEALT / 2) < 150
    assert mixture.indexes(np.arange(DEALT))[1].tolist() != mixture.indexes(np.arange(DEALT, 2 * DEALT))[1].tolist()


@pytest.mark.parametrize("position", [0, 30_000])
def test_each_set_goes_through_its_own_windows(position: int) -> None:
    sets = [([30, 20, 25, 40, 10], 1.0), ([40, 10, 35], 2.0)]
    mixture = make(sets, 3)
    windows = [set(shards) for _, shards in islice(mixture.windows_from(position), 60)]
    for number, (sizes, _) in enumerate(sets):
        first = sum(len(sizes) for sizes, _ in sets[:number])
        mine = [found & set(range(first, first + len(sizes))) for found in windows]
        changes = [found for found, before in zip(mine[1:], mine, strict=False) if found != before]
        ahead = Order(sizes, 3, 2).windows_from(mixture.own_position(number, position))
        own = [{first + shard for shard in shards} for _, shards in islice(ahead, 60)]
        expected = [found for found, before in zip(own[1:], own, strict=False) if found != before]
        assert mine[0] == own[0]
        assert len(changes) > 10
        assert changes == expected[: len(changes)]


@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 30_000])
def test_the_shards_ahead_are_those_that_come(position: int) -> None:
    mixture = make([([5, 3, 2], 1.0), ([4, 1], 1.0)], 3)
    windows = [shards for _, shards in islice(mixture.windows_from(position), 3)]
    first = mixture.indexes([position])[1][0]
    shard = int(np.searchsorted(np.cumsum([5, 3, 2, 4, 1]), first, side="right"))
    assert shard in windows[0]
