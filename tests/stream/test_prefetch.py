"""Running ahead: in order, by a bounded number, and never a hang or a thread left over."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from mrm_stream.errors import TrainingError
from mrm_stream.stream import prefetch
from mrm_stream.stream.prefetch import Prefetcher


class Counting(Iterator[int]):
    """0, 1, 2, ..., and how many were taken."""

    def __init__(self, end: int | None = None) -> None:
        self.taken = 0
        self.end = end

    def __next__(self) -> int:
        if self.taken == self.end:
            raise StopIteration
        self.taken += 1
        return self.taken - 1


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mrm-stream-prefetch"]


def wait_until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_items_come_in_order_and_end(ahead: int) -> None:
    items = Prefetcher(Counting(20), ahead)
    assert list(items) == list(range(20))
    assert list(items) == []
    assert threads() == []


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_runs_ahead_by_so_many_and_no_more(ahead: int) -> None:
    source = Counting()
    items = Prefetcher(source, ahead)
    wait_until(lambda: source.taken == ahead)
    time.sleep(0.05)
    assert source.taken == ahead
    assert next(items) == 0
    wait_until(lambda: source.taken == ahead + 1)
    time.sleep(0.05)
    assert source.taken == ahead + 1
    items.close()


def test_an_error_is_raised_in_its_place_and_once() -> None:
    def source() -> Iterator[int]:
        yield 0
        yield 1
        raise ZeroDivisionError("planted")

    items = Prefetcher(source(), 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="planted"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)
    assert threads() == []


def test_closing_while_full_or_starved_does_not_hang() -> None:
    source = Counting()
    items = Prefetcher(source, 2)
    wait_until(lambda: source.taken == 2)
    started = time.monotonic()
    items.close()
    items.close()
    assert time.monotonic() - started < 1
    assert threads() == []
    with pytest.raises(StopIteration):
        next(items)


def test_closing_lets_go_of_what_was_made() -> None:
    class Held:
        pass

    held = [Held() for _ in range(3)]
    kept = [weakref.ref(item) for item in held]

    def source() -> Iterator[Held]:
        while held:
            yield held.pop(0)

    items = Prefetcher(source(), 3)
    wait_until(lambda: not held)
    items.close()
    assert [ref() for ref in kept] == [None, None, None]


def test_closing_waits_for_the_item_in_the_making() -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        time.sleep(0.2)
        ended.set()
        yield 0

    items = Prefetcher(source(), 1)
    items.close()
    assert ended.is_set()
    assert threads() == []


def test_a_waiting_consumer_wakes_when_another_thread_closes() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        release.wait(5)
        yield 0

    items = Prefetcher(source(), 1)
    got: list[list[int]] = []
    consumer = threading.Thread(target=lambda: got.append(list(items)))
    consumer.start()
    closer = threading.Thread(target=items.close)
    closer.start()
    release.set()
    consumer.join(5)
    closer.join(5)
    assert not consumer.is_alive()
    assert got in ([[]], [[0]])


def test_a_forgotten_one_ends_its_thread() -> None:
    source = Counting()
    items = Prefetcher(source, 2)
    next(items)
    del items
    gc.collect()
    assert threads() == []


def test_one_forgotten_in_its_own_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    box: list[Prefetcher[int]] = []
    go = threading.Event()

    def source() -> Iterator[int]:
        go.wait(5)
        box.clear()  # the last reference
        yield 0

    box.append(Prefetcher(source(), 1))
    go.set()
    wait_until(lambda: threads() == [])
    assert complaints == []


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(prefetch, "JOIN_S", 0.1)
    release = threading.Event()

    def source() -> Iterator[int]:
        release.wait(10)
        yield 0

    items = Prefetcher(source(), 1)
    got: list[list[int]] = []
    consumer = threading.Thread(target=lambda: got.append(list(items)))
    consumer.start()
    time.sleep(0.05)
    items.close()
    assert "has not ended" in caplog.text
    consumer.join(5)
    assert got == [[]]
    release.set()
    wait_until(lambda: threads() == [])


def test_stalled_items_are_an_error_in_bounded_time() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        release.wait(5)
        yield 0

    items = Prefetcher(source(), 1, stalled_after=0.05)
    threading.Timer(0.2, release.set).start()
    with pytest.raises(TrainingError, match="no batch"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_waiting_is_counted() -> None:
    def source() -> Iterator[int]:
        while True:
            time.sleep(0.05)
            yield 0

    items = Prefetcher(source(), 1)
    for _ in range(4):
        next(items)
    assert 0.15 < items.seconds_waited < 2
    items.close()

    ready = Counting()
    items = Prefetcher(ready, 1)
    wait_until(lambda: ready.taken == 1)
    next(items)
    assert items.seconds_waited < 0.05
    items.close()


@pytest.mark.parametrize("ending", ["pass", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_the_interpreter_exits_with_one_open(ending: str) -> None:
    code = (
        "import itertools, sys\n"
        "from mrm_stream.stream.prefetch import Prefetcher\n"
        "items = Prefetcher(itertools.count(), 2)\n"
        "next(items)\n"
        f"{ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == {"pass": 0, "sys.exit(3)": 3}.get(ending, done.returncode)
    assert "Fatal" not in done.stderr


def test_an_interrupted_wait_loses_nothing() -> None:
    code = (
        "import signal, time\n"
        "from mrm_stream.stream.prefetch import Prefetcher\n"
        "def source():\n"
        "    for number in range(3):\n"
        "        time.sleep(0.5)\n"
        "        yield number\n"
        "items = Prefetcher(source(), 1)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "try:\n"
        "    next(items)\n"
        "except KeyboardInterrupt:\n"
        "    assert list(items) == [0, 1, 2]\n"
        "    raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 7, done.stderr
