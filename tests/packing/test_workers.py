"""Work that is handed out to other processes: all of it is done, little of it at a time, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import pytest

from mrm_stream.errors import ClusterError, ConfigError, SourceError
from mrm_stream.packing import workers as workers_module
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.workers import Workers, run_all
from tests.packing.torture import OPTIONS


def double(task: int) -> int:
    time.sleep(task % 3 / 500)
    return 2 * task


def fail_at_seven(task: int) -> int:
    if task == 7:
        raise SourceError("task 7 is bad", where="a place", remedy="a remedy")
    return task


def die_at_seven(task: int) -> int:
    if task == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


class Counted(Sequence[int]):
    """Tasks 0 to n - 1, and how many were taken."""

    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        assert isinstance(place, int)
        if place >= self.length:
            raise IndexError
        self.taken += 1
        return place


def no_process_is_left() -> bool:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not multiprocessing.active_children()


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in place of processes, which take a second to start; the hand-out is the same."""

    @contextmanager
    def pool(processes: int) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(processes) as executor:
            yield executor

    monkeypatch.setattr(workers_module, "_local_pool", pool)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_task_comes_back_once_with_its_own_result(processes: int) -> None:
    results = list(run_all(double, range(40), Workers(processes)))
    assert sorted(results) == [(task, 2 * task) for task in range(40)]
    assert no_process_is_left()


def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_local_pool", None)
    assert list(run_all(double, [], Workers(4))) == []
    assert list(run_all(double, [3], Workers(4))) == [(3, 6)]


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("processes", [2, 5])
@pytest.mark.parametrize("length", [3, 500])
def test_few_tasks_are_handed_out_at_a_time(processes: int, length: int) -> None:
    tasks = Counted(length)
    most = done = 0
    for _ in run_all(double, tasks, Workers(processes)):
        most = max(most, tasks.taken - done)
        done += 1
    assert done == length
    assert most <= 3 * processes
    assert most > processes or most == length  # one waits for each worker that is at work


def test_few_tasks_are_handed_out_to_processes_too() -> None:
    tasks = Counted(200)
    for done, _ in enumerate(run_all(double, tasks, Workers(2))):
        assert tasks.taken - done <= 6


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_task_arrives_whole(processes: int) -> None:
    with pytest.raises(SourceError, match="task 7 is bad") as caught:
        list(run_all(fail_at_seven, range(40), Workers(processes)))
    assert (caught.value.where, caught.value.remedy) == ("a place", "a remedy")
    assert no_process_is_left()


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(ClusterError, match="a worker process was killed"):
        list(run_all(die_at_seven, range(40), Workers(2)))
    assert no_process_is_left()


def test_who_stops_listening_leaves_no_process() -> None:
    tasks = Counted(1000)

    def listen() -> None:
        for task, _ in run_all(double, tasks, Workers(2)):
            if task == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        listen()
    assert no_process_is_left()
    assert tasks.taken < 30


def test_there_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Workers(0)


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers_module, "_CONNECT_S", 1)
    with pytest.raises(ClusterError, match="no Dask scheduler") as caught:
        list(run_all(double, range(3), Workers(scheduler="tcp://127.0.0.1:9")))
    assert caught.value.where == "tcp://127.0.0.1:9"


@pytest.mark.parametrize(
    "address",
    ["", "foo", "no address at all:1", "nonsense://node:1", "tcp://node", "tcp://:8786", "node:port", "a:1:2"],
)
def test_an_address_that_is_none_is_refused_before_anything_is_tried(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a Dask scheduler") as caught:
        Workers(scheduler=address)
    assert "tcp://node:8786" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "address", ["tcp://node17:8786", "tls://10.0.0.1:8786", "node.some-where.org:1", "tcp://[::1]:9"]
)
def test_addresses_of_schedulers_are_taken(address: str) -> None:
    assert Workers(scheduler=address).scheduler == address


@pytest.fixture
def too_many_bad(make_set: Callable[..., Path], tmp_path: Path) -> Path:
    return make_set(tmp_path / "source", 20, truncated=10)


def test_a_job_given_up_leaves_neither_processes_nor_unfinished_files(too_many_bad: Path, tmp_path: Path) -> None:

    out = tmp_path / "set"
    with pytest.raises(SourceError, match="are bad"):
        pack(
            "training-csv", too_many_bad, out, options=OPTIONS, supervision=Supervision(max_bad=0.0), workers=Workers(2)
        )
    assert no_process_is_left()
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
