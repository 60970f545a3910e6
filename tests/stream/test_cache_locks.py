"""A cache on a file system that knows no locks: the rest of the machine does."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.stream import cache_locks
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.shard_set import ShardSet
from tests.stream.cached import LARGE, SHARDS, assert_all_read, make_source, whole

Lockless = Callable[[Path, int], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture
def lockless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lockless:
    """(folder, what `flock` fails with) -> nothing can be locked below the folder; elsewhere it can."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cache_locks._warn_once.cache_clear()
    flock = fcntl.flock

    def without(folder: Path, number: int) -> None:
        def refuse(file: int, operation: int) -> None:
            if Path(f"/proc/self/fd/{file}").readlink().is_relative_to(folder):
                raise OSError(number, os.strerror(number))
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", refuse)

    return without


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_set_is_read_through_it_and_its_limit_kept(
    source: Path, tmp_path: Path, lockless: Lockless, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    lockless(tmp_path / "cache", number)
    limit = 3 * max(entry.bytes for entry in read_manifest(source).splits["train"])
    shards = ShardSet.open(source, "train", (tmp_path / "cache", limit))
    try:
        assert_all_read(shards)
    finally:
        shards.close()
    ShardSet.open(source, "train", (tmp_path / "cache", limit)).close()
    assert 3 <= len(list((tmp_path / "cache").rglob("*.tar"))) < SHARDS
    (said,) = (record.getMessage() for record in caplog.records)
    assert f"without locks: they are in {tmp_path / 'temporary'}" in said
    assert "nobody on another machine" in said


def test_what_another_process_uses_is_not_removed(source: Path, tmp_path: Path, lockless: Lockless) -> None:
    folder, (used, *others) = tmp_path / "cache", read_manifest(source).splits["train"]
    lockless(folder, errno.ENOSYS)
    one, other = ShardCache(source, folder, LARGE), ShardCache(source, folder, 1)
    try:
        one.path(used)
        for entry in others:
            other.path(entry)
            other.release(entry)
        assert other.counts.evicted == len(others) - 1
        assert whole(folder, used)
    finally:
        one.close()
        other.close()


def test_a_cache_has_the_same_locks_however_its_path_is_written(
    source: Path, tmp_path: Path, lockless: Lockless, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockless(tmp_path / "cache", errno.ENOSYS)
    used, another, _ = read_manifest(source).splits["train"][:3]
    (tmp_path / "link").symlink_to("cache")
    monkeypatch.chdir(tmp_path)
    one = ShardCache(source, tmp_path / "cache", LARGE)
    others = [ShardCache(source, folder, 1) for folder in (Path("cache"), tmp_path / "link")]
    try:
        one.path(used)
        for other in others:
            other.path(another)
            other.release(another)
            assert whole(tmp_path / "cache", used)
    finally:
        for cache in (one, *others):
            cache.close()


def test_a_machine_without_any_locks_is_refused(source: Path, tmp_path: Path, lockless: Lockless) -> None:
    lockless(tmp_path, errno.ENOSYS)
    with pytest.raises(StorageError, match="the cache cannot be used: No locks available"):
        ShardCache(source, tmp_path / "cache", LARGE)
