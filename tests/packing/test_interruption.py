"""Packing that is killed, stopped, or started twice, and then run again."""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import FOLDER
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.packing import journal
from mrm_stream.packing.lock import locked
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.verify import verify
from tests.packing.torture import (
    FAULTS,
    OPTIONS,
    KillReport,
    digests,
    kill_campaign,
    pack_set,
    start_job,
    worker_processes,
)

_logger = logging.getLogger(__name__)

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


# ---- kills ----


@NEEDS_PROC
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.campaign)])
def test_killed_at_any_moment_and_run_again_the_bytes_are_the_same(
    mixed_set: Path, packed: Path, tmp_path: Path, kills: int
) -> None:
    report = kill_campaign(mixed_set, packed, tmp_path, kills=kills)
    _logger.info("%s", report)
    assert report.problems == []
    assert report.kills.total() == kills
    assert report.finished >= 1
    assert any("shards" in moment and moment != "0 shards" for moment in report.moments)


@NEEDS_PROC
@pytest.mark.campaign
@pytest.mark.parametrize("fault", FAULTS)
def test_the_campaign_of_kills_finds_planted_faults(mixed_set: Path, packed: Path, tmp_path: Path, fault: str) -> None:
    report: KillReport = kill_campaign(mixed_set, packed, tmp_path, kills=100, fault=fault)
    expected = {
        "in-place": "but is not whole",
        "trusting": "stands, but not the set",
        "order": "is not whole",
    }
    assert expected[fault] in "\n".join(report.problems)


@NEEDS_PROC
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_when_a_process_is_killed_the_others_end_soon(
    make_set: Callable[..., Path], tmp_path: Path, victim: str
) -> None:
    job = start_job(make_set(tmp_path / "source", 600), tmp_path / "set", workers=2)
    deadline = time.monotonic() + 60
    workers: list[int] = []
    while len(workers) < 2 and job.poll() is None and time.monotonic() < deadline:
        workers = worker_processes(job.pid)
        time.sleep(0.01)
    assert len(workers) == 2
    os.kill(workers[0] if victim == "worker" else job.pid, signal.SIGKILL)
    _, message = job.communicate(timeout=60)
    if victim == "worker":
        assert job.returncode == 1
        assert "ClusterError: a worker process was killed" in message
    else:
        assert job.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}/fd").exists() for process in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [process for process in workers if "spawn_main" in _command(process)]
    assert not (tmp_path / "set" / "manifest.json").exists()


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


# ---- leftovers ----


def interrupt(root: Path, out: Path, after: int) -> None:
    """Pack, and stop as if killed after some shards."""

    def stop(done: Progress) -> None:
        if done.records >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("training-csv", root, out, options=OPTIONS, supervision=Supervision(max_bad=1.0, progress=stop))
    assert not (out / "manifest.json").exists()


def test_whole_shards_are_kept_and_damaged_ones_packed_again(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=20)
    done = sorted(out.glob("train-*.tar"))
    assert len(done) == 4
    content = bytearray(done[1].read_bytes())
    content[len(content) // 2] ^= 1
    done[1].write_bytes(content)
    done[2].with_suffix(".idx").unlink()
    (out / "tokenizer.json").write_text("{}")
    untouched = {path: path.stat().st_mtime_ns for path in (done[0], done[3])}
    pack_set(mixed_set, out)
    assert digests(out) == digests(packed)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.campaign)])
def test_damaged_notes_are_not_believed(mixed_set: Path, packed: Path, tmp_path: Path, rounds: int) -> None:
    """They hold lines of the quarantine and the checksums that shards are kept by."""
    draw = random.Random(0)
    for number in range(rounds):
        out = tmp_path / f"set-{number}"
        interrupt(mixed_set, out, after=40)
        notes = [path for path in (out / FOLDER).glob("*.json") if path.name != "job.json"]
        for path in notes:
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        pack_set(mixed_set, out)
        assert digests(out) == digests(packed)


