"""Several packed sets as one: samples of each in given shares, in an order that is again a pure function of position.

Positions are dealt to the sets in blocks of `DEALT`: how many of a block go to which set follows from the running
totals of the shares, so that after any number of positions each set has had its share to within one sample a block;
which of them is a permutation of the block. Within its own positions each set follows its own `Order`, epoch after
epoch: a set with a small share is seen less often, never in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrm_stream.randomness import Purpose, permutation
from mrm_stream.stream.order import Order

DEALT = 4096
"""Positions that are dealt to the sets at a time."""
LEAST_SHARE = 2 / DEALT
"""Below it, rounding could take a sample of a block back from a set."""


class Mixture:
    """An order over several sets.

    Args:
        orders: One a set, each with its seed and window.
        shares: One a set, positive; only their proportion counts.
        seed: Of the run.

    Example:
        >>> mixture = Mixture([Order([600], 0, 1), Order([200], 0, 1)], [3, 1], seed=0)
        >>> _, indexes = mixture.indexes(range(4096))
        >>> int((indexes < 600).sum())
        3072
    """

    def __init__(self, orders: Sequence[Order], shares: Sequence[float], seed: int) -> None:
        assert len(orders) == len(shares) >= 1
        assert min(shares) / sum(shares) >= LEAST_SHARE, "whoever reads settings refuses it"
        self._orders = orders
        self._seed = seed
        # In whole numbers, so that every machine deals alike; a share below one in a million is not kept.
        total = sum(shares)
        self._parts = np.array([max(1, round(share / total * 1_000_000)) for share in shares], np.int64)
        self._ends = np.cumsum(self._parts)
        self._offsets = np.cumsum([0, *(order.samples for order in orders)])
        self.samples = int(self._offsets[-1])
        """Of all sets: the length of an epoch, in which small shares leave samples out and large ones repeat some."""
        self._dealt = lru_cache(maxsize=4)(self._deal)

    def indexes(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, at B positions, the epoch of the sample's own set and its index over all sets, each of shape (B,)."""
        places = np.asarray(positions, np.int64)
        epochs, indexes = np.empty_like(places), np.empty_like(places)
        sets, own = self._own_positions(places)
        for number, order in enumerate(self._orders):
            slots = np.flatnonzero(sets == number)
            if len(slots):
                epochs[slots], inside = order.indexes(own[slots])
                indexes[slots] = inside + self._offsets[number]
        return epochs, indexes

    def own_position(self, number: int, position: int) -> int:
        """Return how many of the positions before this one are of one set: where its own order then stands."""
        block, place = divmod(position, DEALT)
        sets, _ = self._dealt(block)
        return int(self._before(block)[number]) + int((sets[:place] == number).sum())

    def windows_from(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the shards that are in use at a position, and as soon as a set comes to another window, again.

        With them goes for how many samples, to within a few, they are enough. Numbers count over all sets' shards.
        """
        first_shards = np.cumsum([0, *(order.shards for order in self._orders)])
        coming = [order.windows_from(self.own_position(n, position)) for n, order in enumerate(self._orders)]
        current = [next(windows) for windows in coming]
        left = [float(samples) for samples, _ in current]
        parts = (self._parts / self._ends[-1]).tolist()
        while True:
            lasts = [samples / part for samples, part in zip(left, parts, strict=True)]
            used_up = int(np.argmin(lasts))
            shards = [
                int(first) + shard for first, (_, own) in zip(first_shards, current, strict=False) for shard in own
            ]
            yield int(lasts[used_up]), shards
            left = [samples - lasts[used_up] * part for samples, part in zip(left, parts, strict=True)]
            current[used_up] = next(coming[used_up])
            left[used_up] += current[used_up][0]

    def _own_positions(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the set of each position, and the position in that set's own order."""
        sets, own = np.empty_like(places), np.empty_like(places)
        blocks, within = np.divmod(places, DEALT)
        for block in np.unique(blocks).tolist():
            slots = np.flatnonzero(blocks == block)
            dealt, turns = self._dealt(block)
            sets[slots] = dealt[within[slots]]
            own[slots] = self._before(block)[sets[slots]] + turns[within[slots]]
        return sets, own

    def _before(self, block: int) -> NDArray[np.int64]:
        """Return how many positions before a block are of each set."""
        # Python's whole numbers: the product leaves 64 bits behind.
        ends = [block * DEALT * int(end) // int(self._ends[-1]) for end in self._ends]
        return np.array([end - start for start, end in pairwise([0, *ends])], np.int64)

    def _deal(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the set of each position of a block, and which of its set's positions in the block it is."""
        counts = self._before(block + 1) - self._before(block)
        assert counts.sum() == DEALT
        assert (counts >= 0).all()
        sets = np.repeat(np.arange(len(counts)), counts)[
            permutation(self._seed, block >> 32, block & 0xFFFFFFFF, Purpose.MIXTURE, DEALT)
        ]
        turns = np.empty(DEALT, np.int64)
        for number, count in enumerate(counts.tolist()):
            turns[sets == number] = np.arange(count)
        return sets, turns
