from __future__ import annotations

import errno
import gc
import hashlib
import os
import threading
import weakref
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage import publish
from mrm_stream.stream import checksums
from mrm_stream.stream.checksums import THREADS, Checksums
from mrm_stream.stream.shard_set import DamagedShardError, ShardSet
from tests.stream.phantoms import SEED, load, packed_phantoms
from tests.stream.test_corruption import digests

COUNT = 10
WAIT_S = 10


class Hashing:
    """Stands in for `sha256_of`: notes what is read, and may hold it up."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.now = 0
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> str:
        with self._lock:
            self.read.append(path.name)
            self.now += 1
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        with self._lock:
            self.now -= 1
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Hashing:
    found = Hashing()
    monkeypatch.setattr(checksums, "sha256_of", found)
    return found


@pytest.fixture
def entries(tmp_path: Path) -> list[ShardEntry]:
    made = []
    for number in range(COUNT):
        content = bytes([number]) * 100
        (tmp_path / f"{number}.tar").write_bytes(content)
        made.append(ShardEntry(f"{number}.tar", 1, 100, hashlib.sha256(content).hexdigest(), ""))
    return made


def busy(folder: Path, entries: list[ShardEntry], hashing: Hashing) -> Checksums:
    """All are expected, and each thread is held up in one."""
    hashing.gate.clear()
    made = Checksums(folder, entries)
    made.hint(range(COUNT))
    for _ in range(THREADS):
        assert hashing.begun.acquire(timeout=WAIT_S)
    return made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = threading.Event()
    for _ in range(WAIT_S * 100):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail("it did not come to be")


def test_what_is_expected_is_compared_in_that_order_ahead_of_need_and_once(
    tmp_path: Path, entries: list[ShardEntry], hashing: Hashing
) -> None:
    tested = Checksums(tmp_path, entries)
    tested.hint([3, 1, 4, 1])
    wait_for(lambda: len(hashing.read) == 3 and hashing.now == 0)
    assert set(hashing.read) == {"3.tar", "1.tar", "4.tar"}
    tested.hint([3, 1, 4])
    for shard in (3, 1, 4):
        tested.require(shard)
    assert len(hashing.read) == 3
    assert not tested.are_all_compared()
    tested.hint(range(COUNT))
    for shard in range(COUNT):
        tested.require(shard)
    assert tested.are_all_compared()
    assert len(hashing.read) == COUNT


def test_several_are_read_at_a_time_and_what_is_no_longer_expected_is_left_out(
    tmp_path: Path, entries: list[ShardEntry], hashing: Hashing
) -> None:
    tested = busy(tmp_path, entries, hashing)
    assert hashing.now == THREADS
    tested.hint([9])
    hashing.gate.set()
    tested.require(9)
    wait_for(lambda: hashing.now == 0)
    assert sorted(hashing.read) == sorted({f"{number}.tar" for number in (*range(THREADS), 9)})


def test_what_waits_in_the_queue_is_compared_at_once_where_it_is_needed(
    tmp_path: Path, entries: list[ShardEntry], hashing: Hashing
) -> None:
    tested = busy(tmp_path, entries, hashing)
    needed = threading.Thread(target=tested.require, args=(COUNT - 1,))
    needed.start()
    assert hashing.begun.acquire(timeout=WAIT_S)
    assert hashing.read[-1] == f"{COUNT - 1}.tar"
    hashing.gate.set()
    needed.join(WAIT_S)
    wait_for(tested.are_all_compared)
    assert len(hashing.read) == COUNT


def test_one_that_is_being_read_is_waited_for(tmp_path: Path, entries: list[ShardEntry], hashing: Hashing) -> None:
    hashing.gate.clear()
    tested = Checksums(tmp_path, entries)
    tested.hint([0])
    assert hashing.begun.acquire(timeout=WAIT_S)
    needed = threading.Thread(target=tested.require, args=(0,))
    needed.start()
    needed.join(0.1)
    assert needed.is_alive()
    hashing.gate.set()
    needed.join(WAIT_S)
    assert hashing.read == ["0.tar"]


def test_storage_that_fails_ahead_of_need_is_asked_again(
    tmp_path: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def failing(path: Path) -> str:
        asked.append(path)
        if len(asked) == 1:
            raise OSError(5, "Input/output error")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(checksums, "sha256_of", failing)
    tested = Checksums(tmp_path, entries)
    tested.hint([2])
    wait_for(lambda: len(asked) == 1)
    tested.require(2)
    assert len(asked) == 2


def test_damage_is_told_where_the_shard_is_needed_each_time(tmp_path: Path, entries: list[ShardEntry]) -> None:
    (tmp_path / "5.tar").write_bytes(b"other" * 20)
    (tmp_path / "6.tar").unlink()
    tested = Checksums(tmp_path, entries)
    tested.hint(range(COUNT))
    tested.require(4)
    for _ in range(2):
        with pytest.raises(ShardError, match="SHA-256") as caught:
            tested.require(5)
        assert caught.value.where == str(tmp_path / "5.tar")
        with pytest.raises(ShardError, match="cannot be read: No such file"):
            tested.require(6)
    assert not tested.are_all_compared()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_what_the_file_is_not_to_blame_for_is_no_damage(
    tmp_path: Path, entries: list[ShardEntry], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file server that answers no more, long after the shard was mapped, is mended without touching the set."""

    def failing(path: Path) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checksums, "sha256_of", failing)
    tested = Checksums(tmp_path, entries)
    with pytest.raises(StorageError, match="cannot be read") as caught:
        tested.require(0)
    assert caught.value.where == str(tmp_path / "0.tar")


def test_closed_it_compares_what_is_needed_alone(tmp_path: Path, entries: list[ShardEntry], hashing: Hashing) -> None:
    tested = Checksums(tmp_path, entries)
    tested.close()
    tested.require(7)
    assert hashing.read == ["7.tar"]


def test_forgotten_its_threads_end(tmp_path: Path, entries: list[ShardEntry]) -> None:
    before = threading.active_count()
    tested = Checksums(tmp_path, entries)
    tested.hint(range(COUNT))
    gone = weakref.ref(tested)
    del tested
    gc.collect()
    assert gone() is None
    wait_for(lambda: threading.active_count() <= before)


def test_a_loader_has_the_next_windows_compared_and_then_nothing_more(
    tmp_path_factory: pytest.TempPathFactory, hashing: Hashing
) -> None:
    shards = ShardSet.open(packed_phantoms(tmp_path_factory), "train")
    assert shards.wants_hints
    count = len(shards.shard_sizes)
    with load(shards, digests, batch_size=8, prefetch=1, window=1) as loader:
        next(loader)
        wait_for(lambda: hashing.now == 0 and len(hashing.read) > 1)
        assert len(hashing.read) < count, "far more than is needed soon"
        for _ in range(-(-len(shards) // 8)):
            next(loader)
        assert not shards.wants_hints
        assert sorted(hashing.read) == sorted(entry.file for entry in shards.manifest.splits["train"])


def test_damage_far_ahead_does_not_end_what_comes_before_it(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(packed_phantoms(tmp_path_factory), "train")
    order = [*islice(shards.order(SEED, 1).windows_from(0), 2)]
    (second,) = order[1][1]
    name = shards.manifest.splits["train"][second].file
    true = publish.sha256_of
    monkeypatch.setattr(checksums, "sha256_of", lambda path: "0" * 64 if path.name == name else true(path))
    with load(shards, digests, batch_size=1, prefetch=1, window=1) as loader:
        for _ in range(order[0][0]):
            next(loader)
        with pytest.raises(DamagedShardError, match=name):
            next(loader)
