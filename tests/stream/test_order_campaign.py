"""Loaders that stop, resume from their JSON and change their number hand out one ordered stretch of samples.

Where `test_order` looks at the order alone, a case here is a run: a set or a mixture of sets, some bad samples, and a
few hops, at each of which all ranks are made anew, with another world and batch size, from the state of one of them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.errors import ShardError
from mrm_stream.records import Sample
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.mixture import Mixture
from mrm_stream.stream.order import Order
from mrm_stream.stream.shard_set import ShardSet

WORLDS = (1, 2, 3, 4, 5, 6, 8)
Pair = tuple[int, int]
"""Epoch and index."""


@dataclass(frozen=True)
class Hop:
    """Some steps with one number of ranks."""

    world: int
    share: int
    """Samples of a step that each rank takes."""
    steps: int
    informant: int
    """The rank, modulo the world, whose state the next hop begins with."""


@dataclass(frozen=True)
class Case:
    """A run."""

    sets: tuple[tuple[int, ...], ...]
    """Sizes of the shards of each set."""
    shares: tuple[float, ...]
    seed: int
    window: int
    start: int
    bad: frozenset[int]
    hops: tuple[Hop, ...]

    @property
    def samples(self) -> int:
        return sum(map(sum, self.sets))

    @property
    def end(self) -> int:
        return self.start + sum(hop.world * hop.share * hop.steps for hop in self.hops)

    def orders(self) -> list[Order]:
        return [Order(sizes, self.seed, self.window) for sizes in self.sets]

    def order(self) -> Order | Mixture:
        orders = self.orders()
        return orders[0] if len(orders) == 1 else Mixture(orders, self.shares, self.seed)


HOPS = st.builds(Hop, st.sampled_from(WORLDS), st.integers(1, 3), st.integers(1, 2), st.integers(0, 7))
SAME_STEPS = st.lists(st.sampled_from([world for world in WORLDS if world != 5]), min_size=2, max_size=3).map(
    lambda worlds: [Hop(world, 24 // world, 1, 0) for world in worlds]
)
"""24 samples a step, whatever the world."""
SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any).map(tuple)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sets = draw(st.lists(SIZES, min_size=1, max_size=3))
    samples = sum(map(sum, sets))
    return Case(
        sets=tuple(sets),
        shares=tuple(draw(st.floats(0.1, 3)) for _ in sets),
        seed=draw(st.integers(0, 2**63 - 1)),
        window=draw(st.integers(1, 8)),
        start=draw(st.integers(0, 100) | st.integers(0, 10**7) | st.just(samples)),
        # One sample at least stays good.
        bad=draw(st.just(frozenset()) | st.frozensets(st.integers(0, samples - 1), max_size=min(3, samples - 1))),
        hops=tuple(draw(SAME_STEPS | st.lists(HOPS, min_size=1, max_size=3) | st.just([*EIGHT_THREE_FIVE]))),
    )


EIGHT_THREE_FIVE = (Hop(8, 2, 2, 7), Hop(3, 3, 2, 1), Hop(5, 2, 2, 4))


class Numbers:
    """A set whose samples are their indexes; stands in for a `ShardSet`."""

    wants_hints = False
    directory = "numbers"

    def __init__(self, case: Case) -> None:
        self._case = case
        self.fingerprint = repr(case.sets)

    def order(self, seed: int, window: int) -> Order | Mixture:
        assert (seed, window) == (self._case.seed, self._case.window)
        return self._case.order()

    def sample(self, index: int) -> Sample:
        if index in self._case.bad:
            raise ShardError("is bad")
        return Sample(index, str(index), b"", np.empty(0, np.uint16))

    def location(self, index: int) -> str:
        return str(index)


def pairs_of(draws: Sequence[Draw]) -> list[Pair]:
    return [(draw.epoch, draw.sample.index) for draw in draws]


def loader_of(case: Case, hop: Hop, rank: int) -> Loader[list[Pair]]:
    options = LoaderOptions(
        seed=case.seed,
        batch_size=hop.world * hop.share,
        window=case.window,
        prefetch=1,
        max_bad_samples=case.samples,
    )
    return Loader(cast(ShardSet, Numbers(case)), pairs_of, options, rank=rank, world=hop.world)


def ran(case: Case) -> list[Pair]:
    """What the ranks of all hops were handed, step by step, rank by rank."""
    first = Hop(1, 1, 0, 0)
    with loader_of(case, first, 0) as fresh:
        state = json.dumps(fresh.state_dict() | {"position": case.start})
    seen: list[Pair] = []
    for hop in case.hops:
        ranks: list[list[list[Pair]]] = []
        states = []
        for rank in range(hop.world):
            with loader_of(case, hop, rank) as loader:
                loader.load_state_dict(json.loads(state))
                ranks.append([next(loader) for _ in range(hop.steps)])
                states.append(json.dumps(loader.state_dict()))
        assert all(len(batch) == hop.share for batches in ranks for batch in batches)
        seen += [pair for step in zip(*ranks, strict=True) for batch in step for pair in batch]
        assert len({json.loads(each)["position"] for each in states}) == 1
        state = states[hop.informant % hop.world]
    assert json.loads(state)["position"] == case.end
    return seen


def replaced(index: int, case: Case) -> int:
    return next(
        each for each in ((index + step) % case.samples for step in range(case.samples)) if each not in case.bad
    )


def check_exact(pairs: list[Pair], start: int, samples: int, first: int = 0) -> None:
    """A stretch of one set's order has each sample once an epoch, and no other epoch than its positions say."""
    assert [epoch for epoch, _ in pairs] == [place // samples for place in range(start, start + len(pairs))]
    for epoch, number in Counter(epoch for epoch, _ in pairs).items():
        members = [index - first for each, index in pairs if each == epoch]
        assert len(set(members)) == number
        assert set(members) <= set(range(samples))


def check_order(case: Case) -> list[Pair]:
    """Hold a run's stretch, as an undisturbed walk from position to position gives it, against first principles."""
    epochs, indexes = case.order().indexes(np.arange(case.start, case.end))
    pairs = list(zip(epochs.tolist(), indexes.tolist(), strict=True))
    order, first, starts, counts = case.order(), 0, [], []
    for number, own in enumerate(case.orders()):
        mine = [pair for pair in pairs if first <= pair[1] < first + own.samples]
        begins = order.own_position(number, case.start) if isinstance(order, Mixture) else case.start
        check_exact(mine, begins, own.samples, first)
        own_epochs, own_indexes = own.indexes(np.arange(begins, begins + len(mine)))
        assert mine == list(zip(own_epochs.tolist(), (own_indexes + first).tolist(), strict=True))
        first += own.samples
        starts.append(begins)
        counts.append(len(mine))
    assert sum(starts) == case.start
    assert sum(counts) == case.end - case.start
    return pairs


def check(case: Case) -> None:
    expected = [(epoch, replaced(index, case)) for epoch, index in check_order(case)]
    assert ran(case) == expected


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_short() -> Iterator[None]:
    """Each bad sample is a warning, a hundred thousand of them at length; a run crosses blocks of a mixture."""
    logger = logging.getLogger("mrm_stream.stream.loader")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrm_stream.stream.mixture.DEALT", 128)
        yield
    logger.setLevel(before)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_hops_hand_out_one_order(case: Case) -> None:
    check(case)


@pytest.mark.campaign
@settings(max_examples=10_000, deadline=None)
@given(cases())
def test_hops_at_length(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("sizes", [(1,), (2, 1), (0, 3, 1)])
def test_fewer_samples_than_ranks(sizes: tuple[int, ...]) -> None:
    for start in range(2 * sum(sizes) + 1):
        case = Case((sizes,), (1.0,), 5, 2, start, frozenset(), EIGHT_THREE_FIVE)
        assert case.samples < 8
        check(case)


def test_one_batch_size_for_eight_three_and_five_ranks() -> None:
    for sets in (((7, 0, 5), (4,)), ((150, 90),)):
        hops = tuple(Hop(world, 120 // world, 2, world - 1) for world in (8, 3, 5))
        check(Case(sets, (1.0, 0.5), 9, 2, 77, frozenset({3}), hops))
