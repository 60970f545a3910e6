"""Each sample of a split exactly once, in order, over any number of ranks: the loader of evaluation.

Training wants steps without end that are all alike, and may see a sample twice where an epoch ends within a step.
Evaluation wants the opposite. A score over a split counts each sample once, so nothing may be repeated to fill a batch
without being told, nothing dropped as the last batch is short, and the sum must be the same on one rank and on five.
And yet every rank must make the same number of steps with batches of the same size, as all of them meet in a collective
at each step, and a compiled model is compiled for one size.

So the split is cut into one contiguous part a rank, none more than a sample longer than another, and each part is
filled up to the same number of full batches. What fills it is marked: a step multiplies its sums by `~is_padding_B`, or
drops those rows. Contiguous, so that a node fetches its own shards and no others, and that the ranks' results, one
after another, are in the order of the split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import DamagedSamplesError, ShardError
from mrm_stream.records import Sample
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.prefetch import STALLED_AFTER_S, Prefetcher
from mrm_stream.stream.shard_set import DamagedShardError
from mrm_stream.stream.source import SampleSource

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PassBatch(Generic[T]):
    """One step of an evaluation, on one rank."""

    batch: T
    """What the transform made of B draws."""
    indexes_B: NDArray[np.int64]
    """Index of each row's sample in the split; of padding, that of the sample which fills the row."""
    is_padding_B: NDArray[np.bool_]
    """Rows that do not count: they are of another rank or another row, or of no readable sample."""


