"""How long work shows where it is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show the progress of one piece of work while the block lasts.

    Args:
        what: What is being done, such as "packing".
        unit: What is counted, such as "records".

    Yields:
        A function to call with how many are done, how many there are in all (None: not known yet), and a note.
    """
    if sys.stderr.isatty():
        with _bar(what, unit) as advance:
            yield advance
    else:
        yield _lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[[int, int | None, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}} {{task.fields[note]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=None, note="", rate="")
        start = time.perf_counter()

        def advance(done: int, total: int | None, note: str) -> None:
            rate = f"{done / (time.perf_counter() - start):.0f}/s"
            shown.update(task, completed=done, total=total, note=note, rate=rate)

        yield advance


def _lines(what: str, unit: str) -> Callable[[int, int | None, str], None]:
    start = time.perf_counter()
    last = start

    def advance(done: int, total: int | None, note: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if done != total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / max(now - start, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if total is not None and done and done < total else ""
        of = f"/{total}" if total is not None else ""
        log.info("%s: %d%s %s, %.1f/s%s%s", what, done, of, unit, rate, left, f", {note}" if note else "")

    return advance
