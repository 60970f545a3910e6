"""Ranks as processes of their own: they end together, and none waits without end for one that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.stream.order import Order, steps_of
from tests.stream.one_rank import AT_STEP, SLOW_S, STALLED_AFTER_S

pytestmark = pytest.mark.alone

MakeSet = Callable[..., Path]
SIZES = (7, 7, 7, 7)
STEPS = steps_of(sum(SIZES), 2, 6)
START_S = 30.0
"""To import and meet, on a busy machine."""
ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """How one rank ended."""

    status: int
    said: dict[str, Any]
    errors: str
    seconds: float
    """From the start of all to the end of all."""


def run(folder: Path, *, world: int, fault: str = "nothing", by: int = 1) -> list[Ended]:
    """Run some ranks, one of them with a fault, to their end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.stream.one_rank", str(folder), str(rank), str(world), fault]
            if rank == by
            else [sys.executable, "-m", "tests.stream.one_rank", str(folder), str(rank), str(world), "nothing"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        spoken = [process.communicate(timeout=START_S + 20) for process in processes]
    finally:
        for process in processes:
            process.kill()
    seconds = time.monotonic() - started
    return [
        Ended(process.returncode, json.loads(out) if out else {}, errors, seconds)
        for process, (out, errors) in zip(processes, spoken, strict=True)
    ]


def assert_whole(ranks: list[Ended]) -> None:
    """All took every step, and together each sample twice, in the order of one rank."""
    assert [rank.status for rank in ranks] == [0] * len(ranks), [rank.errors for rank in ranks]
    assert [rank.said["steps"] for rank in ranks] == [STEPS] * len(ranks)
    share = 6 // len(ranks)
    parts = [[rank.said["seen"][share * step : share * (step + 1)] for step in range(STEPS)] for rank in ranks]
    together = [tuple(pair) for step in zip(*parts, strict=True) for pair in chain(*step)]
    epochs, indexes = Order(SIZES, 0, 1).indexes(range(6 * STEPS))
    assert together == list(zip(epochs.tolist(), indexes.tolist(), strict=True))
    assert sorted(together[: 2 * sum(SIZES)]) == [(epoch, index) for epoch in (0, 1) for index in range(sum(SIZES))]


def test_two_ranks_end_at_the_same_step(make_set: MakeSet, tmp_path: Path) -> None:
    make_set(splits={"train": SIZES})
    assert_whole(run(tmp_path, world=2))


def test_all_wait_for_a_slow_one_of_three_and_nothing_is_lost(make_set: MakeSet, tmp_path: Path) -> None:
    make_set(splits={"train": SIZES})
    ranks = run(tmp_path, world=3, fault="slow")
    assert_whole(ranks)
    assert ranks[0].seconds > SLOW_S * STEPS


@pytest.mark.parametrize("by", [pytest.param(0, marks=pytest.mark.campaign), 2])
def test_the_others_end_when_one_of_three_is_killed(make_set: MakeSet, tmp_path: Path, by: int) -> None:
    make_set(splits={"train": SIZES})
    ranks = run(tmp_path, world=3, fault="killed", by=by)
    killed = ranks.pop(by)
    assert killed.status == -signal.SIGKILL
    assert [rank.status for rank in ranks] == [1, 1]
    for rank in ranks:
        # They had the step's batch, and no answer.
        assert rank.said["steps"] == AT_STEP
        assert rank.said["error"].startswith("peer: ")
        assert rank.seconds < START_S


def test_storage_that_stalls_on_one_of_two_ends_both(make_set: MakeSet, tmp_path: Path) -> None:
    make_set(splits={"train": SIZES})
    stalled, other = run(tmp_path, world=2, fault="stalled", by=0)
    assert (stalled.status, other.status) == (1, 1)
    assert stalled.said["error"] == f"TrainingError: no batch was ready for {STALLED_AFTER_S:.0f} s"
    assert other.said["error"].startswith("peer: ")
    assert 0 < stalled.said["steps"] <= AT_STEP
    assert stalled.seconds < START_S
