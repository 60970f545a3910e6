"""Storage that fails or hangs, and disks that are full or may not be written to, behind a cache."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage import retries
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.stream import cache as caching
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.shard_set import ShardSet
from tests.packing.faulty_s3 import ALL, Faults, FaultyS3, retry_soon, running
from tests.stream.cached import (
    LARGE,
    SHARDS,
    assert_all_read,
    error_of,
    make_source,
    temporaries,
    whole,
)

Disk = Callable[[str], Path]


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


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_soon(monkeypatch)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ShardCache]]:
    """(directory, limit_bytes) -> a cache in the test's folder."""
    caches: list[ShardCache] = []

    def open_cache(directory: AnyPath, limit_bytes: int = LARGE, folder: Path = tmp_path / "cache") -> ShardCache:
        caches.append(ShardCache(directory, folder, limit_bytes))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """(tmpfs options) -> its folder, mounted anew, or changed if it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        how = f"remount,{options}" if folder.is_mount() else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_missing_object_is_named(s3: FaultyS3, source: Path, tmp_path: Path) -> None:
    url = s3.put_tree(source, "gone", "set")
    s3.client.delete_object(Bucket="gone", Key="set/train-00002.tar")
    shards = ShardSet.open(parse_path(url), "train", cache=(tmp_path, LARGE))
    with pytest.raises(ShardError, match=r"gone/set/train-00002\.tar: there is no such file"):
        shards.sample(12)
    assert shards.sample(0).key == "train-0"
    shards.close()


@pytest.mark.parametrize("kind", [*ALL, "all"])
def test_faults_that_pass_are_waited_out(s3: FaultyS3, tmp_path: Path, kind: str) -> None:
    shards = ShardSet.open(parse_path("s3://sets/there"), "train", cache=(tmp_path, LARGE))
    with s3.failing(Faults(0.25, ALL if kind == "all" else (kind,), seed=4)) as faults:
        assert_all_read(shards)
    shards.close()
    assert sum(faults.seen.values()) - faults.seen["requests"] > 3
    assert not temporaries(tmp_path)


def test_storage_that_failed_ahead_of_need_is_asked_again(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    shards = ShardSet.open(parse_path("s3://sets/there"), "train", cache=(tmp_path, LARGE))
    with s3.failing(Faults(1.0, ("internal",))) as faults:
        shards.hint([0, 1])
        deadline = time.monotonic() + 10
        while faults.seen["internal"] < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(StorageError, match=r"train-00000\.idx: remote storage failed"):
            shards.sample(0)
    assert [shards.sample(index).key for index in (0, 6)] == ["train-0", "train-6"]
    shards.close()


def test_a_full_disk_is_cleared_of_what_is_unused_and_then_an_error(
    source: Path, small_disk: Disk, entries: tuple[ShardEntry, ...], opened: Callable[..., ShardCache]
) -> None:
    folder = small_disk(f"size={3 * entries[0].bytes // 1024 + 40}k")
    cache = opened(source, LARGE, folder)
    for entry in (*entries, *entries):
        assert whole(cache.path(entry).parent, entry)
        cache.hint([])
    assert cache.counts.evicted > SHARDS
    cache.hint(entries)
    errors = [error for error in map(partial(error_of, cache), entries) if error is not None]
    assert 1 <= len(errors) < SHARDS
    assert all("No space left" in str(error) for error in errors)
    cache.hint([])
    assert whole(cache.path(entries[5]).parent, entries[5])
    deadline = time.monotonic() + 5
    while temporaries(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not temporaries(folder)


def test_a_folder_that_cannot_be_written_to_is_named(
    source: Path, tmp_path: Path, small_disk: Disk, entries: tuple[ShardEntry, ...], opened: Callable[..., ShardCache]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        ShardSet.open(source, "train", cache=(tmp_path / "file", LARGE))
    removed = opened(source)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(StorageError, match=r"cache.*: the cache cannot be used: No such file"):
        removed.path(entries[0])
    disk = small_disk("size=1m")
    cache = opened(source, LARGE, disk)
    cache.path(entries[0])
    cache.hint([])  # what is open for writing keeps a disk from becoming read-only
    small_disk("ro")
    with pytest.raises(StorageError, match=r"disk.*Read-only file system"):
        cache.path(entries[1])
    with pytest.raises(StorageError, match=r"disk.*Read-only file system"):
        opened(source, LARGE, disk)


def test_what_is_released_before_it_came_leaves_nothing_open(
    source: Path,
    tmp_path: Path,
    opened: Callable[..., ShardCache],
    entries: tuple[ShardEntry, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither what is never fetched then, nor what fails: a run of days would have no descriptors left."""
    monkeypatch.setattr(caching, "FETCHERS", 1)
    begun, answer = threading.Event(), threading.Event()

    def failing(source: AnyPath) -> Iterator[bytes]:
        begun.set()
        answer.wait(60)
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        yield

    def held() -> int:
        paths = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # other threads' come and go
                paths.append(descriptor.readlink())
        return sum(path.is_relative_to(tmp_path) and path.suffix == ".use" for path in paths)

    monkeypatch.setattr(caching, "_pieces", failing)
    cache = opened(source)
    cache.hint(entries[:4])
    assert begun.wait(20)
    assert held() == 4
    cache.hint([])
    assert held() == 1, "of the one that is on its way"
    answer.set()
    deadline = time.monotonic() + 20
    while held() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() == 0


def test_closing_does_not_wait_for_storage_that_hangs(
    source: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "CLOSE_S", 0.2)
    answer = threading.Event()
    hangs = threading.Semaphore(0)

    def hanging(source: AnyPath) -> Iterator[bytes]:
        hangs.release()
        answer.wait(60)
        yield b""

    monkeypatch.setattr(caching, "_pieces", hanging)
    cache = opened(source)
    cache.hint(entries)
    for _ in range(caching.FETCHERS):
        assert hangs.acquire(timeout=20)
    errors: list[StorageError | None] = []

    def ask(entry: ShardEntry) -> None:
        errors.append(error_of(cache, entry))

    askers = [threading.Thread(target=ask, args=(entry,), daemon=True) for entry in (entries[0], entries[-1])]
    for asker in askers:
        asker.start()
    begun = time.monotonic()
    cache.close()
    assert time.monotonic() - begun < 2
    askers[1].join(10)  # what had not begun to be fetched is given up at once
    assert not askers[1].is_alive()
    with pytest.raises(StorageError, match="closed"):
        cache.path(entries[1])
    cache.hint(entries)
    answer.set()
    askers[0].join(20)
    assert [type(error) for error in errors] == [StorageError] * 2
