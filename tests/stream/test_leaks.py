"""Nothing grows while epochs go by, and nothing is left of processes that were killed."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mrm_stream.storage.publish import TEMPORARY_SUFFIX
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.shard_set import ShardSet
from tests.stream.phantoms import batch_maker, load, packed_phantoms

WARM_UP, EPOCHS = 5, 20
RSS_BOUND = 4 << 20
"""Bytes that 20 epochs may add; 0 to 2 MB seen. One batch kept an epoch would add 10 MB."""
ROOM = 4 * 110_000
"""Bytes of four of the six shards: more than batches of 8 from windows of one shard need, less than an epoch."""
PROCESS = Path("/proc/self")

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not (PROCESS / "fd").is_dir(), reason="no /proc: nothing can be counted"),
]


def resident_bytes() -> int:
    gc.collect()
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counts() -> tuple[int, int]:
    """Open descriptors and threads."""
    return len(list((PROCESS / "fd").iterdir())), threading.active_count()


@pytest.mark.parametrize("way", ["one loader", "a loader an epoch", "through a small cache"])
def test_twenty_epochs_add_nothing(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, way: str, record_property: Any
) -> None:
    packed = packed_phantoms(tmp_path_factory)
    cache = (tmp_path / "cache", ROOM) if "cache" in way else None
    shards = ShardSet.open(packed, "train", cache)
    maker = batch_maker(shards, threads=2, size=64)
    # Through the cache in small steps, so that shards come and go.
    choices = {"batch_size": 8, "window": 1} if cache else {"batch_size": 24}
    steps = -(-len(shards) // choices["batch_size"])
    loader = load(shards, maker, **choices)
    found: list[tuple[int, int, int]] = []
    for epoch in range(WARM_UP + EPOCHS + 1):
        for _ in range(steps):
            batch = next(loader).take()
            assert len(batch.image_hr_BCHW) == choices["batch_size"]
        if way == "a loader an epoch":
            state = json.loads(json.dumps(loader.state_dict()))
            loader.close()
            loader = load(shards, maker, **choices)
            loader.load_state_dict(state)
            next(loader)
        if epoch >= WARM_UP and (epoch - WARM_UP) % 4 == 0:  # collecting garbage takes longer than an epoch
            found.append((resident_bytes(), *counts()))
    evicted = shards.cache_counts().evicted
    loader.close()
    maker.close()
    shards.close()
    resident, descriptors, threads = (list(column) for column in zip(*found, strict=True))
    grown = max(resident) - resident[0]
    record_property("grown_bytes", grown)
    assert grown < RSS_BOUND, resident
    # Where shards come and go, some more or fewer are open at the moment.
    slack = 8 if cache else 0
    assert max(descriptors) <= descriptors[0] + slack, descriptors
    assert max(descriptors[-3:]) <= max(descriptors[:3]) + slack // 4, descriptors
    assert max(threads) <= threads[0] + (1 if cache else 0), threads
    assert (evicted > EPOCHS) == (cache is not None)


def iterate(packed: Path, cache: Path | None, temporary: Path, connection: Connection) -> None:
    """Be the process that is killed: batches without end; says what the first is made of."""
    tempfile.tempdir = str(temporary)
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.02)  # so that kills meet files that are not whole yet
        fsync(descriptor)

    mock.patch("os.fsync", slow).start()
    shards = ShardSet.open(packed, "train", (cache, ROOM) if cache else None)
    loader = load(shards, summed, batch_size=8, window=1)
    connection.send(next(loader))
    for _ in loader:
        pass


def summed(draws: Sequence[Draw]) -> int:
    return sum(sum(bytes(draw.sample.jpeg)) for draw in draws)


def shared_memory_of(process: int) -> set[Path]:
    """What a process has mapped or open in /dev/shm; that others use it meanwhile does not matter."""
    folder = Path("/proc") / str(process)
    held = [line.split(maxsplit=5)[-1] for line in (folder / "maps").read_text().splitlines()]
    for link in [*(folder / "fd").iterdir()]:
        with suppress(FileNotFoundError):  # closed meanwhile
            held.append(str(link.readlink()))
    return {Path(name) for name in held if name.startswith("/dev/shm/")}


@pytest.mark.parametrize("cycles", [50, pytest.param(300, marks=pytest.mark.campaign)])
def test_killed_processes_leave_nothing(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, cycles: int) -> None:
    """Killed before, in and after the first batch, and while shards are fetched; each starts as the first one did."""
    packed, cache, temporary = packed_phantoms(tmp_path_factory), tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    # Its server imports once, has no threads, and forks a process in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    draw, unanswered, unfinished = random.Random(0), 0, 0
    answers: set[int] = set()
    shared: set[Path] = set()
    for cycle in range(cycles):
        ours, theirs = context.Pipe()
        process = context.Process(target=iterate, args=(packed, cache if cycle % 2 else None, temporary, theirs))
        process.start()
        theirs.close()
        if cycle % 4 < 2:
            answers.add(ours.recv())
            time.sleep(draw.uniform(0, 0.05))
        else:
            time.sleep(draw.uniform(0, 0.2))
            unanswered += not ours.poll()
        shared |= shared_memory_of(process.pid or 0)
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
        process.close()
        ours.close()
        unfinished += any(cache.rglob(f".*{TEMPORARY_SUFFIX}"))
    assert len(answers) == 1
    assert unanswered, "none was killed before its first batch"
    assert unfinished, "none was killed while it fetched"
    assert [path for path in shared if path.exists()] == []
    assert list(temporary.iterdir()) == []
    # What a killed process had begun goes when the next one opens the cache, which then works as if it were new.
    shards = ShardSet.open(packed, "train", (cache, ROOM))
    assert list(cache.rglob(f".*{TEMPORARY_SUFFIX}")) == []
    with load(shards, summed, batch_size=8, window=1) as loader:
        assert {next(loader)} == answers
        for _ in range(2 * len(shards) // 8):
            next(loader)
    assert shards.cache_counts().refetched == 0
    shards.close()
    assert sum(path.stat().st_size for path in cache.rglob("*.tar")) <= ROOM