def test_notes_of_a_job_that_cannot_be_told_are_dropped(mixed_set: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(OPTIONS, jpeg_quality=80)
    pack_set(mixed_set, tmp_path / "undisturbed", options=other)
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=20)
    (out / FOLDER / "job.json").write_text("{")
    pack_set(mixed_set, out, options=other)
    assert digests(out) == digests(tmp_path / "undisturbed")


def test_an_interruption_after_the_manifest_is_tidied_up(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=20)
    leftovers = {path.name: path.read_bytes() for path in (out / FOLDER).iterdir()}
    pack_set(mixed_set, out)
    (out / FOLDER).mkdir()
    for name, content in leftovers.items():
        (out / FOLDER / name).write_bytes(content)
    pack_set(mixed_set, out)
    assert digests(out) == digests(packed)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _removing(count: int) -> Callable[[Path], None]:
    """Remove so many files, and then be interrupted."""
    steps = iter(range(count))
    return lambda path: _interrupt() if next(steps, None) is None else path.unlink()


def test_wherever_tidying_up_is_interrupted_no_other_job_takes_the_set_over(
    mixed_set: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(OPTIONS, jpeg_quality=80)
    for stop in (0, 5, 10, 11):  # of nine shards' notes, that of the reports, the job's; then the folder
        out = tmp_path / f"set-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(journal, "remove", _removing(stop))
            patch.setattr(shutil, "rmtree", lambda *_, **__: _interrupt())
            with pytest.raises(KeyboardInterrupt):
                pack_set(mixed_set, out)
        with pytest.raises(ShardError, match=r"already holds shards|another packing job"):
            pack_set(mixed_set, out, options=other)
        if (out / FOLDER).exists():
            pack_set(mixed_set, out)
        assert digests(out) == digests(packed)


@pytest.mark.parametrize("change", [{"seed": 1}, {"jpeg_quality": 90}, {"samples_per_shard": 6}, {"vocabulary": 100}])
def test_leftovers_of_another_job_are_refused(mixed_set: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=5)
    before = digests(out)
    with pytest.raises(ShardError, match="another packing job"):
        pack_set(mixed_set, out, options=dataclasses.replace(OPTIONS, **change))
    assert digests(out) == before


# ---- two at once ----


def test_a_second_packer_is_refused_while_the_first_one_packs(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    refused = []

    def start_another(done: Progress) -> None:
        with pytest.raises(ShardError, match="another process is packing") as caught:
            pack_set(mixed_set, out)
        refused.append(caught.value.where)

    pack("training-csv", mixed_set, out, options=OPTIONS, supervision=Supervision(max_bad=1.0, progress=start_another))
    assert refused == [str(out)] * 9
    assert digests(out) == digests(packed)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_of_packers_started_together_one_packs(mixed_set: Path, packed: Path, tmp_path: Path, rounds: int) -> None:
    for number in range(rounds):
        out = tmp_path / f"set-{number}"
        jobs = [start_job(mixed_set, out, workers=1) for _ in range(3)]
        said = [job.communicate(timeout=60)[1] for job in jobs]
        assert 0 in {job.returncode for job in jobs}
        for job, message in zip(jobs, said, strict=True):
            refusals = ("ShardError: ", "another process is packing", "already holds shards")
            assert not job.returncode or (message.count(refusals[0]) and any(word in message for word in refusals[1:]))
        assert digests(out) == digests(packed)


def test_a_lock_that_its_holder_removed_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before the holder ended, locked after: the file is gone, and a third process would make another."""
    lock = tmp_path / "lock"
    flock = fcntl.flock

    def removed_meanwhile(file: Any, operation: int) -> None:
        lock.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with pytest.raises(ShardError, match="another process"), locked(lock, tmp_path):
        pytest.fail("was held")


def test_the_finished_set_is_whole(packed: Path) -> None:
    assert verify(packed, decode=True) == []
    assert read_manifest(packed).samples("train") == 40
