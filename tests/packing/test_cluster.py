"""Packing on a Dask cluster: the same bytes, whoever is killed, and an end in bounded time where there is none."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed
import pytest

from mrm_stream.errors import ClusterError
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing import lock, workers
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.plan import libraries
from mrm_stream.packing.repair import repair
from mrm_stream.packing.verify import verify
from mrm_stream.packing.workers import Workers, run_all
from mrm_stream.storage.paths import AnyPath, parse_path
from tests.packing.faulty_s3 import running

pytestmark = pytest.mark.alone

OPTIONS = PackOptions(samples_per_shard=4, short_side=48, vocabulary=200)


@pytest.fixture(autouse=True)
def _clients_are_gone() -> Iterator[None]:
    """A client that could not connect closes itself when collected: not in a thread of the next test's cluster."""
    yield
    gc.collect()


@contextmanager
def cluster_of(processes: int) -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(
        n_workers=processes, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    with cluster_of(2) as running_cluster:
        yield running_cluster


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the set, packed by this process."""
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out, Workers())
    return contents(out)


def pack_set(root: AnyPath, out: AnyPath, where: Workers, progress: Callable[[Progress], None] | None = None) -> None:
    pack(
        "training-csv",
        root,
        out,
        options=OPTIONS,
        supervision=Supervision(max_bad=1.0, progress=progress),
        workers=where,
    )


def on(cluster: distributed.LocalCluster) -> Workers:
    return Workers(scheduler=cluster.scheduler_address)


def failure_of(act: Callable[[], None]) -> BaseException | None:
    """Return what `act` raises; it must end within half a minute, and is left behind in its thread where it hangs."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def pids(cluster: distributed.LocalCluster) -> list[int]:
    """Of the worker processes, not of the nannies that start them anew."""
    return [nanny.process.pid for nanny in cluster.workers.values()]


def test_the_bytes_are_those_of_local_packing(
    cluster: distributed.LocalCluster, mixed_set: Path, packed: dict[str, bytes], tmp_path: Path
) -> None:
    done: list[int] = []
    pack_set(mixed_set, tmp_path / "set", on(cluster), lambda progress: done.append(progress.records))
    assert contents(tmp_path / "set") == packed
    assert done == sorted(done)
    assert done[-1] == 43
    assert verify(tmp_path / "set", decode=True, workers=on(cluster)) == []


def test_paths_reach_workers_that_have_another_working_directory(
    cluster: distributed.LocalCluster,
    mixed_set: Path,
    packed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(mixed_set.parent)
    out = Path(os.path.relpath(tmp_path / "set"))
    pack_set(Path("set"), out, on(cluster))
    assert contents(out) == packed


def test_from_s3_to_s3(mixed_set: Path, packed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED_S", 0.3)
    with running() as s3, cluster_of(2) as cluster:  # begun now, the workers find this S3
        s3.make_bucket("sets")
        root = s3.put_tree(mixed_set, "source", "set")
        pack_set(parse_path(root), parse_path("s3://sets/set"), on(cluster))
        assert s3.contents("sets", "set") == packed


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.campaign)])
def test_workers_that_are_killed_are_replaced(
    mixed_set: Path, packed: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    killed: list[int] = []

    with cluster_of(2) as cluster:

        def kill(done: Progress) -> None:
            if len(killed) < kills:
                victim = pids(cluster)[len(killed) % 2]
                if victim not in killed:
                    killed.append(victim)
                    os.kill(victim, signal.SIGKILL)

        pack_set(mixed_set, tmp_path / "set", on(cluster), kill)
    assert killed
    assert contents(tmp_path / "set") == packed


def test_a_scheduler_that_is_lost_ends_the_job_and_it_can_go_on(
    mixed_set: Path, packed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOST_S", 1.0)
    closing: list[threading.Thread] = []
    with cluster_of(1) as cluster:

        def close(done: Progress) -> None:
            if not closing:
                closing.append(threading.Thread(target=cluster.close))
                closing[0].start()
                closing[0].join(20)

        error = failure_of(lambda: pack_set(mixed_set, tmp_path / "set", on(cluster), close))
        assert isinstance(error, ClusterError)
        assert error.remedy
    assert MANIFEST not in contents(tmp_path / "set")
    pack_set(mixed_set, tmp_path / "set", Workers(2))
    assert contents(tmp_path / "set") == packed


def test_all_workers_killed_for_good_ends_the_job(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOST_S", 2.0)
    gone: list[Any] = []
    with cluster_of(1) as cluster:

        def retire(done: Progress) -> None:
            if not gone:
                gone.append(True)
                cluster.scale(0)

        error = failure_of(lambda: pack_set(mixed_set, tmp_path / "set", on(cluster), retire))
        assert isinstance(error, ClusterError)
        assert "worker" in error.what
    assert MANIFEST not in contents(tmp_path / "set")


def test_no_scheduler_at_the_address(mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CONNECT_S", 1)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=r"tcp://127.0.0.1:1: no Dask scheduler answers within 1 s") as caught:
        pack_set(mixed_set, tmp_path / "set", Workers(scheduler="tcp://127.0.0.1:1"))
    assert "dask scheduler" in str(caught.value.remedy)
    assert time.monotonic() - begun < 20


def test_a_client_that_cannot_connect_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it closes itself when it is collected, in whatever thread that happens."""
    closed: list[object] = []

    def fail(client: distributed.Client, *_: object, **__: object) -> None:
        raise OSError("made up")

    monkeypatch.setattr(distributed.Client, "__init__", fail)
    monkeypatch.setattr(distributed.Client, "__del__", lambda client: None)
    monkeypatch.setattr(distributed.Client, "close", lambda client, timeout: closed.append(timeout))
    with pytest.raises(ClusterError, match="no Dask scheduler answers"):
        list(run_all(wait_a_little, [1, 2], Workers(scheduler="tcp://127.0.0.1:1")))
    assert closed == [1]


def wait_a_little(task: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def test_workers_that_come_later_are_given_work() -> None:
    taken = 0

    class Tasks(Sequence[int]):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, place: Any) -> Any:
            nonlocal taken
            if place >= 60:
                raise IndexError
            taken += 1
            return place

    waiting: list[int] = []
    processes: set[int] = set()
    with cluster_of(1) as cluster:
        for done, (_, process) in enumerate(run_all(wait_a_little, Tasks(), on(cluster)), start=1):
            processes.add(process)
            waiting.append(taken - done)
            if done == 1:
                cluster.scale(3)
    assert max(waiting[:2]) < 3  # three for the one worker
    assert 6 <= max(waiting) < 9
    assert len(processes) == 3


def test_verify_and_repair_reach_workers_that_have_another_working_directory(
    cluster: distributed.LocalCluster,
    mixed_set: Path,
    packed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack_set(mixed_set, tmp_path / "set", Workers())
    monkeypatch.chdir(tmp_path)
    assert verify(Path("set"), decode=True, workers=on(cluster)) == []
    (tmp_path / "set" / "train-00001.tar").unlink()
    found, left = repair(Path("set"), mixed_set, workers=on(cluster))
    assert ([fault.file for fault in found], left) == (["train-00001.tar"], [])
    assert contents(Path("set")) == packed


def test_a_scheduler_without_workers(mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CONNECT_S", 1)
    with cluster_of(0) as cluster, pytest.raises(ClusterError, match="no worker for 1 s") as caught:
        pack_set(mixed_set, tmp_path / "set", on(cluster))
    assert caught.value.remedy == f"dask worker {cluster.scheduler_address}"


def test_a_worker_with_other_libraries_refuses(
    cluster: distributed.LocalCluster, mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = libraries() | {"simplejpeg": "0.0.1"}
    monkeypatch.setattr("mrm_stream.packing.pack.libraries", lambda: versions)
    with pytest.raises(ClusterError, match="other versions of libraries: simplejpeg"):
        pack_set(mixed_set, tmp_path / "set", on(cluster))
    assert MANIFEST not in contents(tmp_path / "set")


def test_without_dask_the_error_names_the_remedy(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match="Dask is not installed") as caught:
        pack_set(mixed_set, tmp_path / "set", Workers(scheduler="tcp://127.0.0.1:1"))
    assert caught.value.remedy == "pip install 'mrm-stream[cluster]'"
