"""What `bench order` measures of a shuffle, and what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import ConfigError

FULL = "full shuffle"
NONE = "no shuffle"
ARRANGEMENTS = ("sorted", "packed")
"""How the shards hold the source: as it is listed, or dealt out as `mrm-stream shard` does."""


@dataclass(frozen=True, slots=True)
class OrderBenchOptions:
    """What is measured."""

    samples: int = 200_000
    samples_per_shard: int = 512
    batch_size: int = 256
    positive: float = 0.2
    """Share of the source with the label; the source lists these samples first."""
    seeds: int = 5
    windows: tuple[int, ...] = (4, 16, 64)
    """Of our order, in shards."""
    buffers: tuple[int, ...] = (1_000, 10_000)
    """Of WebDataset, in samples."""

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("samples", 2, 10_000_000),
            ("samples_per_shard", 1, 1 << 20),
            ("batch_size", 1, self.samples),
            ("seeds", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"must be between {low} and {high}", where=name)
        if not 1 <= self.positives < self.samples:
            raise ConfigError("must leave some samples with the label and some without", where="positive")
        for name in ("windows", "buffers"):
            if min(getattr(self, name), default=1) < 1:
                raise ConfigError("must be at least 1", where=name)

    @property
    def positives(self) -> int:
        """Samples with the label."""
        return round(self.positive * self.samples)


@dataclass(frozen=True, slots=True)
class Quality:
    """How well one epoch is shuffled; beside each measure, what a perfect shuffle has."""

    neighbours: float
    """Median distance in the source of two samples that follow each other, over that of a full shuffle: 1."""
    correlation: float
    """Of the position in the source and the position in the epoch, without its sign: near 0."""
    label_correlation: float
    """Of the label and the position in the epoch, without its sign: near 0."""
    one_shard: float
    """Largest share of a batch that comes from one shard, mean over the batches: about 1 / batch size, or a shard's
    share of the set where that is more."""
    label_spread: float
    """Standard deviation of the label's share in a batch, over that of as many independent draws: 1."""


def measure_quality(
    order: NDArray[np.int64],
    source: NDArray[np.int64],
    shard_sizes: NDArray[np.int64],
    full_distance: float,
    options: OrderBenchOptions,
) -> Quality:
    """Return the quality of one epoch.

    Args:
        order: Index in the shards of the sample at each position, shape (samples,).
        source: Position in the source of the sample at each index, shape (samples,).
        shard_sizes: Samples of each shard, shape (shards,).
        full_distance: Median distance of neighbours in a full shuffle.
        options: Batch size and labels.
    """
    positions_T = source[order]
    labels = positions_T < options.positives
    whole = len(order) // options.batch_size * options.batch_size
    shards = np.searchsorted(np.cumsum(shard_sizes), order[:whole], side="right").reshape(-1, options.batch_size)
    shares = labels[:whole].reshape(-1, options.batch_size).mean(1)
    expected = options.positives / options.samples
    spread = np.sqrt(((shares - expected) ** 2).mean())
    epoch = np.arange(len(order))
    return Quality(
        neighbours=neighbour_distance(positions_T) / full_distance,
        correlation=abs(float(np.corrcoef(epoch, positions_T)[0, 1])),
        label_correlation=abs(float(np.corrcoef(epoch, labels)[0, 1])),
        one_shard=float(np.mean([np.bincount(row).max() for row in shards])) / options.batch_size,
        label_spread=float(spread / np.sqrt(expected * (1 - expected) / options.batch_size)),
    )


def neighbour_distance(positions_T: NDArray[np.int64]) -> float:
    """Return the median distance in the source of samples that follow each other in an epoch.

    Args:
        positions_T: Where in the source each sample of the epoch is, shape (T,).

    Example:
        >>> neighbour_distance(np.array([0, 5, 3, 4]))
        2.0
    """
    return float(np.median(np.abs(np.diff(positions_T))))


@dataclass(frozen=True, slots=True)
class OrderBench:
    """What was measured."""

    options: OrderBenchOptions
    date: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    qualities: dict[str, dict[str, tuple[Quality, ...]]]
    """Arrangement to shuffle to its quality, seed by seed."""
    examples: dict[str, NDArray[np.int64]]
    """Shuffle to the position in the source at each position of an epoch, of sorted shards, shape (samples,)."""

    @property
    def shuffles(self) -> list[str]:
        """What was compared, in the order of the table."""
        return list(self.qualities[ARRANGEMENTS[0]])

    def mean(self, arrangement: str, shuffle: str, measure: str) -> float:
        """Return one measure (a field of `Quality`), mean over the seeds."""
        return mean(float(getattr(quality, measure)) for quality in self.qualities[arrangement][shuffle])

    def to_json(self) -> dict[str, Any]:
        """Return everything but the examples as JSON holds it."""
        return {
            "benchmark": "order",
            "date": self.date,
            "versions": self.versions,
            "settings": asdict(self.options),
            "shuffles": {
                arrangement: {
                    shuffle: {
                        "mean": {name: self.mean(arrangement, shuffle, name) for name in Quality.__dataclass_fields__},
                        "seeds": [asdict(quality) for quality in qualities],
                    }
                    for shuffle, qualities in by_shuffle.items()
                }
                for arrangement, by_shuffle in self.qualities.items()
            },
        }
