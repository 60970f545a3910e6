"""The order of samples: a pure function of the shards' sizes, the seed and the position.

Positions are global and run on without end: position P is place P % N of epoch P // N, N being the samples of the
set. Step t of global batch G takes positions [t * G, (t + 1) * G), and each rank a contiguous slice of them. So the
order knows nothing of ranks, workers or batches; no sample is dropped, padded or seen twice in an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrm_stream.randomness import Purpose, permutation

EPOCHS = 2**32
"""Epochs that the random draws can tell apart."""


class Order:
    """Shards permuted over an epoch, then samples permuted within each window of `window` shards.

    An epoch's windows are worked out as they are reached, and a few are kept: memory grows with the shards of the set
    and the samples of a window, not with the samples of the set.

    Args:
        shard_sizes: Samples of each shard; a sample's index counts through the shards in this order.
        seed: Of the run.
        window: Shards that are mixed; one window covers the whole set where it is no smaller.

    Example:
        >>> order = Order([2, 1], seed=0, window=1)
        >>> epochs, indexes = order.indexes(range(6))
        >>> epochs.tolist(), sorted(indexes[:3].tolist()), sorted(indexes[3:].tolist())
        ([0, 0, 0, 1, 1, 1], [0, 1, 2], [0, 1, 2])
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int) -> None:
        self._sizes = np.asarray(shard_sizes, np.int64)
        assert window >= 1
        assert (self._sizes >= 0).all()
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._seed = seed
        self._window = window
        self.samples = int(self._sizes.sum())
        assert self.samples > 0, "an empty set has no order"
        # A batch meets at most a few windows at a time; a window of 16 shards of 1,000 takes 5 ms to permute.
        self._epoch = lru_cache(maxsize=2)(self._permuted_shards)
        self._permuted = lru_cache(maxsize=4)(self._permuted_samples)

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch, and the index of the sample, at one position."""
        epochs, indexes = self.indexes([position])
        return int(epochs[0]), int(indexes[0])

    def indexes(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epochs and the sample indexes, each of shape (B,), at B positions (in any order)."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.samples)
        assert ((epochs >= 0) & (epochs < EPOCHS)).all()
        indexes = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            _, starts = self._epoch(epoch)
            in_epoch = np.flatnonzero(epochs == epoch)
            # side="right" steps over windows without samples.
            windows = np.searchsorted(starts, places[in_epoch], side="right") - 1
            for window in np.unique(windows).tolist():
                slots = in_epoch[windows == window]
                indexes[slots] = self._permuted(epoch, window)[places[slots] - starts[window]]
        return epochs, indexes

    def _permuted_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an epoch's shards in order, and the place in the epoch at which each window starts."""
        shards = permutation(self._seed, epoch, 0, Purpose.SHARDS, len(self._sizes))
        sizes = self._sizes[shards]
        return shards, (np.cumsum(sizes) - sizes)[:: self._window]

    def _permuted_samples(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the indexes of a window's samples, in order."""
        shards, _ = self._epoch(epoch)
        members = np.concatenate(
            [
                np.arange(self._firsts[shard], self._firsts[shard] + self._sizes[shard])
                for shard in shards[window * self._window : (window + 1) * self._window]
            ]
        )
        shuffled: NDArray[np.int64] = members[permutation(self._seed, epoch, window, Purpose.SAMPLES, len(members))]
        return shuffled


def rank_slice(batch_size: int, rank: int, world: int) -> slice:
    """Return the part of a global batch that one rank takes; `batch_size` must be a multiple of `world`.

    Example:
        >>> [rank_slice(6, rank, 3) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    assert 0 <= rank < world
    assert batch_size >= 1
    assert batch_size % world == 0, "the settings' check comes before this"
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)
