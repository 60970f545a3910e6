"""One process at a time: the kernel's lock here, a lease elsewhere."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError, StorageError
from mrm_stream.packing import lock
from mrm_stream.packing.lock import locked
from mrm_stream.storage.files import create_exclusively, overwrite, read_whole, remove
from mrm_stream.storage.paths import AnyPath, parse_path


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED_S", 0.2)


@pytest.fixture
def lease() -> Iterator[AnyPath]:
    place = parse_path("memory://locks/lock")
    yield place
    remove(place)


def test_a_local_directory_is_held_by_one_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from mrm_stream.packing.lock import locked
with locked(Path({str(tmp_path / "lock")!r}), Path("set")):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ShardError, match="another process is packing"), locked(tmp_path / "lock", tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "lock", tmp_path):  # the kernel lets go of what the dead held
        pass


def test_a_lease_is_renewed_and_removed(lease: AnyPath) -> None:
    with locked(lease, lease.parent):
        seen = {read_whole(lease, 100)}
        time.sleep(0.7)
        seen.add(read_whole(lease, 100))
    assert len({content.split()[0] for content in seen}) == 1
    assert len(seen) == 2
    assert not lease.exists()


def test_a_living_owner_keeps_others_out(lease: AnyPath) -> None:
    with locked(lease, lease.parent):
        begun = time.monotonic()
        with pytest.raises(ShardError, match="another process is packing"), locked(lease, lease.parent):
            pass
        assert time.monotonic() - begun < 2 * lock.RENEWED_S + 1
    assert not lease.exists()


def test_the_lease_of_a_dead_owner_is_taken_over_after_a_watch(lease: AnyPath) -> None:
    overwrite(lease, b"dead 7\n")
    begun = time.monotonic()
    with locked(lease, lease.parent):
        assert time.monotonic() - begun >= 2 * lock.RENEWED_S
        assert not read_whole(lease, 100).startswith(b"dead")
    assert not lease.exists()


def test_a_lease_that_vanishes_while_watched_has_had_an_owner(lease: AnyPath) -> None:
    overwrite(lease, b"ending 7\n")
    threading.Timer(0.1, remove, (lease,)).start()
    with pytest.raises(ShardError, match="another process"), locked(lease, lease.parent):
        pass


@pytest.mark.parametrize("others", [2])
def test_of_those_who_watch_a_dead_lease_few_go_on(lease: AnyPath, others: int) -> None:
    """One, as a rule; all of them do no harm, as the same job writes the same bytes."""
    overwrite(lease, b"dead 7\n")
    outcomes: list[bool] = []

    def compete() -> None:
        try:
            with locked(lease, lease.parent):
                time.sleep(1)
                outcomes.append(True)
        except ShardError:
            outcomes.append(False)

    threads = [threading.Thread(target=compete) for _ in range(1 + others)]
    for number, thread in enumerate(threads):
        thread.start()
        time.sleep(0.05 * (number + 1))
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
    assert not lease.exists()


def test_the_lease_outlives_storage_that_is_down_for_a_while(lease: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def fail_twice(place: AnyPath, content: bytes) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise StorageError("made up")
        overwrite(place, content)

    monkeypatch.setattr(lock, "overwrite", fail_twice)
    with locked(lease, lease.parent):
        first = read_whole(lease, 100)
        time.sleep(1)
        assert read_whole(lease, 100) != first
    assert len(attempts) >= 3


def test_what_ended_the_work_is_not_hidden_by_a_lease_that_cannot_be_removed(
    lease: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: AnyPath) -> None:
        raise StorageError("down")

    monkeypatch.setattr(lock, "remove", fail)
    with pytest.raises(KeyboardInterrupt), locked(lease, lease.parent):
        raise KeyboardInterrupt
    assert not create_exclusively(lease, b"x")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_packed_onto_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    held = False
    with caplog.at_level(logging.WARNING), locked(tmp_path / "lock", tmp_path):
        held = True
    assert held
    assert "has no locks" in caplog.text


def test_a_lock_that_fails_otherwise_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match="cannot be locked: Input/output error"), locked(tmp_path / "lock", tmp_path):
        pass


def test_a_lease_that_another_has_taken_is_neither_renewed_nor_removed(
    lease: AnyPath, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), locked(lease, lease.parent):
        overwrite(lease, b"another 3\n")
        time.sleep(0.7)
        assert read_whole(lease, 100) == b"another 3\n"
    assert read_whole(lease, 100) == b"another 3\n"
    assert caplog.text.count("another process has taken the lease") == 1


def test_a_lease_that_another_takes_at_the_very_end_is_not_removed(lease: AnyPath) -> None:
    with locked(lease, lease.parent):
        overwrite(lease, b"another 3\n")
    assert read_whole(lease, 100) == b"another 3\n"


def test_a_lease_that_was_removed_is_made_again(lease: AnyPath) -> None:
    with locked(lease, lease.parent):
        owner = read_whole(lease, 100).split()[0]
        remove(lease)
        time.sleep(0.7)
        assert read_whole(lease, 100).split()[0] == owner
    assert not lease.exists()
