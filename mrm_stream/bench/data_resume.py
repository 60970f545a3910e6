"""How soon a run that continues has its first batch, and what that takes; nothing heavy is imported up here."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

from mrm_stream.bench.data_result import OURS, Run
from mrm_stream.bench.machine import cpu_seconds, status_bytes


def run_resume(name: str, directory: Path, position: int, batch: int, threads: int) -> Run:
    """Continue at a position of a long set in this process, which must be fresh, up to the first batch.

    The clock starts once torch is imported, as every training process must import it, and runs while all the rest is
    imported, the set is opened, its shards are checked and the batch is read, decoded and masked.

    Args:
        name: Ours; unverified: without comparing the shards with their checksums.
        directory: Of the set.
        position: In its order.
        batch: Samples of the batch.
        threads: That decode.
    """
    started = time.perf_counter()
    importlib.import_module("torch")
    start, cpu_start, before = time.perf_counter(), cpu_seconds(), status_bytes("VmRSS")
    from mrm_stream.bench.data_pairs import batch_maker, load
    from mrm_stream.bench.data_sets import SEED, SPLIT, WINDOW
    from mrm_stream.stream.loader import STATE_VERSION
    from mrm_stream.stream.shard_set import ShardSet

    shards = ShardSet.open(directory, SPLIT, verify=name == OURS)
    maker = batch_maker(shards, threads)
    with load(shards, maker, batch) as loader:
        loader.load_state_dict(
            {
                "version": STATE_VERSION,
                "seed": SEED,
                "window": WINDOW,
                "fingerprint": shards.fingerprint,
                "position": position,
                "bad_samples": [],
            }
        )
        made = next(loader).take()
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
        peak = status_bytes("VmHWM")
        assert len(made.image_lr_BCHW) == batch
        assert loader.state_dict()["position"] == position + batch
    maker.close()
    added = None if before is None or peak is None else peak - before
    return Run(batch, seconds, 1000 * cpu / batch, added, start - started, before)
