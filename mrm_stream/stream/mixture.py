"""Several packed sets in one run: each in its share, in an order that is again a pure function of the position.

The obvious mixture draws, for each sample, a set by chance, and then the next sample of that set. But how far each set
has come then depends on all draws before, so a position could not be answered without replaying the run, and over a
short stretch the shares are off by chance.

So positions come in blocks of `DEALT`. The shares say how many positions of a block belong to which set: the difference
of the rounded running totals at its two ends, so that rounding errors never add up. The block is then permuted. How
many positions a set had before any block is therefore one multiplication, and what it reads there is its own `Order` at
that count: each set goes through its own epochs in its own order, one with a small share only more slowly.
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
"""Positions that are dealt to the sets at a time: enough that a share of one in a thousand has some of each block."""
LEAST_SHARE = 2 / DEALT
"""Of a smaller one, the rounded running total could stand still or step back over a block."""


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
        """Of all sets: what a run counts as an epoch. A set with a small share is not read to its end in it, one with a
        large share more than once."""
        self._dealt = lru_cache(maxsize=4)(self._deal)

    def indexes(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, at B positions, the epoch of the sample's own set and its index over all sets, each of shape (B,)."""
        positions_B = np.asarray(positions, np.int64)
        epochs_B, indexes_B = np.empty_like(positions_B), np.empty_like(positions_B)
        sets_B, own_B = self._own_positions(positions_B)
        for number, order in enumerate(self._orders):
            slots = np.flatnonzero(sets_B == number)
            if len(slots):
                # The set's own epoch keys a sample's random draws: it is seen again under another one, whatever the
                # mixture counts.
                epochs_B[slots], inside = order.indexes(own_B[slots])
                indexes_B[slots] = inside + self._offsets[number]
        return epochs_B, indexes_B

    def own_position(self, number: int, position: int) -> int:
        """Return how many of the positions before this one are of one set: the position in that set's own order."""
        block, offset = divmod(position, DEALT)
        sets, _ = self._dealt(block)
        return int(self._before(block)[number]) + int((sets[:offset] == number).sum())

    def windows_from(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the windows that the sets are in at a position, as one; and again whenever a set comes to its next one.

        With the shards of these windows, numbered over all sets, goes how many samples of the mixture they last for. It
        is an estimate by the shares, to within a few samples a block: prefetch hints need no more.
        """
        first_shards = np.cumsum([0, *(order.shards for order in self._orders)])
        coming = [order.windows_from(self.own_position(n, position)) for n, order in enumerate(self._orders)]
        current = [next(windows) for windows in coming]
        left = [float(samples) for samples, _ in current]
        parts = (self._parts / self._ends[-1]).tolist()
        while True:
            # In samples of the mixture, of which a set gets its part only.
            lasts = [samples / part for samples, part in zip(left, parts, strict=True)]
            used_up = int(np.argmin(lasts))
            shards = [
                int(first) + shard for first, (_, own) in zip(first_shards, current, strict=False) for shard in own
            ]
            yield int(lasts[used_up]), shards
            left = [samples - lasts[used_up] * part for samples, part in zip(left, parts, strict=True)]
            current[used_up] = next(coming[used_up])
            left[used_up] += current[used_up][0]

    def _own_positions(self, positions_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the set of each position, and the position in that set's own order, each of shape (B,)."""
        sets_B, own_B = np.empty_like(positions_B), np.empty_like(positions_B)
        blocks_B, within_B = np.divmod(positions_B, DEALT)
        for block in np.unique(blocks_B).tolist():
            slots = np.flatnonzero(blocks_B == block)
            dealt, turns = self._dealt(block)
            sets_B[slots] = dealt[within_B[slots]]
            own_B[slots] = self._before(block)[sets_B[slots]] + turns[within_B[slots]]
        return sets_B, own_B

    def _before(self, block: int) -> NDArray[np.int64]:
        """Return how many positions before a block are of each set, shape (sets,)."""
        # Python's own integers: the product does not fit 64 bits, late in a long run. Cumulated shares are rounded down
        # and then told apart, so that the sets' counts always add up to the block's positions.
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
