"""`mrm-stream bench order`: how well an epoch is shuffled, beside a full shuffle and WebDataset's buffer.

Nothing is read: a source is a row of numbers, and its label belongs to the first ones, as in a source that is listed
class by class. The shards hold it in that order (which a shuffle must make up for when others packed the shards), or as
`mrm-stream shard` deals records out (what a run meets).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrm_stream.bench.order_figure import draw_order_bench
from mrm_stream.bench.order_result import (
    ARRANGEMENTS,
    FULL,
    NONE,
    OrderBench,
    OrderBenchOptions,
    Quality,
    measure_quality,
    neighbour_distance,
)
from mrm_stream.errors import MrmStreamError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.plan import plan_shards
from mrm_stream.records import Record
from mrm_stream.storage.publish import make_private_folder, publish_bytes
from mrm_stream.stream.order import Order

RESULT = "order.json"
PLOT = "order.png"

Shuffle = Callable[[NDArray[np.int64], int], NDArray[np.int64]]
"""The sizes of the shards and a seed to the index of the sample at each position of an epoch."""


def bench_order(
    out: Path,
    *,
    options: OrderBenchOptions | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> OrderBench:
    """Measure shuffles, and write `order.json` and `order.png`.

    Args:
        out: Folder of the two files.
        options: What is measured.
        progress: Called before each step with the steps done, their number, and what comes now.

    Raises:
        MrmStreamError: webdataset is not installed.
        StorageError: `out` cannot be written to.
    """
    options = options or OrderBenchOptions()
    if find_spec("webdataset") is None:
        raise MrmStreamError(
            "webdataset, a peer that the order is compared with, is not installed",
            remedy="Run: pip install 'mrm-stream[bench]'",
        )
    advance = progress or (lambda done, total, note: None)
    make_private_folder(out)
    shuffles = shuffles_of(options)
    steps = options.seeds * len(shuffles)
    qualities: dict[str, dict[str, list[Quality]]] = {
        arrangement: {name: [] for name in shuffles} for arrangement in ARRANGEMENTS
    }
    examples: dict[str, NDArray[np.int64]] = {}
    for seed in range(options.seeds):
        packed, sizes = deal(options, seed)
        sources = dict(zip(ARRANGEMENTS, (np.arange(options.samples), packed), strict=True))
        # A full shuffle of its own, so that the full shuffle that is measured need not have exactly 1.
        far = neighbour_distance(np.random.default_rng([seed, 1]).permutation(options.samples))
        for number, (name, shuffle) in enumerate(shuffles.items()):
            advance(seed * len(shuffles) + number, steps, f"seed {seed}: {name}")
            order = shuffle(sizes, seed)
            examples.setdefault(name, order)
            for arrangement, source in sources.items():
                qualities[arrangement][name].append(measure_quality(order, source, sizes, far, options))
    result = OrderBench(
        options=options,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("numpy", "webdataset")},
        qualities={
            arrangement: {name: tuple(each) for name, each in by_name.items()}
            for arrangement, by_name in qualities.items()
        },
        examples=examples,
    )
    publish_bytes(out / RESULT, json.dumps(result.to_json(), indent=2).encode() + b"\n")
    publish_bytes(out / PLOT, draw_order_bench(result))
    advance(steps, steps, "")
    return result


def deal(options: OrderBenchOptions, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what packing makes of the source.

    Returns:
        (position in the source of the sample at each index of the shards, shape (samples,); the shards' sizes,
        shape (shards,)).
    """
    records = [Record(f"{position:09d}", "") for position in range(options.samples)]
    plans = plan_shards(records, PackOptions(samples_per_shard=options.samples_per_shard, seed=seed))
    positions = np.array([int(record.key) for plan in plans for record in plan.records], np.int64)
    return positions, np.array([len(plan.records) for plan in plans], np.int64)


def shuffles_of(options: OrderBenchOptions) -> dict[str, Shuffle]:
    """Return what is compared, by the name that the table gives it."""
    return {
        FULL: _full,
        **{f"ours, window {window}": _ours(window) for window in options.windows},
        **{f"webdataset, buffer {size:,}": _webdataset(size) for size in reversed(options.buffers)},
        NONE: lambda sizes, seed: np.arange(sizes.sum()),
    }


def _full(sizes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(int(sizes.sum()))


def _ours(window: int) -> Shuffle:
    def shuffle(sizes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        return Order(sizes, seed, window).indexes(np.arange(sizes.sum()))[1]

    return shuffle


def _webdataset(buffer: int) -> Shuffle:
    """WebDataset's own stages, on numbers: all shards pass its shuffle of shards, their samples its shuffle of samples.

    One reader sees the whole set here; with workers and nodes, each would mix its own shards only.
    """

    def shuffle(sizes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        from webdataset import filters

        firsts = np.cumsum(sizes) - sizes
        # `initial` is what is read before the first one is yielded: by default less, which mixes the first shards less.
        shards = filters.shuffle(len(sizes), initial=len(sizes), seed=seed)(iter(range(len(sizes))))
        stream = (index for shard in shards for index in range(firsts[shard], firsts[shard] + sizes[shard]))
        samples = filters.shuffle(buffer, initial=buffer, seed=seed + 1)(stream)
        return np.fromiter(samples, np.int64, int(sizes.sum()))

    return shuffle
