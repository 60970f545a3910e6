"""Reading encoded samples, by ours and by webdataset: one pass over the set in shuffled order, in a process each.

webdataset is run as its documentation has it, with shards and a buffer shuffled. A sample is its JPEG and its tokens;
neither is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mrm_stream.bench.data_result import OURS, Run
from mrm_stream.bench.data_sets import SEED, SPLIT, WINDOW, DataSets, tar_names
from mrm_stream.bench.passes import Pass, time_passes
from mrm_stream.stream.shard_set import ShardSet

_BUFFER = 1000
"""Samples that webdataset shuffles, as in its documentation's examples."""


def run_encoded(name: str, sets: DataSets, count: int, batch: int) -> Run:
    """Measure ours or webdataset in this process; see `time_passes`.

    Args:
        name: Of the contender.
        sets: Where the samples lie.
        count: Samples of a pass.
        batch: Samples that ours looks up at a time.
    """
    return time_passes(name, _ours(sets, batch) if name == OURS else _webdataset(sets), count)


def _ours(sets: DataSets, batch: int) -> Pass:
    shards = ShardSet.open(sets.encoded, SPLIT)
    order = shards.order(SEED, WINDOW)

    def one_pass(epoch: int) -> Iterator[int]:
        first, end = epoch * order.samples, (epoch + 1) * order.samples
        for start in range(first, end, batch):
            _, indexes = order.indexes(np.arange(start, min(start + batch, end)))
            for index in indexes.tolist():
                yield len(shards.sample(index).jpeg)

    return one_pass


def _webdataset(sets: DataSets) -> Pass:
    import webdataset

    tars = tar_names(sets.encoded)
    pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED).shuffle(_BUFFER).to_tuple("jpg", "tok")

    def one_pass(epoch: int) -> Iterator[int]:
        for jpeg, _ in pipeline:
            yield len(jpeg)

    return one_pass
