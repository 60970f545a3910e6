"""One rank of a few, run as a process: takes its batches, agrees on each step with the others, and may misbehave.

Prints a line of JSON at its end: the steps taken, the positions' (epoch, index) pairs, and the error, if it had one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mrm_stream.errors import MrmStreamError
from mrm_stream.stream import prefetch
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.order import steps_of
from mrm_stream.stream.shard_set import ShardSet

STALLED_AFTER_S = 2.0
SLOW_S = 0.15
AT_STEP = 3
"""When the rank that misbehaves does so."""


def main(folder: Path, rank: int, world: int, fault: str) -> int:
    """Run one rank; `fault` is what this one does: nothing, `killed`, `stalled` or `slow`."""
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", timedelta(seconds=20), world_size=world, rank=rank)
    prefetch.JOIN_S = 1.0
    shards = ShardSet.open(folder / "set", "train")
    step = 0
    seen: list[tuple[int, int]] = []

    def transform(draws: Sequence[Draw]) -> list[tuple[int, int]]:
        if fault == "slow":
            time.sleep(SLOW_S)
        return [(draw.epoch, draw.sample.index) for draw in draws]

    if fault == "stalled":
        # Opening a pipe that nobody writes to blocks, as reading from storage that does not answer does.
        own = Path(shutil.copytree(folder / "set", folder / "own"))
        shards = ShardSet.open(own, "train")
        asked = shards.order(0, 1).locate(6 * AT_STEP + 6 * rank // world)[1]
        index = (own / shards.location(asked).partition(":")[0]).with_suffix(".idx")
        shards = ShardSet.open(own, "train")
        index.unlink()
        os.mkfifo(index)
    options = LoaderOptions(
        seed=0, batch_size=6, window=1, prefetch=1, max_bad_samples=0, stalled_after=STALLED_AFTER_S
    )
    loader = Loader(shards, transform, options, rank=rank, world=world)
    error = None
    try:
        with loader:
            for step in range(steps_of(len(shards), 2, 6)):
                if fault == "killed" and step == AT_STEP:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += next(loader)
                together = torch.tensor([step])
                dist.all_reduce(together)
                assert together.item() == step * world, "the ranks are at different steps"
            step += 1
    except MrmStreamError as caught:
        error = f"{type(caught).__name__}: {caught.what}"
    except RuntimeError as caught:  # what torch.distributed raises when a peer is gone
        error = f"peer: {type(caught).__name__}"
    else:
        dist.destroy_process_group()  # else its threads now and then abort the interpreter at its exit
    sys.stdout.write(json.dumps({"steps": step, "seen": seen, "error": error}))
    sys.stdout.flush()
    return 0 if error is None else 1


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    # The group's own threads may wait for a peer that is gone.
    os._exit(status) if status else sys.exit(status)
