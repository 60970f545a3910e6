"""`mrm-stream plan`: simulates how a run of any size reads its shards, without data: order, state and traffic.

The order and the loader are the real ones; only the shards are made up. So what the table says of time, memory and
shards is measured, for one node and a few steps, and extrapolated to an epoch. (`packing.plan` is something else: which
records go into which shard.)
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import ConfigError, MrmStreamError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.records import Sample
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.order import EPOCHS, Order, rank_slice, steps_of
from mrm_stream.stream.shard_set import ShardSet

POSITIONS = 20
"""Random positions in the epochs, at each of which a new order is entered."""
_WINDOWS = 4
"""Windows of shards that the steps whose traffic is counted go through, if that takes no more than `_MOST_STEPS`."""
_MOST_STEPS = 2000
_SMALLEST = 1_000_000
_LARGEST = 10**11
"""Samples: the sizes of 200 million shards of 512 are 0.8 GB."""


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The run that is simulated."""

    samples: int
    ranks: int
    batch_size: int
    """Samples of a step over all ranks."""
    ranks_per_node: int = 8
    """Ranks that share a cache."""
    samples_per_shard: int = 512
    window: int = 16
    shard_mb: float = 100.0
    """Size of a shard in megabytes (10^6 bytes)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("samples", 1, _LARGEST),
            ("ranks", 1, 10**6),
            ("ranks_per_node", 1, self.ranks),
            ("samples_per_shard", 1, 1 << 20),
            ("window", 1, 10**6),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"must be between {low:,} and {high:,}", where=name)
        if self.batch_size < 1 or self.batch_size % self.ranks:
            raise ConfigError(
                f"must be a multiple of the {self.ranks} ranks",
                where="batch_size",
                remedy=f"Take {max(1, round(self.batch_size / self.ranks)) * self.ranks}.",
            )
        if self.shard_mb <= 0:
            raise ConfigError("must be positive", where="shard_mb")

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.samples // self.samples_per_shard)

    @property
    def counted_steps(self) -> int:
        """Steps whose traffic is counted, after one that fills the cache."""
        through = round(_WINDOWS * self.window * self.samples / self.shards / self.batch_size)
        return min(max(through, _WINDOWS), _MOST_STEPS)

    def shard_sizes(self) -> NDArray[np.int32]:
        """Return the samples of each shard, (shards,), which differ by one at most, as packing makes them."""
        sizes = np.full(self.shards, self.samples // self.shards, np.int32)
        sizes[: self.samples % self.shards] += 1
        return sizes


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one node asks of its cache, in prefetch hints and reads."""

    hinted: float
    """Shards that its ranks have fetched, once for all of them, in an epoch: those of each step that were not
    already there in the step before."""
    read: float
    """Those that its ranks read a sample of while they are there; other nodes read other samples of the same shard."""
    held: int
    """Most shards in its ranks' prefetch hints at a time: what the cache must hold."""
    open: int
    """Most shards that one rank reads in a step."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """One size of set."""

    options: SimulationOptions
    state_bytes: int
    """Of the saved state of the loader, as JSON, far into a run."""
    enter_seconds: tuple[float, ...]
    """From an array of the shards' sizes to a rank's share of a batch at a random position, each in a new `Order`."""
    memory_bytes: int | None
    """By which a fresh process grows at its peak: sizes, order, and some steps in several epochs. None: unknown."""
    list_bytes: int
    """Computed: the manifest's entries as a rank's `ShardSet` holds them, which are no part of the order."""
    traffic: Traffic

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_of(self.options.samples, 1, self.options.batch_size)


def sizes_up_to(samples: int) -> list[int]:
    """Return the sizes of a table's rows: powers of ten from a million on, then the size itself.

    Example:
        >>> sizes_up_to(30_000_000), sizes_up_to(500)
        ([1000000, 10000000, 30000000], [500])
    """
    powers = [10**power for power in range(round(math.log10(_SMALLEST)), 13) if 10**power < samples]
    return [*powers, samples]


def simulate_run(options: SimulationOptions, *, positions: int = POSITIONS) -> Simulation:
    """Simulate one size of set.

    Args:
        options: The run.
        positions: How many random positions the order is entered at, at least 1.

    Raises:
        MrmStreamError: The process that measures memory was killed.
    """
    assert positions >= 1
    sizes = options.shard_sizes()
    drawn = random.Random(options.seed)
    starts = [drawn.randrange(100 * options.samples) for _ in range(positions)]
    return Simulation(
        options=options,
        state_bytes=_state_bytes(options),
        enter_seconds=tuple(_seconds_to_enter(options, sizes, start) for start in starts),
        memory_bytes=_afresh(options),
        list_bytes=options.shards * _bytes_per_entry(),
        traffic=count_traffic(options, start=starts[0], steps=1 + options.counted_steps),
    )


def count_traffic(options: SimulationOptions, *, start: int, steps: int) -> Traffic:
    """Let the loaders of one node, in the middle of the world, take some steps, and count their shards.

    Args:
        options: The run.
        start: Global position of the first step.
        steps: How many, at least 2: the first one fills an empty cache, and is not counted.
    """
    assert steps >= 2
    sizes = options.shard_sizes()
    order = Order(sizes, options.seed, options.window)
    first = options.ranks // options.ranks_per_node // 2 * options.ranks_per_node
    ranks = range(first, min(first + options.ranks_per_node, options.ranks))
    hinted: list[set[int]] = [set() for _ in range(steps)]
    read: list[set[int]] = [set() for _ in range(steps)]
    most_open = 0
    for rank in ranks:
        for number, (wanted, taken) in enumerate(_steps_of_rank(options, order, sizes, rank, start, steps)):
            hinted[number] |= wanted
            read[number] |= taken
            most_open = max(most_open, len(taken))
    new_hinted, new_read = _count_new(hinted, read)
    epochs = (steps - 1) * options.batch_size / options.samples
    return Traffic(
        hinted=new_hinted / epochs,
        read=new_read / epochs,
        held=max(map(len, hinted)),
        open=most_open,
    )


def _count_new(hinted: Sequence[set[int]], read: Sequence[set[int]]) -> tuple[int, int]:
    """Return how many shards come after the first step, and how many are read for the first time since they came."""
    come, taken, used = 0, 0, read[0]
    for before, now, reading in zip(hinted, hinted[1:], read[1:], strict=False):
        come += len(now - before)
        used = used & now
        taken += len(reading - used)
        used |= reading
    return come, taken


class _PaperSet:
    """Stands in for a `ShardSet` that is read through a cache: it notes what it is asked for, and has no bytes."""

    wants_hints = True
    directory = "paper"
    # As long as a real one: it is part of the state.
    fingerprint = f"{'0' * 64}/train"

    def __init__(self, order: Order, sizes: NDArray[np.int32]) -> None:
        self.shard_sizes = sizes
        self.hinted: set[int] = set()
        self._order = order

    def order(self, seed: int, window: int) -> Order:
        return self._order

    def hint(self, shards: Sequence[int]) -> None:
        self.hinted = set(shards)

    def sample(self, index: int) -> Sample:
        return Sample(index, "", b"", np.empty(0, np.uint16))


def _loader(
    paper: _PaperSet,
    transform: Callable[[Sequence[Draw]], tuple[set[int], set[int]]],
    options: SimulationOptions,
    rank: int,
) -> Loader[tuple[set[int], set[int]]]:
    steps = LoaderOptions(
        seed=options.seed, batch_size=options.batch_size, window=options.window, prefetch=1, max_bad_samples=0
    )
    return Loader(cast(ShardSet, paper), transform, steps, rank=rank, world=options.ranks)


def _steps_of_rank(
    options: SimulationOptions, order: Order, sizes: NDArray[np.int32], rank: int, start: int, steps: int
) -> list[tuple[set[int], set[int]]]:
    """Return for each step the shards in a rank's prefetch hint, and those that it reads."""
    paper = _PaperSet(order, sizes)
    ends = np.cumsum(sizes, dtype=np.int64)

    def shards_of(draws: Sequence[Draw]) -> tuple[set[int], set[int]]:
        indexes = [draw.sample.index for draw in draws]
        return paper.hinted, set(np.searchsorted(ends, indexes, side="right").tolist())

    with ExitStack() as stack:
        loader = stack.enter_context(_loader(paper, shards_of, options, rank))
        loader.load_state_dict(loader.state_dict() | {"position": start})
        return [next(loader) for _ in range(steps)]


