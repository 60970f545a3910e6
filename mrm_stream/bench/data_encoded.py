"""Who hands encoded samples on, one process each: a pass over the set, in shuffled order, by its own means.

Each is run as its documentation has it: webdataset with shards and a buffer shuffled, mosaicml-streaming with its own
shuffle and the batch size that it asks for. A sample is its JPEG and its tokens; nobody looks into them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import import_module

import numpy as np

from mrm_stream.bench.data_result import OURS, Run
from mrm_stream.bench.data_sets import SEED, SPLIT, WINDOW, DataSets, tar_names
from mrm_stream.bench.machine import cpu_seconds, peak_bytes
from mrm_stream.stream.reader import ShardSet

_LEAST_SECONDS = 0.5
"""That are timed: whole passes, until they have taken as long."""
_BUFFER = 1000
"""Samples that webdataset shuffles, as in its documentation's examples."""

_Pass = Callable[[int], Iterator[int]]
"""Epoch to the sizes of the JPEGs that are handed on in it."""


def run_encoded(name: str, sets: DataSets, count: int, batch: int) -> Run:
    """Measure one contender in this process, after a first pass that opens and checks everything.

    Args:
        name: Of the contender.
        sets: Where the samples lie.
        count: Samples of a pass.
        batch: Samples that ours looks up at a time.
    """
    make = {OURS: _ours, "webdataset": _webdataset, "mosaicml-streaming": _mosaicml}[name]
    one_pass = make(sets, batch)
    sizes = _tally(one_pass(0), count)
    cpu_start, start, passes = cpu_seconds(), time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - start < _LEAST_SECONDS:
        passes += 1
        assert _tally(one_pass(passes), count) == sizes, f"{name} handed on other bytes in another pass"
    seconds = time.perf_counter() - start
    samples = passes * count
    return Run(samples, seconds, 1000 * (cpu_seconds() - cpu_start) / samples, peak_bytes())


def _tally(sizes: Iterator[int], count: int) -> int:
    found = total = 0
    for size in sizes:
        found += 1
        total += size
    assert found == count, f"a pass had {found} of {count} samples"
    return total


def _ours(sets: DataSets, batch: int) -> _Pass:
    shards = ShardSet.open(sets.encoded, SPLIT)
    order = shards.order(SEED, WINDOW)

    def one_pass(epoch: int) -> Iterator[int]:
        first, end = epoch * order.samples, (epoch + 1) * order.samples
        for start in range(first, end, batch):
            _, indexes = order.indexes(np.arange(start, min(start + batch, end)))
            for index in indexes.tolist():
                yield len(shards.sample(index).jpeg)

    return one_pass


def _webdataset(sets: DataSets, batch: int) -> _Pass:
    import webdataset

    tars = tar_names(sets.encoded)
    pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED).shuffle(_BUFFER).to_tuple("jpg", "tok")

    def one_pass(epoch: int) -> Iterator[int]:
        for jpeg, _ in pipeline:
            yield len(jpeg)

    return one_pass


def _mosaicml(sets: DataSets, batch: int) -> _Pass:
    streaming = import_module("streaming")
    dataset = streaming.StreamingDataset(local=str(sets.mds), shuffle=True, shuffle_seed=SEED, batch_size=batch)

    def one_pass(epoch: int) -> Iterator[int]:
        for sample in dataset:
            yield len(sample["jpg"])

    return one_pass
