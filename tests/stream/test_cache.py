"""Shards that lie elsewhere: the same samples, whole files in order, a bounded folder, nothing read that is damaged."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import ConfigError, ShardError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage import files
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.stream import cache as caching
from mrm_stream.stream import opened_shards
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.shard_set import ShardSet
from tests.packing.faulty_s3 import Faults, FaultyS3, running
from tests.stream.cached import (
    LARGE,
    SAMPLES,
    SHARDS,
    assert_all_read,
    in_memory,
    make_source,
    whole,
)


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
def opened(tmp_path: Path) -> Iterator[Callable[..., ShardCache]]:
    """(directory, limit_bytes) -> a cache in the test's folder."""
    caches: list[ShardCache] = []

    def open_cache(directory: AnyPath, limit_bytes: int = LARGE, folder: Path = tmp_path / "cache") -> ShardCache:
        caches.append(ShardCache(directory, folder, limit_bytes))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


@contextmanager
def watching(folder: Path) -> Iterator[list[int]]:
    """Note, again and again, the bytes of all tars in the folder and of those on their way there."""
    seen = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.0005):
            # A temporary file that has just been renamed would count twice.
            sizes: dict[int, int] = {}
            for entry in os.scandir(folder):
                if ".tar" in entry.name:
                    try:
                        found = entry.stat()
                    except FileNotFoundError:
                        continue
                    sizes[found.st_ino] = found.st_size
            seen.append(sum(sizes.values()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def deleted_maps(folder: Path) -> list[str]:
    """Return this process's maps of files that were in the folder and are no longer."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line and line.endswith("(deleted)")]


# ---- the same samples ----


def test_s3_gives_the_same_samples_for_two_requests_a_file(s3: FaultyS3, tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    counting = Faults(0.0, only=lambda method, path: bool(asked.update([path.split("?")[0]])))
    with s3.failing(counting):
        shards = ShardSet.open(parse_path("s3://sets/there"), "train", cache=(tmp_path, LARGE))
        assert_all_read(shards)
        shards.close()
    files = {name: times for name, times in asked.items() if "train-" in name}
    assert len(files) == 2 * SHARDS
    assert set(files.values()) == {2}, "its size, then all of it"


def test_remote_files_are_read_whole_and_in_order(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_memory(source)
    read: dict[str, list[tuple[int, int]]] = {}
    fetch = files._fetch

    def noting(part: AnyPath, start: int, end: int) -> bytes:
        read.setdefault(part.name, []).append((start, end))
        return fetch(part, start, end)

    monkeypatch.setattr(files, "_fetch", noting)
    monkeypatch.setattr(files, "_PIECE", 5000)
    shards = ShardSet.open(place, "train", cache=(tmp_path, LARGE))
    assert_all_read(shards)
    shards.close()
    for entry in shards.manifest.splits["train"]:
        starts = [start for start, _ in read[entry.file]]
        assert starts == list(range(0, entry.bytes, 5000))
        assert read[entry.file][-1][1] == entry.bytes


def test_a_slow_file_system_is_opened_once_a_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(source, "train", cache=(tmp_path, LARGE))
    asked: Counter[str] = Counter()
    really_open = Path.open

    def noting(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.parent == source:
            asked[path.name] += 1
        return really_open(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", noting)
    assert_all_read(shards)
    shards.close()
    assert len(asked) == 2 * SHARDS
    assert set(asked.values()) == {1}
    again = ShardSet.open(source, "train", cache=(tmp_path, LARGE))
    assert_all_read(again)
    again.close()
    assert again.cache_counts().fetched == 0
    assert set(asked.values()) == {1}


def test_a_remote_set_is_not_read_without_a_cache(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache"):
        ShardSet.open(in_memory(source), "train")


# ---- bounds ----


@pytest.mark.parametrize("room", [1, 4, 5, 6])
def test_no_more_than_the_limit_or_what_is_hinted_at_lies_there(source: Path, tmp_path: Path, room: int) -> None:
    """A limit of one shard is less than the four that two windows need: it works, on fewer hits."""
    largest = max(entry.bytes for entry in read_manifest(source).splits["train"])
    shards = ShardSet.open(source, "train", cache=(tmp_path, room * largest))
    assert shards.cache is not None
    with watching(next(tmp_path.iterdir())) as seen:
        assert_all_read(shards)
        time.sleep(0.01)
    assert 0 < max(seen) <= max(room, 4) * largest
    counts = shards.cache_counts()
    assert counts.evicted >= SHARDS - max(room, 4)
    assert counts.fetched + counts.hits > 2 * SHARDS - 4, "those between the epochs may be the same"
    shards.close()


def test_those_used_last_are_kept(
    source: Path, tmp_path: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...]
) -> None:
    cache = opened(source, 3 * max(entry.bytes for entry in entries))
    a, b, c, d, e, *_ = entries

    def use(*some: ShardEntry) -> set[str]:
        for entry in some:
            cache.path(entry)
        for entry in reversed(some):
            time.sleep(0.02)  # the clock of files ticks no faster
            cache.release(entry)
        return {path.name for path in (tmp_path / "cache").glob("*.tar")}

    assert use(a, b) == {a.file, b.file}
    assert use(c) == {a.file, b.file, c.file}
    assert use(d) == {a.file, c.file, d.file}, "a was let go of after b"
    assert use(a) == {a.file, c.file, d.file}
    assert use(e) == {a.file, d.file, e.file}, "c was used before a was again"
    assert cache.counts.evicted == 2


def test_a_shard_that_did_not_come_takes_no_room(
    source: Path, tmp_path: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...]
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    lost, *others = entries[:4]
    (copy / lost.file).unlink()
    cache = opened(copy, sum(entry.bytes for entry in others))
    with pytest.raises(ShardError, match="no such file"):
        cache.path(lost)
    cache.release(lost)
    for entry in others:
        cache.path(entry)
        cache.release(entry)
    assert cache.counts.evicted == 0
    assert {path.name for path in (tmp_path / "cache").glob("*.tar")} == {entry.file for entry in others}


def test_what_is_hinted_at_stays_while_what_comes_before_it_arrives(
    source: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "FETCHERS", 1)
    cache = opened(source, 3 * max(entry.bytes for entry in entries))
    for entry in entries[:3]:
        cache.path(entry)
        time.sleep(0.02)
    cache.hint([])
    cache.hint([entries[3], entries[4], entries[0]])  # the third was used before all others
    for entry in (entries[3], entries[4], entries[0]):
        assert whole(cache.path(entry).parent, entry)
    assert (cache.counts.hits, cache.counts.fetched, cache.counts.evicted) == (1, 5, 2)


def test_maps_of_evicted_shards_are_released(source: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(source, "train", cache=(tmp_path, 1))
    shards.hint([0, 1])
    kept = shards.sample(0)
    shards.sample(6)
    shards.hint([2, 3])
    assert shards.sample(12).key == "train-12"
    assert shards.sample(18).key == "train-18"
    assert len(deleted_maps(tmp_path)) == 1, "of the shard whose sample is still held"
    assert bytes(kept.jpeg) == b"jpeg 0"
    del kept
    assert not deleted_maps(tmp_path)
    shards.close()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_shards_that_nobody_hinted_at_are_bounded_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_shards, "UNHINTED_SHARDS", 2)
    shards = ShardSet.open(source, "train", cache=(tmp_path, 1))
    for index in range(SAMPLES):
        assert bytes(shards.sample(index).jpeg) == f"jpeg {index}".encode()
        assert len(list(tmp_path.rglob("*.tar"))) <= 2
        assert not deleted_maps(tmp_path)
    shards.close()


def test_nothing_is_left_open(source: Path, tmp_path: Path) -> None:
    def descriptors() -> list[str]:
        # Ours: what other tests' servers and clients open and close meanwhile is theirs.
        paths = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                paths.append(str(descriptor.readlink()))
        return [path for path in paths if path.startswith((str(source), str(tmp_path)))]

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("mrm-stream")]

    others = threads()
    for limit in (1, LARGE):
        shards = ShardSet.open(source, "train", cache=(tmp_path, limit))
        assert_all_read(shards)
        assert descriptors()
        shards.close()
    forgotten = ShardSet.open(source, "train", cache=(tmp_path, LARGE))
    forgotten.hint([0, 1])
    forgotten.sample(0)
    forgotten.sample(6)
    del forgotten, shards
    deadline = time.monotonic() + 5
    while (descriptors() or threads() != others) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not descriptors()
    assert threads() == others
