"""Packing from and to S3 that fails, is denied, or is gone; and packing that is killed there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError, SourceError, StorageError
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing import lock
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.repair import repair
from mrm_stream.packing.verify import verify
from mrm_stream.packing.workers import Workers
from mrm_stream.storage import retries
from mrm_stream.storage.paths import AnyPath, parse_path
from tests.packing.faulty_s3 import ALL, Faults, FaultyS3, retry_soon, running

OPTIONS = PackOptions(samples_per_shard=8, short_side=48, vocabulary=200)

# Run as a process of its own, so that it can be killed. Arguments: root, out, workers.
JOB = """
import sys
from mrm_stream.storage import paths, retries
from mrm_stream.packing import lock
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.workers import Workers
from mrm_stream.storage.paths import parse_path

if __name__ == "__main__":
    lock.RENEWED_S, retries.FIRST_PAUSE_S, paths._READ_S = 0.3, 0.01, 0.3
    root, out, workers = parse_path(sys.argv[1]), parse_path(sys.argv[2]), int(sys.argv[3])
    options = PackOptions(samples_per_shard=8, short_side=48, vocabulary=200)
    pack("training-csv", root, out, options=options, workers=Workers(workers), supervision=Supervision(max_bad=1.0))
"""

_numbers = count()


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with running() as server:
        server.make_bucket("sets")
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_soon(monkeypatch)
    monkeypatch.setattr(lock, "RENEWED_S", 0.3)


@pytest.fixture(scope="module")
def remote_root(s3: FaultyS3, mixed_set: Path) -> str:
    return s3.put_tree(mixed_set, "source", "data/set")


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the set, packed here from here."""
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return local_contents(out)


@pytest.fixture
def name() -> str:
    """Of a set that no other test has."""
    return f"set-{next(_numbers)}"


def pack_set(root: AnyPath, out: AnyPath, workers: int = 1) -> None:
    pack("training-csv", root, out, options=OPTIONS, supervision=Supervision(max_bad=1.0), workers=Workers(workers))


def local_contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def out_of(name: str) -> AnyPath:
    return parse_path(f"s3://sets/{name}")


@pytest.mark.parametrize(("root_is_remote", "out_is_remote"), [(True, False), (False, True), (True, True)])
def test_the_bytes_are_those_of_local_packing_whatever_storage_does(
    s3: FaultyS3,
    mixed_set: Path,
    remote_root: str,
    packed: dict[str, bytes],
    name: str,
    tmp_path: Path,
    root_is_remote: bool,
    out_is_remote: bool,
) -> None:
    root = parse_path(remote_root) if root_is_remote else mixed_set
    out = out_of(name) if out_is_remote else tmp_path / "set"
    with s3.failing(Faults(0.15, seed=1)) as faults:
        pack_set(root, out)
    assert sum(faults.seen[kind] for kind in ALL) >= 5
    assert (s3.contents("sets", name) if out_is_remote else local_contents(tmp_path / "set")) == packed


def test_worker_processes_reach_storage_too(
    s3: FaultyS3, remote_root: str, packed: dict[str, bytes], name: str
) -> None:
    with s3.failing(Faults(0.1, seed=2)) as faults:
        pack_set(parse_path(remote_root), out_of(name), workers=2)
    assert sum(faults.seen[kind] for kind in ALL) >= 5
    assert s3.contents("sets", name) == packed


