"""Encoded samples in a known order -> one transformed batch a step, without end: prefetched, and resumable.

The usual loader is a tape: worker processes each stream their own tars through a shuffle buffer. Then what a step is
made of depends on how many workers and ranks there are and on who was fast, a resumed run must skip what it has read
(or repeat it), and ranks whose tars are shorter run dry while the others wait for them in a collective.

Here the order is a function of the position (see `order.py`), so the loader keeps one number: the global position after
the last batch that it handed out. Step t of B samples takes positions [t * B, (t + 1) * B), rank r of W the r-th of W
equal parts of them, and resuming is setting the number. It may be done on another number of ranks, as positions are of
the run and not of a rank.

One thread makes the batches; there are no worker processes. Reading is slicing a memory map, and the decoders that the
transform calls run their own threads without the interpreter's lock, so more processes would only copy samples between
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeGuard, TypeVar

import numpy as np

from mrm_stream.errors import CheckpointError, DamagedSamplesError, ShardError, TrainingError
from mrm_stream.records import Sample
from mrm_stream.stream.order import EPOCHS, rank_slice
from mrm_stream.stream.prefetch import STALLED_AFTER_S, Prefetcher
from mrm_stream.stream.shard_set import DamagedShardError
from mrm_stream.stream.source import SampleOrder, SampleSource

T = TypeVar("T")
log = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample, and the epoch that its random draws are keyed by."""

    sample: Sample
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """What the steps of a run are made of; the same on every rank."""

    seed: int
    """Of the run: keys the order and each sample's random draws."""
    batch_size: int
    """Samples of one step over all ranks; a multiple of their number."""
    window: int
    """Shards that are shuffled together, see `Order`."""
    prefetch: int
    """Batches made ahead of the step that takes them, at least 1."""
    max_bad_samples: int
    """A run ends when one rank has replaced more samples than this."""
    stalled_after: float = STALLED_AFTER_S
    """Seconds to wait for one batch before it is an error."""