def _state_bytes(options: SimulationOptions) -> int:
    sizes = options.shard_sizes()
    paper = _PaperSet(Order(sizes, options.seed, options.window), sizes)
    with _loader(paper, lambda draws: (set(), set()), options, 0) as loader:
        loader.load_state_dict(loader.state_dict() | {"position": 100 * options.samples})
        return len(json.dumps(loader.state_dict()).encode())


def _seconds_to_enter(options: SimulationOptions, sizes: NDArray[np.int32], position: int) -> float:
    share = options.batch_size // options.ranks
    start = time.perf_counter()
    Order(sizes, options.seed, options.window).indexes(np.arange(position, position + share))
    return time.perf_counter() - start


def _bytes_per_entry() -> int:
    entry = ShardEntry("train-1234567.tar", 512, 100_000_000, f"{1:064x}", f"{2:064x}")
    values = (entry.file, entry.samples, entry.bytes, entry.sha256, entry.index_sha256)
    # What `ShardSet` keeps besides, 8 bytes a reference: the entry, its size, and the index of its first sample.
    return sys.getsizeof(entry) + sum(map(sys.getsizeof, values)) + 3 * 8 + sys.getsizeof(10**9)


def _afresh(options: SimulationOptions) -> int | None:
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_growth, options).result()
    except BrokenProcessPool as error:
        raise MrmStreamError(
            "the process that measures memory was killed", remedy="Often memory was short: simulate a smaller set."
        ) from error


def _growth(options: SimulationOptions) -> int | None:
    """Return by how many bytes this fresh process grows at its peak while a rank walks through the order."""
    # What the first use of a function loads is not the order's.
    Order([8, 8], 0, 1).indexes(np.arange(4))
    before = _resident("VmRSS")
    if before is None:
        return None
    order = Order(options.shard_sizes(), options.seed, options.window)
    part = rank_slice(options.batch_size, options.ranks // 2, options.ranks)
    for epoch in (0, 1, min(1000, EPOCHS - 1)):
        for step in range(10):
            start = epoch * options.samples + step * options.batch_size
            order.indexes(np.arange(start + part.start, start + part.stop))
        next(order.windows_from(epoch * options.samples))
    after = _resident("VmHWM")
    assert after is not None
    return max(0, after - before)


def _resident(field: str) -> int | None:
    """Return a size of this process in bytes, as Linux tells it; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def median_and_worst_ms(simulation: Simulation) -> tuple[float, float]:
    """Return the time to enter the order, in milliseconds."""
    return 1000 * median(simulation.enter_seconds), 1000 * max(simulation.enter_seconds)
