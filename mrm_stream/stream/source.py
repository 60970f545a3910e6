"""What a loader reads from: one packed set or several joined ones, which it need not tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrm_stream.errors import ShardError
from mrm_stream.formats.manifest import Manifest, ReportsEntry
from mrm_stream.records import Sample
from mrm_stream.storage.paths import AnyPath
from mrm_stream.stream.cache import CacheCounts


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task reads of each sample besides its image; a set that lacks it is refused when it is opened.

    Token ids come with every sample of a set that has reports, as they cost nothing: they are views. Labels must be
    parsed, so they come only where they are needed, and masks with them.
    """

    reports: bool = False
    labels: bool = False
    masks: bool = False


IMAGES = Needs()
"""No more than images."""


class SampleOrder(Protocol):
    """A pure function from positions to samples; see `Order`, and `Mixture` for several sets."""

    samples: int
    """Positions of an epoch."""

    def indexes(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epochs and the sample indexes, each of shape (B,), at B positions."""

    def windows_from(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the windows from a position on: the samples that each still gives, and its shards."""


class SampleSource(Protocol):
    """Samples by index, and what a run must know of them."""

    def __len__(self) -> int: ...

    @property
    def directory(self) -> AnyPath:
        """Where the samples lie, for messages."""

    @property
    def reports(self) -> ReportsEntry | None:
        """The tokenizer and the dictionary of the reports; None where samples have no reports. See `reports_of`."""

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard; a sample's index counts through the shards in this order."""

    @property
    def fingerprint(self) -> str:
        """What tells these samples from any others: a resumed run must have the same."""

    @property
    def is_cached(self) -> bool:
        """Whether shards are fetched before they are read."""

    @property
    def wants_hints(self) -> bool:
        """Whether it is of use to tell what will be read next."""

    def order(self, seed: int, window: int) -> SampleOrder:
        """Return the order in which a run reads the samples."""

    def sample(self, index: int) -> Sample:
        """Return the sample at an index."""

    def location(self, index: int) -> str:
        """Return where a sample lies, for messages: shard and key."""

    def hint(self, shards: Sequence[int]) -> None:
        """Tell which shards will be read next, in this order, and that no others will be."""

    def cache_counts(self) -> CacheCounts:
        """Return what the cache has done."""

    def tokenizer_file(self) -> Path:
        """Return the tokenizer that the token ids are of."""

    def close(self) -> None:
        """Stop what runs in the background, and release what is held."""


def reports_of(samples: SampleSource) -> ReportsEntry:
    """Return what the reports of all samples share.

    Raises:
        ShardError: There are samples without reports.
    """
    if samples.reports is None:
        raise no_reports(samples.directory)
    return samples.reports


def check_needs(needs: Needs, manifest: Manifest, directory: AnyPath) -> None:
    """Raise ShardError where a packed set lacks what a task needs; labels are in every set, be they none."""
    if needs.reports and manifest.reports is None:
        raise no_reports(directory)
    if needs.masks and not manifest.has_masks:
        raise ShardError(
            "the set has no masks", where=directory, remedy="Pack a data set that has masks, such as --src siim."
        )


def no_reports(directory: AnyPath) -> ShardError:
    """Return the error of a set whose samples have no reports, where they are needed."""
    return ShardError(
        "the set has no reports: it is for fine-tuning",
        where=directory,
        remedy="Pre-train on a set of radiographs with reports.",
    )