class Loader(Iterator[T]):
    """This rank's slice of one global batch after another, without end, transformed ahead of use in a thread.

    A sample that cannot be read or transformed is replaced by the next good one of the set, counting its index up and
    around. So what a step is made of depends on which samples are bad, not on when or by which rank that was found.
    A shard that is not what the manifest says has no good samples to go on with: it ends the run.

    Args:
        shards: The split to read, or several sets' together.
        transform: Turns this rank's draws, in order, into a batch. Called in the thread, and again with other draws
            if it raises `DamagedSamplesError`; any other error of its own is raised by `next()`.
        options: What the steps are made of.
        rank: Of this process, below `world`.
        world: Ranks in all.
    """

    def __init__(
        self,
        shards: SampleSource,
        transform: Callable[[Sequence[Draw]], T],
        options: LoaderOptions,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._identity = {"seed": options.seed, "window": options.window, "fingerprint": shards.fingerprint}
        self._options = options
        self._batches = _Batches(shards, transform, options, rank_slice(options.batch_size, rank, world))
        self._prefetcher: Prefetcher[_Made[T]] | None = None
        self._closed = False
        self._position = 0
        self._bad_count = 0

    def __next__(self) -> T:
        """Return the next batch.

        Raises:
            TrainingError: Too many bad samples, or no batch for `stalled_after` seconds.
            DamagedShardError: A shard is damaged where it lies.
            StorageError: A shard cannot be fetched.
            StopIteration: The loader is closed; an error closes it too.
        """
        if self._closed:
            raise StopIteration
        if self._prefetcher is None:
            # Begun with the first batch, not when the loader is made: until then a state may be loaded.
            items = self._batches.following(self._position)
            self._prefetcher = Prefetcher(items, self._options.prefetch, stalled_after=self._options.stalled_after)
        made = next(self._prefetcher)
        # The thread is ahead by some batches, which a resumed run must make again: only what was handed out counts.
        self._position = made.position
        self._bad_count = made.bad_count
        return made.batch

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seconds_waited(self) -> float:
        """Time that the consumer has spent waiting for batches."""
        return self._prefetcher.seconds_waited if self._prefetcher is not None else 0.0

    @property
    def bad_samples(self) -> list[int]:
        """Indexes of the samples replaced in the batches so far, in the order that they were found."""
        return list(self._batches.bad)[: self._bad_count]

    def close(self) -> None:
        """Stop the thread and drop the batches made ahead. A closed loader has no more batches."""
        self._closed = True
        if self._prefetcher is not None:
            self._prefetcher.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what continues after the last batch handed out: JSON types; positions are of the global order."""
        # The bad samples too: a resumed run would else find them again one by one, with its budget granted anew.
        return {
            "version": STATE_VERSION,
            **self._identity,
            "position": self._position,
            "bad_samples": self.bad_samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, before the first batch. Ranks and batch size may have changed since.

        Raises:
            CheckpointError: The state is of another set, seed, window or version, or is damaged.
        """
        assert self._prefetcher is None, "the loader has begun already"
        version = state.get("version")
        if version != STATE_VERSION:
            raise _refused(f"has version {version!r}, not {STATE_VERSION}", "Use the release that saved it.")
        remedies = {
            "seed": "Set the seed that the run was begun with, or begin a new run.",
            "window": "Set data.window as the run was begun with, or begin a new run.",
            "fingerprint": "Use the packed set and split that the run was begun with, or begin a new run.",
        }
        # With any of these changed the same position is another sample: the run would go on without an error, but see
        # some samples twice in an epoch and others never.
        for name, ours in self._identity.items():
            if state.get(name) != ours:
                raise _refused(f"has {name} {state.get(name)!r}, this run has {ours!r}", remedies[name])
        samples = self._batches.order.samples
        position, bad_samples = state.get("position"), state.get("bad_samples")
        another = "Resume from another checkpoint."
        if not _is_index(position, samples * EPOCHS):
            raise _refused(f"has position {position!r}, which no run reaches", another)
        if not isinstance(bad_samples, list) or not all(_is_index(index, samples) for index in bad_samples):
            raise _refused("does not list bad samples of this set", another)
        # A dictionary as an ordered set: the state lists them in the order in which they were found.
        bad = dict.fromkeys(bad_samples)
        if len(bad) == samples:  # the search for a good one would never end
            raise _refused("lists all samples of this set as bad samples", another)
        self._batches.bad, self._bad_count = bad, len(bad)
        self._position = position


def _is_index(value: object, end: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < end


def _refused(what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"the saved order of samples {what}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    """A batch, and what the state is once it has been handed out."""

    batch: T
    position: int
    bad_count: int


class _Batches(Generic[T]):
    """What the thread works with: apart from `Loader`, which the thread would otherwise keep alive for ever."""

    def __init__(
        self,
        shards: SampleSource,
        transform: Callable[[Sequence[Draw]], T],
        options: LoaderOptions,
        part: slice,
    ) -> None:
        self.order: SampleOrder = shards.order(options.seed, options.window)
        self.bad: dict[int, None] = {}
        """Bad samples by index, in the order that they were found; grows only."""
        self._shards = shards
        self._transform = transform
        self._batch_size = options.batch_size
        self._part = part
        """This rank's positions of a step."""
        self._max_bad_samples = options.max_bad_samples
        self._hinted: list[int] = []

    def following(self, position: int) -> Iterator[_Made[T]]:
        """Yield this rank's batches from a global position on."""
        while True:
            if self._shards.wants_hints:
                self._hint(position)
            # This rank's alone: of a step of 262,144 samples over thousands of ranks, each computes its own few.
            positions_B = np.arange(position + self._part.start, position + self._part.stop)
            epochs_B, indexes_B = self.order.indexes(positions_B)
            pairs = zip(indexes_B.tolist(), epochs_B.tolist(), strict=True)
            batch = self._transformed([Draw(self._good_sample(index), epoch) for index, epoch in pairs])
            # The whole step's: all ranks come to the same position, so any rank's state resumes all of them.
            position += self._batch_size
            yield _Made(batch, position, len(self.bad))

    def _hint(self, position: int) -> None:
        """Tell which shards this rank's part of this step and of the next needs, and the window after them.

        Not those of the whole steps: the parts of thousands of ranks lie windows apart, and each node would fetch all.
        """
        wanted: dict[int, None] = {}
        for step in (position, position + self._batch_size):
            # Negative while the windows so far do not hold all of this rank's part.
            covered = -(self._part.stop - self._part.start)
            for samples, shards in self.order.windows_from(step + self._part.start):
                is_enough = covered >= 0
                # The window after those is this rank's next only where a window holds several steps; where a step
                # spans many windows, other ranks read it.
                if is_enough and samples < self._batch_size:
                    break
                wanted |= dict.fromkeys(shards)
                if is_enough:
                    break
                covered += samples
        # Mostly what it was: a window lasts for several steps, and a hint takes locks.
        if [*wanted] != self._hinted:
            self._hinted = [*wanted]
            self._shards.hint(self._hinted)

    def _transformed(self, draws: list[Draw]) -> T:
        # Each turn marks at least one more sample as bad, so this ends: with a batch, or at what is allowed.
        while True:
            try:
                return self._transform(draws)
            except DamagedSamplesError as damaged:
                reasons = damaged.reasons
            assert reasons, "some samples are damaged, but none is named"
            # Only the decoder can tell that a JPEG is damaged, and does so for a whole batch at once.
            for slot, reason in reasons.items():
                self._mark_bad(draws[slot].sample.index, reason)
            draws = [self._replaced(draw) for draw in draws]

    def _replaced(self, draw: Draw) -> Draw:
        index = draw.sample.index
        return Draw(self._good_sample(index), draw.epoch) if index in self.bad else draw

    def _good_sample(self, index: int) -> Sample:
        """Return the sample of an index, or the next good one by index.

        By index, not by position: the next position is another slot's sample, or another rank's, and which samples
        were bad would move all that follow.
        """
        while True:
            while index in self.bad:
                index = (index + 1) % self.order.samples
            try:
                return self._shards.sample(index)
            except DamagedShardError:
                # A shard's neighbours are no better; replacing all of them would change the data set in silence.
                raise
            except ShardError as error:
                self._mark_bad(index, error.what)

    def _mark_bad(self, index: int, reason: str) -> None:
        if index in self.bad:  # it fills several slots: the batch is larger than the set
            return
        self.bad[index] = None
        # Once each, by its key: a report or a pixel of a patient never reaches a log.
        log.warning("bad sample %s is replaced: %s", self._shards.location(index), reason)
        count = len(self.bad)
        if count > self._max_bad_samples or count == self.order.samples:
            first = "; ".join(self._shards.location(bad) for bad in list(self.bad)[:3])
            raise TrainingError(
                f"{count} of {self.order.samples} samples are bad, data.max_bad_samples is {self._max_bad_samples}: "
                f"{first}{'; ...' if count > 3 else ''}",
                where=self._shards.directory,
                remedy="Run `mrm-stream shard` again, or raise data.max_bad_samples if so many may be replaced.",
            )