def test_without_retries_the_same_faults_end_the_job(
    s3: FaultyS3, remote_root: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above show what the retries are worth."""
    monkeypatch.setattr(retries, "ATTEMPTS", 1)
    with s3.failing(Faults(0.15, seed=1)), pytest.raises(StorageError, match="remote storage failed"):
        pack_set(parse_path(remote_root), out_of(name))
    assert MANIFEST not in s3.contents("sets", name)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(20))
def test_campaign_of_faults_and_kills(
    s3: FaultyS3, remote_root: str, packed: dict[str, bytes], name: str, seed: int
) -> None:
    """Half the time a quarter of all requests fail, and the job is killed at any moment, until it is done."""
    with s3.failing(Faults(0.25 if seed % 2 else 0.05, seed=seed)):
        for attempt in range(30):
            job = start_job(remote_root, name, workers=1 + (seed + attempt) % 2)
            try:
                job.wait(timeout=2 + (seed * 7 + attempt * 5) % 11)
            except subprocess.TimeoutExpired:
                job.send_signal(signal.SIGKILL)
                job.wait()
            left = s3.contents("sets", name)
            assert MANIFEST not in left or left.items() >= packed.items()
            # Killed on its way out, all done, it is done: then its lease may be left.
            if job.returncode == 0 or (MANIFEST in left and ".packing/job.json" not in left):
                break
    assert {file: content for file, content in left.items() if file != ".packing/lock"} == packed


def start_job(root: str, name: str, workers: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", JOB, root, f"s3://sets/{name}", str(workers)])


def test_killed_and_run_again_the_bytes_are_the_same(
    s3: FaultyS3, remote_root: str, packed: dict[str, bytes], name: str
) -> None:
    job = start_job(remote_root, name)
    deadline = time.monotonic() + 60
    while shards_in(s3, name) < 2 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    left = s3.contents("sets", name)
    assert MANIFEST not in left
    assert ".packing/lock" in left
    assert ".packing/job.json" in left
    kept = [shard for shard in left if shard.endswith(".tar")]
    begun = {shard: s3.client.head_object(Bucket="sets", Key=f"{name}/{shard}")["LastModified"] for shard in kept}
    noted = [shard for shard in kept if f".packing/{Path(shard).stem}.json" in left]
    assert len(noted) >= 2
    # One of them is damaged in between: it is packed again, the others are kept.
    damaged = noted.pop()
    s3.client.put_object(Bucket="sets", Key=f"{name}/{damaged}", Body=left[damaged][:-1] + b"x")
    time.sleep(1)  # the time of an object is in whole seconds
    pack_set(parse_path(remote_root), out_of(name))
    assert s3.contents("sets", name) == packed
    for shard in noted:
        assert s3.client.head_object(Bucket="sets", Key=f"{name}/{shard}")["LastModified"] == begun[shard]


def shards_in(s3: FaultyS3, name: str) -> int:
    listed = s3.client.list_objects_v2(Bucket="sets", Prefix=f"{name}/.packing/train-").get("Contents", ())
    return len(listed)


def test_a_second_packer_is_refused(s3: FaultyS3, mixed_set: Path, packed: dict[str, bytes], name: str) -> None:
    refused: list[Progress] = []

    def intrude(done: Progress) -> None:
        if not refused:
            with pytest.raises(ShardError, match="another process is packing"):
                pack_set(mixed_set, out_of(name))
            refused.append(done)

    pack(
        "training-csv", mixed_set, out_of(name), options=OPTIONS, supervision=Supervision(max_bad=1.0, progress=intrude)
    )
    assert refused
    assert s3.contents("sets", name) == packed


def test_another_job_and_a_finished_set_are_refused_and_left_alone(s3: FaultyS3, mixed_set: Path, name: str) -> None:
    def stop(done: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(
            "training-csv",
            mixed_set,
            out_of(name),
            options=OPTIONS,
            supervision=Supervision(max_bad=1.0, progress=stop),
        )
    left = s3.contents("sets", name)
    assert ".packing/lock" not in left
    with pytest.raises(ShardError, match="another packing job"):
        pack("training-csv", mixed_set, out_of(name), options=PackOptions(seed=5), supervision=Supervision(max_bad=1.0))
    assert s3.contents("sets", name) == left
    pack_set(mixed_set, out_of(name))
    whole = s3.contents("sets", name)
    with pytest.raises(ShardError, match="already holds shards"):
        pack_set(mixed_set, out_of(name))
    assert s3.contents("sets", name) == whole


def test_where_nothing_can_be_used_nothing_is_left(
    s3: FaultyS3, make_set: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    root = make_set(tmp_path / "source", 0, truncated=2, silent=1)
    with pytest.raises(ShardError, match="nothing was packed"):
        pack_set(root, out_of(name))
    assert s3.contents("sets", name) == {}


def test_damage_there_is_found_and_repaired(
    s3: FaultyS3, remote_root: str, packed: dict[str, bytes], name: str
) -> None:
    for file, content in packed.items():
        s3.client.put_object(Bucket="sets", Key=f"{name}/{file}", Body=content)
    assert verify(out_of(name), decode=True) == []
    flipped = bytearray(packed["train-00001.tar"])
    flipped[len(flipped) // 2] ^= 4
    s3.client.put_object(Bucket="sets", Key=f"{name}/train-00001.tar", Body=bytes(flipped))
    s3.client.put_object(Bucket="sets", Key=f"{name}/reports.zdict", Body=packed["reports.zdict"][:-1])
    s3.client.delete_object(Bucket="sets", Key=f"{name}/train-00003.idx")
    s3.client.put_object(Bucket="sets", Key=f"{name}/train-99999.tar", Body=b"stray")
    wrong = {"train-00001.tar", "reports.zdict", "train-00003.tar", "train-99999.tar"}
    with s3.failing(Faults(0.1, seed=4)):
        found = {fault.file.replace(".idx", ".tar") for fault in verify(out_of(name))}
        assert found == wrong
        _, remaining = repair(out_of(name), parse_path(remote_root))
    assert remaining == []
    assert s3.contents("sets", name) == packed


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_permission_denied_is_told_at_once(s3: FaultyS3, mixed_set: Path, name: str, method: str) -> None:
    begun = time.monotonic()
    denial = Faults(1, ("deny",), only=lambda asked, path: asked == method)
    with s3.failing(denial) as faults, pytest.raises(StorageError, match="PermissionError") as caught:
        pack_set(mixed_set, out_of(name))
    assert f"s3://sets/{name}" in str(caught.value)
    assert caught.value.remedy
    assert faults.seen["deny"] <= 2
    assert time.monotonic() - begun < 10


def test_no_such_bucket_is_told_at_once(s3: FaultyS3, mixed_set: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written: FileNotFoundError"):
        pack_set(mixed_set, parse_path("s3://no-such-bucket/set"))
    with pytest.raises(SourceError, match="no such directory"):
        pack_set(parse_path("s3://no-such-bucket/set"), parse_path("s3://sets/unused"))


def test_one_image_that_is_denied_is_quarantined(s3: FaultyS3, remote_root: str, name: str) -> None:
    denial = Faults(1, ("deny",), only=lambda method, path: "good-007" in path)
    with s3.failing(denial):
        pack_set(parse_path(remote_root), out_of(name))
    assert read_manifest(out_of(name)).quarantined["image-cannot-be-read"] == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_storage_that_goes_down_ends_the_job_in_bounded_time(
    s3: FaultyS3, remote_root: str, packed: dict[str, bytes], name: str, workers: int
) -> None:
    begun = time.monotonic()
    calls = count()
    # Half a set further on, for good.
    down = Faults(1, ("internal", "reset"), only=lambda method, path: next(calls) > 130)
    with s3.failing(down), pytest.raises(StorageError, match="remote storage failed 8 times"):
        pack_set(parse_path(remote_root), out_of(name), workers=workers)
    # In worker processes the pauses are as they are: half a minute.
    assert time.monotonic() - begun < (30 if workers == 1 else 90)
    assert MANIFEST not in s3.contents("sets", name)
    pack_set(parse_path(remote_root), out_of(name))
    assert s3.contents("sets", name) == packed


def test_storage_in_memory_serves_too(mixed_set: Path, packed: dict[str, bytes]) -> None:
    out = parse_path("memory://remote/set")
    pack_set(mixed_set, out)
    assert {place.name: place.read_bytes() for place in out.iterdir() if place.is_file()} == packed
    assert verify(out) == []