class EpochPass(Generic[T]):
    """This rank's part of a split, again from its beginning each time that it is iterated over.

    Samples come in the order of their indexes, all under epoch 0, so the random draws of a transform (masked words, for
    instance) are the same at each pass, and scores of two checkpoints differ by the checkpoints alone.

    A sample that cannot be read or transformed is skipped, never replaced: its row is padding. It is logged once, and
    counted in `skipped`, as a score should tell over how many samples it is. A shard that is not what the manifest says
    ends the pass: a score without a whole shard is another split's.

    Args:
        shards: The split to read, or several sets' together; each sample once, whatever their shares. Opened for this
            pass alone: a cache holds what its last reader has hinted at, so that a loader on the same object would be
            left without.
        transform: Turns B draws, in order, into a batch. Called in a thread, and again with other draws if it raises
            `DamagedSamplesError`; any other error of its own is raised to who iterates.
        batch_size: Rows B of each batch of this rank, padding included.
        prefetch: Batches made ahead of use, at least 1.
        rank: Of this process, below `world`.
        world: Ranks in all.
        stalled_after: Seconds to wait for one batch before it is an error.

    Example:
        Three samples on two ranks, with a `batch_size` of 2, are one batch a rank: of sample 0 and a row of padding,
        and of samples 1 and 2.
    """

    def __init__(
        self,
        shards: SampleSource,
        transform: Callable[[Sequence[Draw]], T],
        *,
        batch_size: int,
        prefetch: int,
        rank: int = 0,
        world: int = 1,
        stalled_after: float = STALLED_AFTER_S,
    ) -> None:
        assert batch_size >= 1
        self._pass = _Pass(shards, transform, batch_size, part_of_rank(len(shards), rank, world))
        self._prefetch, self._stalled_after = prefetch, stalled_after
        # All ranks make as many batches as the one with the longest part needs.
        longest = -(-len(shards) // world)
        self._batches = -(-longest // batch_size)

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank."""
        return self._batches

    def __iter__(self) -> Iterator[PassBatch[T]]:
        """Yield this rank's batches.

        Raises:
            ShardError: No sample of the split can be read; or, as DamagedShardError, a shard is damaged where it lies.
            StorageError: A shard cannot be fetched.
            TrainingError: No batch for `stalled_after` seconds.
        """
        batches = Prefetcher(self._pass.batches(len(self)), self._prefetch, stalled_after=self._stalled_after)
        try:
            yield from batches
        finally:  # also where the loop over them was left early
            batches.close()

    @property
    def skipped(self) -> dict[int, str]:
        """Samples of this rank that could not be used so far, by index, each with the reason."""
        return {index: reason for index, reason in [*self._pass.bad.items()] if index in self._pass.part}


def part_of_rank(samples: int, rank: int, world: int) -> range:
    """Return the indexes of a split that one rank takes: contiguous, all parts equal to within one sample.

    Example:
        >>> [part_of_rank(5, rank, 3) for rank in range(3)]
        [range(0, 1), range(1, 3), range(3, 5)]
    """
    assert 0 <= rank < world
    return range(samples * rank // world, samples * (rank + 1) // world)


class _Pass(Generic[T]):
    """What the thread works with: apart from `EpochPass`, which the thread would otherwise keep alive."""

    def __init__(
        self, shards: SampleSource, transform: Callable[[Sequence[Draw]], T], batch_size: int, part: range
    ) -> None:
        self.part = part
        self.bad: dict[int, str] = {}
        """Samples that could not be used, by index, with the reason; kept from pass to pass."""
        self._shards = shards
        self._transform = transform
        self._batch_size = batch_size
        self._ends = np.array([*accumulate(shards.shard_sizes)])

    def batches(self, count: int) -> Iterator[PassBatch[T]]:
        """Yield so many batches, and release what was fetched for them."""
        try:
            for first in range(0, count * self._batch_size, self._batch_size):
                own = self.part[first : first + self._batch_size]
                if self._shards.wants_hints:
                    # This batch's shards and the next one's: reading then runs a batch ahead of itself.
                    self._shards.hint(self._shards_of(self.part[first : first + 2 * self._batch_size]))
                yield self._made(own)
        finally:
            if self._shards.wants_hints:
                # Between two validations the training needs the room of the cache that both share.
                self._shards.hint(())

    def _shards_of(self, indexes: range) -> list[int]:
        if not indexes:
            return []
        first, last = np.searchsorted(self._ends, [indexes[0], indexes[-1]], side="right").tolist()
        return [*range(first, last + 1)]

    def _made(self, own: range) -> PassBatch[T]:
        samples: list[Sample | None] = [self._read(index) for index in own]
        samples += [None] * (self._batch_size - len(own))
        # Each turn finds at least one more bad sample, so this ends.
        while True:
            draws, is_padding_B = self._filled(samples)
            try:
                batch = self._transform(draws)
            except DamagedSamplesError as damaged:
                reasons = damaged.reasons
            else:
                indexes_B = np.array([draw.sample.index for draw in draws], np.int64)
                return PassBatch(batch, indexes_B, is_padding_B)
            assert reasons, "some samples are damaged, but none is named"
            for slot, reason in reasons.items():
                self._mark_bad(draws[slot].sample.index, reason)
            samples = [None if sample is None or sample.index in self.bad else sample for sample in samples]

    def _filled(self, samples: Sequence[Sample | None]) -> tuple[list[Draw], NDArray[np.bool_]]:
        """Return a draw for each slot, and which of them are padding, shape (B,)."""
        is_padding_B = np.array([sample is None for sample in samples])
        # A sample at hand fills the gaps; a rank that has none left reads one. What it is does not matter, but it must
        # be one that the transform takes, and made into the shapes of all others.
        filler = next((sample for sample in samples if sample is not None), None)
        if filler is None:
            filler = self._any_good()
        return [Draw(sample if sample is not None else filler, epoch=0) for sample in samples], is_padding_B

    def _any_good(self) -> Sample:
        for index in range(len(self._shards)):
            sample = self._read(index)
            if sample is not None:
                return sample
        raise ShardError(
            "no sample of the split can be used",
            where=self._shards.directory,
            remedy="`mrm-stream verify DIR --decode` tells why; `mrm-stream repair DIR --root SOURCE` packs it again.",
        )

    def _read(self, index: int) -> Sample | None:
        if index in self.bad:
            return None
        try:
            return self._shards.sample(index)
        except DamagedShardError:
            raise
        except ShardError as error:
            self._mark_bad(index, error.what)
            return None

    def _mark_bad(self, index: int, reason: str) -> None:
        if index in self.bad:  # it fills rows of padding too
            return
        # A sample of another rank that was to fill a row is told by that rank.
        if index in self.part:
            log.warning("bad sample %s is skipped: %s", self._shards.location(index), reason)
        self.bad[index] = reason
