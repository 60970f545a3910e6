"""Times passes over a set of encoded samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from mrm_stream.bench.data_result import Run
from mrm_stream.bench.machine import cpu_seconds, peak_bytes

_LEAST_SECONDS = 0.5
"""That are timed: whole passes, until they have taken as long."""

Pass = Callable[[int], Iterator[int]]
"""Epoch to the sizes of the JPEGs that are handed on in it."""


def time_passes(name: str, one_pass: Pass, count: int) -> Run:
    """Measure one contender in this process, after a first pass that opens and checks everything.

    Args:
        name: Of the contender.
        one_pass: What it does.
        count: Samples of a pass.
    """
    sizes = _tally(one_pass(0), count)
    cpu_start, start, passes = cpu_seconds(), time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - start < _LEAST_SECONDS:
        passes += 1
        assert _tally(one_pass(passes), count) == sizes, f"{name} handed on other bytes in another pass"
    seconds = time.perf_counter() - start
    samples = passes * count
    return Run(samples, seconds, 1000 * (cpu_seconds() - cpu_start) / samples, peak_bytes())


def _tally(sizes: Iterator[int], count: int) -> int:
    found = total = 0
    for size in sizes:
        found += 1
        total += size
    assert found == count, f"a pass had {found} of {count} samples"
    return total
