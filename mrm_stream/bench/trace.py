"""A Chrome trace of some batches: which thread reads, decodes, makes pairs, masks, and waits, and when.

The loader knows nothing of it: the functions that do the work are wrapped while the trace is taken.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mrm_stream.bench.data_pairs import batch_maker, load
from mrm_stream.bench.data_sets import SPLIT
from mrm_stream.decode import cpu
from mrm_stream.decode.views import ViewMaker
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.tasks import pretrain_batches as batches

P = ParamSpec("P")
R = TypeVar("R")

READ, DECODE, PAIR, MASK, WAIT = "read", "decode", "pair", "mask", "wait"
_WRAPPED: tuple[tuple[Any, str, str], ...] = (
    (ShardSet, "sample", READ),
    (cpu, "_decoded", DECODE),
    (ViewMaker, "_fill", PAIR),
    (batches, "pad_reports", MASK),
    (batches, "mask_tokens", MASK),
    (batches, "patch_noise", MASK),
)
"""What does the work, by its owner and its name there, and what it is called in the trace."""


class Tracer:
    """Collects what each thread did, and when; safe to share between threads."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._events: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time that the block takes, under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end, thread = time.perf_counter(), threading.current_thread()
            ident = threading.get_native_id()
            self._names[ident] = thread.name
            event = {"name": name, "ph": "X", "pid": os.getpid(), "tid": ident}
            self._events.append(event | {"ts": 1e6 * (start - self._start), "dur": 1e6 * (end - start)})

    def wrapped(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, with each call of it recorded."""

        @wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.span(name):
                return function(*args, **kwargs)

        return traced

    def to_json(self) -> dict[str, Any]:
        """Return the trace as chrome://tracing and Perfetto read it; times are in microseconds."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": ident, "args": {"name": name}}
            for ident, name in self._names.items()
        ]
        return {"traceEvents": names + self._events, "displayTimeUnit": "ms"}


@contextmanager
def tracing(tracer: Tracer) -> Iterator[None]:
    """Record what the pipeline does while the block lasts."""
    with ExitStack() as undo:
        for owner, attribute, name in _WRAPPED:
            function = getattr(owner, attribute)
            setattr(owner, attribute, tracer.wrapped(name, function))
            undo.callback(setattr, owner, attribute, function)
        yield


def write_trace(file: Path, directory: Path, *, batch: int, count: int, threads: int) -> None:
    """Make some batches of a packed set, and write their trace.

    Args:
        file: To write.
        directory: Of the set.
        batch: Samples of a batch.
        count: Batches.
        threads: That decode.

    Raises:
        StorageError: The file cannot be written.
    """
    tracer = Tracer()
    shards = ShardSet.open(directory, SPLIT)
    with tracing(tracer):
        maker = batch_maker(shards, threads)
        with load(shards, maker, batch) as loader:
            waited = islice(iter(loader), count)
            while True:
                with tracer.span(WAIT):
                    made = next(waited, None)
                if made is None:
                    break
        maker.close()
    publish_bytes(file, json.dumps(tracer.to_json()).encode())
