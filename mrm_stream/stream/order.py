"""The order of samples: a pure function of the shards' sizes, the seed and the position.

The usual way to shuffle tars is a tape: stream them one after another into a buffer, and draw from the buffer at
random. What comes next then depends on all that came before, so nobody can say what step 70,000 is made of without
reading up to it, and with several readers not even then. A function answers at once, for any step: a killed run
continues with the very batches that it would have had, and the cache and the checksums can work ahead of it.

Why not permute all samples of an epoch? It would be the best shuffle, but neighbours in it lie in different shards: a
batch of 4,096 would touch as many of them, and a cache would have to hold the whole set. So shards are permuted first,
and then samples within a *window* of some shards: 16 of them hold 8,000 samples, of which batches are drawn, while the
disk reads 16 files at a time. Packing deals a data set's records out to shards at random, so the samples of a window
are a random draw from the whole set already (`mrm-stream bench order` measures it).

Why are positions global? Position P is number P % N of epoch P // N, N being the samples of the set, and it runs on
without end. Step t of a global batch of G takes the positions [t * G, (t + 1) * G), and each rank a contiguous slice of
them. So the order knows nothing of ranks, workers or batch sizes, and they may change while a run is stopped. An epoch
ends within a step and the next one begins there: no sample is dropped, padded or seen twice in an epoch, and every rank
has the same number of samples in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrm_stream.randomness import Purpose, permutation

EPOCHS = 2**32
"""Epochs that the random draws can tell apart."""
BLOCK = 1 << 14
"""Shards that are permuted at a time: time and memory of a permutation do not grow with the set beyond it."""


class Order:
    """Shards permuted over an epoch, then samples permuted within each window of `window` shards.

    Sets of more than `BLOCK` shards (8 million samples, as they are packed) are permuted block by block, and the
    blocks among themselves. Permutations are computed when they are reached, and the last few are kept: beyond 4 bytes
    a shard, memory grows with the samples of a window alone.

    Args:
        shard_sizes: Samples of each shard, (shards,); a sample's index counts through the shards in this order.
        seed: Of the run.
        window: Shards that are mixed; one window covers the whole set where it is no smaller.

    Example:
        >>> order = Order([2, 1], seed=0, window=1)
        >>> epochs, indexes = order.indexes(range(6))
        >>> epochs.tolist(), sorted(indexes[:3].tolist()), sorted(indexes[3:].tolist())
        ([0, 0, 0, 1, 1, 1], [0, 1, 2], [0, 1, 2])
    """

    def __init__(self, shard_sizes: Sequence[int] | NDArray[np.integer], seed: int, window: int) -> None:
        self._sizes = np.asarray(shard_sizes, np.int32)
        assert window >= 1
        assert self._sizes.min(initial=0) >= 0
        # Block by block: a sum of all in 64 bits would first make a copy of all, 8 bytes a shard.
        blocks = range(0, len(self._sizes), BLOCK)
        block_sizes = np.array([self._sizes[first : first + BLOCK].sum(dtype=np.int64) for first in blocks], np.int64)
        self._block_firsts = np.cumsum(block_sizes) - block_sizes
        self._block_sizes = block_sizes
        self._seed = seed
        self._window = window
        self._windows_a_block = -(-BLOCK // window)
        self.shards = len(self._sizes)
        self.samples = int(block_sizes.sum())
        assert self.samples > 0, "an empty set has no order"
        # Two epochs, as a step may begin in one and end in the next.
        self._blocks = lru_cache(maxsize=2)(self._permuted_blocks)
        self._shards = lru_cache(maxsize=4)(self._permuted_shards)
        # A batch meets at most a few windows at a time; a window of 16 shards of 1,000 takes 5 ms to permute.
        self._permuted = lru_cache(maxsize=4)(self._permuted_samples)

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch, and the index of the sample, at one position."""
        epochs, indexes = self.indexes([position])
        return int(epochs[0]), int(indexes[0])

    def indexes(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epochs and the sample indexes, each of shape (B,), at B positions (in any order)."""
        epochs_B, offsets_B = np.divmod(np.asarray(positions, np.int64), self.samples)
        assert ((epochs_B >= 0) & (epochs_B < EPOCHS)).all()
        indexes_B = np.empty_like(offsets_B)
        for epoch, block, window, slots, start in self._windows_of(epochs_B, offsets_B):
            indexes_B[slots] = self._permuted(epoch, block, window)[offsets_B[slots] - start]
        return epochs_B, indexes_B

    def windows_from(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the window at a position, then those after it: the samples that it still gives, and its shards.

        What will be read, without permuting a sample: for who fetches or compares shards ahead of need.
        """
        epoch, offset = divmod(position, self.samples)
        ((_, block, window, _, start),) = self._windows_of(np.array([epoch]), np.array([offset]))
        given = offset - start
        while epoch < EPOCHS:
            blocks, _ = self._blocks(epoch)
            for following in blocks[np.flatnonzero(blocks == block)[0] :].tolist():
                shards, _ = self._shards(epoch, following)
                for first in range(window * self._window, len(shards), self._window):
                    members = shards[first : first + self._window]
                    yield int(self._sizes[members].sum()) - given, members.tolist()
                    given = 0
                window = 0
            epoch += 1
            block = int(self._blocks(epoch)[0][0]) if epoch < EPOCHS else 0

    def _windows_of(
        self, epochs_B: NDArray[np.int64], offsets_B: NDArray[np.int64]
    ) -> Iterator[tuple[int, int, int, NDArray[np.int64], int]]:
        """Yield epoch, block, window, the slots of the batch that fall there, and the window's offset in the epoch."""
        # A batch is contiguous as a rule and meets a window or two: a loop over windows, with arrays inside, costs a
        # permutation for each and next to nothing for each sample.
        for epoch in np.unique(epochs_B).tolist():
            blocks, block_starts = self._blocks(epoch)
            in_epoch = np.flatnonzero(epochs_B == epoch)
            # side="right" steps over blocks and windows without samples.
            turns = np.searchsorted(block_starts, offsets_B[in_epoch], side="right") - 1
            for turn in np.unique(turns).tolist():
                in_block = in_epoch[turns == turn]
                block, block_start = int(blocks[turn]), int(block_starts[turn])
                _, starts = self._shards(epoch, block)
                windows = np.searchsorted(starts, offsets_B[in_block] - block_start, side="right") - 1
                for window in np.unique(windows).tolist():
                    yield epoch, block, window, in_block[windows == window], block_start + int(starts[window])

    def _permuted_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an epoch's blocks in order, and the offset in the epoch at which each starts."""
        blocks = permutation(self._seed, epoch, 0, Purpose.BLOCKS, len(self._block_sizes))
        sizes = self._block_sizes[blocks]
        return blocks, np.cumsum(sizes) - sizes

    def _permuted_shards(self, epoch: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a block's shards in the epoch's order, and the offset in the block at which each window starts."""
        first = block * BLOCK
        count = min(BLOCK, len(self._sizes) - first)
        shards = first + permutation(self._seed, epoch, block, Purpose.SHARDS, count)
        sizes = self._sizes[shards].astype(np.int64)
        return shards, (np.cumsum(sizes) - sizes)[:: self._window]

    def _permuted_samples(self, epoch: int, block: int, window: int) -> NDArray[np.int64]:
        """Return the indexes of a window's samples, in order."""
        shards, _ = self._shards(epoch, block)
        first = block * BLOCK
        # Indexes count through the shards as they are numbered, not as they were permuted.
        sizes = self._sizes[first : first + BLOCK].astype(np.int64)
        firsts = self._block_firsts[block] + np.cumsum(sizes) - sizes
        members = np.concatenate(
            [
                np.arange(firsts[shard - first], firsts[shard - first] + sizes[shard - first])
                for shard in shards[window * self._window : (window + 1) * self._window].tolist()
            ]
        )
        # A number of its own for each window of an epoch, or two windows would be shuffled alike.
        stream = block * self._windows_a_block + window
        shuffled: NDArray[np.int64] = members[permutation(self._seed, epoch, stream, Purpose.SAMPLES, len(members))]
        return shuffled


def rank_slice(batch_size: int, rank: int, world: int) -> slice:
    """Return the part of a global batch that one rank takes; `batch_size` must be a multiple of `world`.

    Example:
        >>> [rank_slice(6, rank, 3) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    assert 0 <= rank < world
    assert batch_size >= 1
    # Contiguous, not every `world`-th: a rank's samples then lie in as few windows as possible.
    assert batch_size % world == 0, "the settings' check comes before this"
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)


def steps_of(samples: int, epochs: int, batch_size: int) -> int:
    """Return how many steps take every sample `epochs` times; the last one may run into the epoch after.

    Every rank takes as many, whatever the number of ranks.

    Example:
        >>> steps_of(10, 2, 6), steps_of(5, 1, 8)
        (4, 1)
    """
    return -(-samples * epochs // batch_size)
