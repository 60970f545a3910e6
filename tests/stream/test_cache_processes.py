"""Several processes and one folder: each shard fetched once, none read torn; kills, stops, storage that hangs."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.publish import sha256_of
from mrm_stream.stream import cache as caching
from mrm_stream.stream import cache_folder
from mrm_stream.stream.cache import ShardCache
from tests.packing.faulty_s3 import Faults, FaultyS3, running
from tests.stream.cached import LARGE, SHARDS, error_of, make_source

pytestmark = pytest.mark.alone

# Reads epoch after epoch as a run would, and looks at each sample.
# Arguments: directory, folder, limit in bytes, epochs, seconds that each KB of a local file takes.
READER = """
import sys, time
from itertools import islice
from pathlib import Path
from mrm_stream.storage import retries
from mrm_stream.storage.paths import parse_path
from mrm_stream.stream import cache
from mrm_stream.stream.order import Order
from mrm_stream.stream.shard_set import ShardSet

directory, folder, limit, epochs, pause = sys.argv[1:]
pieces = cache._pieces

def slowly(source):
    for piece in pieces(source):
        time.sleep(float(pause))
        yield piece

if float(pause):
    cache._PIECE, cache._pieces = 1024, slowly
retries.FIRST_PAUSE_S = 0.01
shards = ShardSet.open(parse_path(directory), "train", cache=(Path(folder), int(limit)))
order = Order(shards.shard_sizes, seed=3, window=1)
print("begun", flush=True)
for position in range(int(epochs) * len(shards)):
    if position % 6 == 0:
        windows = [shards for _, shards in islice(order.windows_from(position), 2)]
        shards.hint(windows[0] + windows[1])
        if position % len(shards) == 0:
            for shard in windows[0] + windows[1]:  # until nothing is on its way
                shards.sample(6 * shard)
            assert "/dev/shm" not in Path("/proc/self/maps").read_text()
            print("descriptors", len(list(Path("/proc/self/fd").iterdir())), flush=True)
    index = order.locate(position)[1]
    sample = shards.sample(index)
    assert (sample.key, bytes(sample.jpeg)) == (f"train-{index}", f"jpeg {index}".encode()), index
    assert sample.token_ids is not None
    assert sample.token_ids.tolist() == [index % 40 + 4, *range(index % 3)], index
    del sample  # it keeps its shard open
shards.close()
counts = shards.cache_counts()
print("done", counts.fetched, counts.hits, counts.refetched, flush=True)
"""

# Announces all, then closes and comes to its end while the storage does not answer.
CLOSER = """
import sys, time
from pathlib import Path
from mrm_stream.storage.paths import parse_path
from mrm_stream.stream.shard_set import ShardSet

shards = ShardSet.open(parse_path(sys.argv[1]), "train", cache=(Path(sys.argv[2]), 1 << 40))
print("opened", flush=True)
input()
shards.hint(range(8))
time.sleep(0.5)
begun = time.monotonic()
if sys.argv[3] == "close":
    shards.close()
