"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Shows how far the work is."""

    def __call__(self, done: int, total: int | None, note: str, kept: int = 0) -> None:
        """Show it.

        Args:
            done: How many are done, by this run or an earlier one.
            total: How many there are in all; None: not known yet.
            note: Text to add.
            kept: How many of those done an earlier run has done; they do not count for this one's speed.
        """


@contextmanager
def progress(what: str, unit: str) -> Iterator[Advance]:
    """Show the progress of one piece of work while the block lasts.

    Args:
        what: What is being done, such as "packing".
        unit: What is counted, such as "records".

    Yields:
        A function to call when some of it is done.
    """
    if sys.stderr.isatty():
        with _bar(what, unit) as advance:
            yield advance
    else:
        yield _lines(what, unit)


class _Pace:
    """How fast this run works; the clock starts when it has found what an earlier run left."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def tell(self, done: int, total: int | None, kept: int) -> tuple[float, float | None]:
        """Return how many are done in a second, and the seconds that the rest will take, or None if unknown."""
        now = time.perf_counter()
        if 0 < kept == done:
            self._start = now
            return 0.0, None
        rate = (done - kept) / max(now - self._start, 1e-9)
        return rate, (total - done) / rate if total is not None and rate else None


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[pace]}} {{task.fields[note]}}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=None, note="", pace="", left="")
        clock = _Pace()

        def advance(done: int, total: int | None, note: str, kept: int = 0) -> None:
            rate, seconds = clock.tell(done, total, kept)
            # Rich's own column of the time left would count what was kept as done in an instant.
            left = "" if seconds is None else f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:02.0f}"
            shown.update(task, completed=done, total=total, note=note, pace=f"{rate:.0f}/s", left=left)

        yield advance


def _lines(what: str, unit: str) -> Advance:
    clock = _Pace()
    last = time.perf_counter()

    def advance(done: int, total: int | None, note: str, kept: int = 0) -> None:
        nonlocal last
        rate, seconds = clock.tell(done, total, kept)
        now = time.perf_counter()
        if done != total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        left = f", {seconds:.0f} s left" if seconds else ""
        of = f"/{total}" if total is not None else ""
        log.info("%s: %d%s %s, %.1f/s%s%s", what, done, of, unit, rate, left, f", {note}" if note else "")

    return advance
