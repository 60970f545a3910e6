"""Packing that is killed, stopped or short of disk, and then run again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import ShardError
from mrm_stream.packing.journal import FOLDER
from mrm_stream.packing.manifest import Manifest, read_manifest
from mrm_stream.packing.pack import PackOptions, Progress, pack
from mrm_stream.packing.shard import verify_shard

OPTIONS = PackOptions(samples_per_shard=5, short_side=48, vocabulary=200)

# Run as a process of its own, so that it can be killed. Arguments: root, out, workers, largest file in bytes (or 0).
JOB = """
import resource, sys
from pathlib import Path
from mrm_stream.errors import MrmStreamError
from mrm_stream.packing.pack import PackOptions, pack
root, out, workers, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    options = PackOptions(samples_per_shard=5, short_side=48, vocabulary=200)
    pack("training-csv", root, out, options=options, workers=workers)
except MrmStreamError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def pack_set(root: Path, out: Path, *, workers: int = 1, options: PackOptions = OPTIONS) -> Manifest:
    return pack("training-csv", root, out, options=options, workers=workers)


def start_job(root: Path, out: Path, workers: int, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [str(root), str(out), str(workers), str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", JOB, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def digests(directory: Path) -> dict[str, str]:
    """Every file below the directory, hidden ones too, by its SHA-256."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


def test_killed_at_any_moment_and_run_again_the_bytes_are_the_same(
    mixed_set: Path, packed: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    out = tmp_path / "set-0"
    shards_at_kill = []
    for attempt in range(10):
        job = start_job(mixed_set, out, workers=1 + attempt % 2)
        # Some shards further on than the last time, and then at any moment within the next one.
        target = len(list(out.glob("*.tar"))) + draw.randrange(4)
        deadline = time.monotonic() + 20
        while job.poll() is None and time.monotonic() < deadline:
            if (out / FOLDER).exists() and len(list(out.glob("*.tar"))) >= target:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        if job.poll() is None:
            # The parent alone: its workers must follow by themselves. Killing Python's resource tracker too, as the
            # death of the whole group would, leaves the pool's semaphores in /dev/shm.
            os.kill(job.pid, signal.SIGKILL)
        _, said = job.communicate(timeout=20)
        assert job.returncode in (0, -signal.SIGKILL), said
        if job.returncode:
            shards_at_kill.append(len(list(out.glob("*.tar"))))
        if (out / "manifest.json").exists():
            for entry in read_manifest(out).splits["train"]:
                verify_shard(out, entry)
        # The signal may also come when all is done and the process is on its way out.
        is_finished = (out / "manifest.json").exists() and not (out / FOLDER).exists()
        assert is_finished or job.returncode
        if is_finished:
            assert digests(out) == digests(packed)
            out = tmp_path / f"set-{attempt + 1}"
    assert len(shards_at_kill) >= 5
    assert any(0 < shards < 9 for shards in shards_at_kill)
    if not (out / "manifest.json").exists() or (out / FOLDER).exists():
        pack_set(mixed_set, out, workers=2)
        assert digests(out) == digests(packed)


def interrupt(root: Path, out: Path, after: int) -> None:
    """Pack, and stop as if killed after some shards."""

    def stop(done: Progress) -> None:
        if done.records >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("training-csv", root, out, options=OPTIONS, progress=stop)
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


def test_an_interruption_after_the_manifest_is_tidied_up(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=20)
    leftovers = {path.name: path.read_bytes() for path in (out / FOLDER).iterdir()}
    pack_set(mixed_set, out)
    (out / FOLDER).mkdir()
    for name, content in leftovers.items():
        (out / FOLDER / name).write_bytes(content)
    assert pack_set(mixed_set, out) == read_manifest(packed)
    assert digests(out) == digests(packed)


@pytest.mark.parametrize("change", [{"seed": 1}, {"jpeg_quality": 90}, {"samples_per_shard": 6}, {"vocabulary": 100}])
def test_leftovers_of_another_job_are_refused(mixed_set: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "set"
    interrupt(mixed_set, out, after=5)
    before = digests(out)
    with pytest.raises(ShardError, match="another packing job"):
        pack_set(mixed_set, out, options=dataclasses.replace(OPTIONS, **change))
    assert digests(out) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_named_and_nothing_is_half_published(
    mixed_set: Path, packed: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "set"
    largest_but_shards = max(path.stat().st_size for path in packed.iterdir() if path.suffix != ".tar")
    shards = [path.stat().st_size for path in packed.glob("*.tar")]
    assert min(shards) > largest_but_shards
    job = start_job(mixed_set, out, workers, limit=min(shards) - 1)
    _, message = job.communicate(timeout=60)
    assert job.returncode == 1
    assert message.startswith("StorageError: ")
    assert ".tar: cannot be written: File too large" in message
    assert "Made-up" not in message
    assert not list(out.rglob("*.tar"))
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
    pack_set(mixed_set, out)
    assert digests(out) == digests(packed)


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_packing(process: int) -> bool:
    try:
        return "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes through /proc")
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_when_a_process_is_killed_the_others_end_soon(
    make_set: Callable[..., Path], tmp_path: Path, victim: str
) -> None:
    root = make_set(tmp_path / "source", 600)
    job = start_job(root, tmp_path / "set", workers=2)
    deadline = time.monotonic() + 30
    workers: list[int] = []
    while len(workers) < 2 and job.poll() is None and time.monotonic() < deadline:
        workers = [child for child in _children(job.pid) if _is_packing(child)]
        time.sleep(0.01)
    assert len(workers) == 2
    os.kill(workers[0] if victim == "worker" else job.pid, signal.SIGKILL)
    _, message = job.communicate(timeout=30)
    if victim == "worker":
        assert job.returncode == 1
        assert "ShardError" in message
        assert "a worker process was killed" in message
    else:
        assert job.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(_is_packing(process) for process in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_packing(process) for process in workers)
    assert not (tmp_path / "set" / "manifest.json").exists()