print("closed in", time.monotonic() - begun, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def s3(source: Path) -> Iterator[FaultyS3]:
    with running() as server:
        server.put_tree(source, "sets", "there")
        yield server


@pytest.fixture
def entries(source: Path) -> tuple[ShardEntry, ...]:
    return read_manifest(source).splits["train"]


@pytest.fixture
def start() -> Iterator[Start]:
    """(code, *arguments) -> a process that runs it."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def finish(process: subprocess.Popen[str]) -> tuple[int, ...]:
    """Wait for a reader, and return how often it fetched, found, and fetched again; it must have ended well."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "damaged" not in errors
    return tuple(map(int, out.split("done")[1].split()))


def wait_for(folder: Path, pattern: str, seconds: float = 20) -> Path:
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not (found := list(folder.rglob(pattern))):
        assert time.monotonic() < deadline, f"no {pattern} within {seconds} s"
        time.sleep(0.002)
    return found[0]


def assert_only_whole_shards(folder: Path, entries: tuple[ShardEntry, ...]) -> None:
    """See that the folder holds shards as the manifest says, their locks, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    for entry in entries:
        tar = folder / entry.file
        index = tar.with_suffix(".idx")
        assert (tar.name in names) == (index.name in names)
        if tar.name in names:
            assert (sha256_of(tar), sha256_of(index)) == (entry.sha256, entry.index_sha256)
        names -= {tar.name, index.name, f".{tar.name}.use", f".{tar.name}.fetch"}
    assert names <= {".room.lock"}


# ---- company ----


def test_each_shard_is_fetched_once_for_three_processes(
    s3: FaultyS3, tmp_path: Path, start: Start, entries: tuple[ShardEntry, ...]
) -> None:
    asked: Counter[str] = Counter()

    def note(method: str, path: str) -> bool:
        asked[f"{method} {path.split('?')[0]}"] += 1
        return False

    with s3.failing(Faults(0.0, only=note)):
        readers = [start(READER, "s3://sets/there", tmp_path, LARGE, 2, 0) for _ in range(3)]
        counts = [finish(reader) for reader in readers]
    gets = {name: times for name, times in asked.items() if name.startswith("GET") and "train-" in name}
    assert len(gets) == 2 * SHARDS
    assert set(gets.values()) == {1}
    assert sum(fetched for fetched, _, _ in counts) == SHARDS
    assert sum(refetched for _, _, refetched in counts) == 0
    assert_only_whole_shards(next(tmp_path.iterdir()), entries)


def test_processes_that_push_out_each_others_shards_read_no_torn_ones(
    source: Path, tmp_path: Path, start: Start, entries: tuple[ShardEntry, ...]
) -> None:
    readers = [start(READER, source, tmp_path, 2 * entries[0].bytes, 4, 0.0001) for _ in range(3)]
    counts = [finish(reader) for reader in readers]
    assert sum(fetched for fetched, _, _ in counts) > 2 * SHARDS, "shards were removed and fetched again"
    assert sum(refetched for _, _, refetched in counts) == 0
    assert_only_whole_shards(next(tmp_path.iterdir()), entries)


# ---- killed, stopped, hanging ----


def test_when_one_is_killed_while_it_fetches_the_others_go_on(
    s3: FaultyS3, source: Path, tmp_path: Path, start: Start, entries: tuple[ShardEntry, ...]
) -> None:
    s3.stall_s = 60
    try:
        tars = Faults(1.0, ("stall",), only=lambda method, path: method == "GET" and ".tar" in path)
        with s3.failing(tars):
            killed = start(READER, "s3://sets/there", tmp_path, LARGE, 1, 0)
            hanging = wait_for(tmp_path, ".*.tar.*.tmp")
            deadline = time.monotonic() + 20
            while tars.seen["stall"] < 2:  # both that it was hinted at
                assert time.monotonic() < deadline
                time.sleep(0.01)
        # Those connections hang; what is asked for from now on is answered.
        others = [start(READER, "s3://sets/there", tmp_path, LARGE, 1, 0) for _ in range(2)]
        for other in others:
            assert line_of(other) == "begun\n"
        time.sleep(0.3)
        assert hanging.exists(), "a living process's file was swept"
        assert all(other.poll() is None for other in others)
        killed.kill()
        killed.wait()
        for other in others:
            finish(other)
    finally:
        s3.stall_s = 0.5
    assert hanging.exists(), "only a start sweeps"
    folder = hanging.parent
    ShardCache(source, folder, LARGE).close()
    assert_only_whole_shards(folder, entries)


def test_a_living_process_keeps_what_it_has_begun(source: Path, tmp_path: Path, start: Start) -> None:
    reader = start(READER, source, tmp_path, LARGE, 1, 0.01)
    for _ in range(20):
        folder = wait_for(tmp_path, ".*.tmp").parent
        ShardCache(source, folder, LARGE).close()
    finish(reader)


@pytest.mark.parametrize("cycles", [4, pytest.param(50, marks=pytest.mark.campaign)])
def test_kills_and_starts_leave_nothing(
    source: Path, tmp_path: Path, start: Start, entries: tuple[ShardEntry, ...], cycles: int
) -> None:
    draw = random.Random(cycles)
    limit = 3 * entries[0].bytes
    left = 0
    for _ in range(cycles):
        pair = [start(READER, source, tmp_path, limit, 1000, 0.0005) for _ in range(2)]
        for process in pair:
            assert line_of(process) == "begun\n"
        time.sleep(draw.uniform(0.0, 0.4))
        for process in draw.sample(pair, 2):
            process.send_signal(signal.SIGKILL)
            process.communicate()
        left += len(list(tmp_path.rglob(".*.tmp")))
    assert left >= cycles // 4, "kills came while shards were on their way"
    last = start(READER, source, tmp_path, limit, 6, 0)
    out, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    descriptors = [int(line.split()[1]) for line in out.splitlines() if line.startswith("descriptors")]
    assert len(descriptors) == 6
    assert len(set(descriptors)) == 1
    assert_only_whole_shards(next(tmp_path.iterdir()), entries)


def test_a_stopped_process_that_fetches_is_not_waited_for_without_end(
    source: Path, tmp_path: Path, start: Start, entries: tuple[ShardEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "WAIT_S", 0.5)
    stopped = start(READER, source, tmp_path, LARGE, 1, 0.05)
    hanging = wait_for(tmp_path, ".*.tar.*.tmp")
    stopped.send_signal(signal.SIGSTOP)
    cache = ShardCache(source, hanging.parent, LARGE)
    entry = next(entry for entry in entries if entry.file in hanging.name)
    errors: list[StorageError | None] = []
    begun = time.monotonic()
    asker = threading.Thread(target=lambda: errors.append(error_of(cache, entry)), daemon=True)
    asker.start()
    asker.join(5)
    assert "another process has held the lock for 0.5 s" in str(errors[0])
    assert 0.5 <= time.monotonic() - begun < 3
    stopped.kill()
    stopped.wait()
    assert sha256_of(cache.path(entry)) == entry.sha256, "it is asked for again once the lock is free"
    cache.close()


@pytest.mark.parametrize("how", ["close", "leave open"])
def test_a_process_ends_while_its_storage_hangs(s3: FaultyS3, tmp_path: Path, start: Start, how: str) -> None:
    s3.stall_s = 60
    closer = start(CLOSER, "s3://sets/there", tmp_path, how)
    try:
        assert line_of(closer) == "opened\n"
        with s3.failing(Faults(1.0, ("stall",))):
            begun = time.monotonic()
            out, errors = closer.communicate("\n", timeout=30)
            assert time.monotonic() - begun < 8
        assert closer.returncode == 0, errors
        assert float(out.split()[-1]) < caching.CLOSE_S + 1
    finally:
        s3.stall_s = 0.5
