"""The loader: the known order, from any boundary, on any number of ranks, whatever is damaged."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrm_stream.errors import CheckpointError, DamagedSamplesError, TrainingError
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.order import EPOCHS, Order
from mrm_stream.stream.shard_set import ShardSet

MakeSet = Callable[..., Path]
Pairs = list[tuple[int, int]]


def pairs_of(draws: Sequence[Draw]) -> Pairs:
    """Epoch and index of each draw, once each sample is seen to be the one of its index."""
    assert all(bytes(draw.sample.jpeg) == f"jpeg {draw.sample.index}".encode() for draw in draws)
    return [(draw.epoch, draw.sample.index) for draw in draws]


def damaging(bad: set[int]) -> Callable[[Sequence[Draw]], Pairs]:
    """A transform that cannot take these samples."""

    def transform(draws: Sequence[Draw]) -> Pairs:
        reasons = {slot: "planted damage" for slot, draw in enumerate(draws) if draw.sample.index in bad}
        if reasons:
            raise DamagedSamplesError(reasons)
        return pairs_of(draws)

    return transform


def load(shards: ShardSet, transform: Callable[[Sequence[Draw]], Pairs] = pairs_of, **choices: Any) -> Loader[Pairs]:
    which = {name: choices.pop(name) for name in ("rank", "world") if name in choices}
    defaults = {"seed": 3, "batch_size": 4, "window": 2, "prefetch": 2, "max_bad_samples": 100}
    return Loader(shards, transform, LoaderOptions(**{**defaults, **choices}), **which)


def steps(loader: Loader[Pairs], count: int) -> list[Pairs]:
    return [next(loader) for _ in range(count)]


def expected(start: int, stop: int, *, seed: int = 3, window: int = 2) -> Pairs:
    """Epoch and index at each position of the small set."""
    epochs, indexes = Order([4, 1, 6], seed, window).indexes(range(start, stop))
    return list(zip(epochs.tolist(), indexes.tolist(), strict=True))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mrm-stream-prefetch"]


@pytest.fixture
def shards(small_set: Path) -> ShardSet:
    return ShardSet.open(small_set, "train")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 10, 11, 12, 25])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_resuming_at_every_boundary_continues_the_order(shards: ShardSet, batch_size: int, prefetch: int) -> None:
    # Over two epochs of 11, so at the boundaries beside both edges of an epoch, and at the edges where they meet.
    count = 24 // batch_size + 2
    whole = [expected(step * batch_size, (step + 1) * batch_size) for step in range(count)]
    with load(shards, batch_size=batch_size, prefetch=prefetch) as loader:
        states = [json.dumps(loader.state_dict())]
        for step in range(count):
            assert next(loader) == whole[step]
            states.append(json.dumps(loader.state_dict()))
    for step, state in enumerate(states):
        with load(shards, batch_size=batch_size, prefetch=prefetch) as resumed:
            resumed.load_state_dict(json.loads(state))
            assert json.dumps(resumed.state_dict()) == state
            assert steps(resumed, count - step) == whole[step:]
            assert json.dumps(resumed.state_dict()) == states[-1]


@pytest.mark.parametrize("worlds", [(8, 3, 6), (1, 2, 3), (6, 4, 1), (3, 8, 2)])
def test_ranks_may_change_between_runs(shards: ShardSet, worlds: tuple[int, ...]) -> None:
    """24 samples a step, three steps on each number of ranks: the same steps as on one rank."""
    state: dict[str, Any] | None = None
    seen = []
    for world in worlds:
        per_rank, states = [], []
        for rank in range(world):
            with load(shards, batch_size=24, rank=rank, world=world) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                per_rank.append(steps(loader, 3))
                states.append(loader.state_dict())
        assert all(other == states[0] for other in states)
        state = states[0]
        seen += [[pair for rank in per_rank for pair in rank[step]] for step in range(3)]
    assert seen == [expected(step * 24, (step + 1) * 24) for step in range(9)]


def test_batch_size_may_change_between_runs(shards: ShardSet) -> None:
    position, state = 0, None
    for batch_size in (5, 12, 1, 7):
        with load(shards, batch_size=batch_size) as loader:
            if state is not None:
                loader.load_state_dict(state)
            for _ in range(3):
                assert next(loader) == expected(position, position + batch_size)
                position += batch_size
            state = loader.state_dict()
            assert state["position"] == position


def test_seed_and_window_change_the_order(shards: ShardSet) -> None:
    for seed, window in [(3, 2), (4, 2), (3, 1)]:
        with load(shards, seed=seed, window=window) as loader:
            assert list(chain(*steps(loader, 6))) == expected(0, 24, seed=seed, window=window)
    assert len({tuple(expected(0, 24, seed=seed)) for seed in range(5)}) == 5


def test_state_tells_what_was_handed_out_not_what_was_made_ahead(shards: ShardSet) -> None:
    made = 0
    # One bad sample in the third batch, one in the fourth: none is the other's replacement.
    bad = {expected(8, 12)[0][1], expected(12, 16)[1][1]}
    assert max(bad) - min(bad) > 1

    def transform(draws: Sequence[Draw]) -> Pairs:
        nonlocal made
        pairs = damaging(bad)(draws)
        made += 1
        return pairs

    states = []
    for prefetch in (1, 9):
        made = 0
        with load(shards, transform, prefetch=prefetch) as loader:
            mine = [loader.state_dict()]
            for step in range(5):
                next(loader)
                end = time.monotonic() + 5
                while made < step + 1 + prefetch and time.monotonic() < end:
                    time.sleep(0.001)
                mine.append(loader.state_dict())
        states.append(mine)
    assert states[0] == states[1]
    assert [state["position"] for state in states[0]] == [0, 4, 8, 12, 16, 20]
    for step, state in enumerate(states[0]):
        assert set(state["bad_samples"]) == bad & {index for _, index in expected(0, 4 * step)}


def next_good(index: int, bad: set[int], samples: int) -> int:
    while index in bad:
        index = (index + 1) % samples
    return index


@pytest.mark.parametrize("read", [set(), {4}, {9, 10}])
@pytest.mark.parametrize("decoded", [set(), {0}, {3, 4, 5}, {0, 1, 2, 3, 4, 5, 7, 8, 9, 10}])
def test_bad_samples_are_replaced_by_rule(make_set: MakeSet, read: set[int], decoded: set[int]) -> None:
    """Whether found when reading or decoding, by which rank, before or after a resumption."""
    root = make_set(splits={"train": [4, 1, 6]}, tokens={f"train-{index}": b"" for index in read})
    shards = ShardSet.open(root, "train")
    bad = read | decoded
    whole = [
        [(epoch, next_good(index, bad, 11)) for epoch, index in expected(step * 6, (step + 1) * 6)] for step in range(6)
    ]
    for world in (1, 2, 3):
        per_rank = []
        for rank in range(world):
            with load(shards, damaging(decoded), batch_size=6, rank=rank, world=world) as loader:
                per_rank.append(steps(loader, 6))
        assert [[pair for rank in per_rank for pair in rank[step]] for step in range(6)] == whole
    for step in range(6):
        with load(shards, damaging(decoded), batch_size=6) as loader:
            steps(loader, step)
            state = json.loads(json.dumps(loader.state_dict()))
        with load(shards, damaging(decoded), batch_size=6) as loader:
            loader.load_state_dict(state)
            assert steps(loader, 6 - step) == whole[step:]
            assert set(loader.bad_samples) == bad


def test_a_small_set_with_a_bad_sample_fills_large_batches(make_set: MakeSet, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet.open(make_set(splits={"train": [3]}), "train")
    with load(shards, damaging({1}), batch_size=32) as loader:
        for batch in steps(loader, 3):
            assert {index for _, index in batch} == {0, 2}
        assert loader.bad_samples == [1]
    # The sample fills many slots of the first batch.
    assert len(caplog.records) == 1


def test_each_bad_sample_is_logged_once(make_set: MakeSet, caplog: pytest.LogCaptureFixture) -> None:
    root = make_set(splits={"train": [4, 1, 6]}, tokens={"train-4": b""})
    with caplog.at_level(logging.WARNING), load(ShardSet.open(root, "train"), damaging({8})) as loader:
        steps(loader, 20)
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 2
    assert "train-00001.tar: train-4" in messages[0]
    assert "absent" in messages[0]
    assert "train-00002.tar: train-8" in messages[1]
    assert "planted damage" in messages[1]


def test_more_bad_samples_than_allowed_end_the_run(shards: ShardSet) -> None:
    bad = {1, 4, 5, 8, 10}
    with load(shards, damaging(bad), max_bad_samples=5) as loader:
        steps(loader, 6)
        assert set(loader.bad_samples) == bad
    with load(shards, damaging(bad), max_bad_samples=4, prefetch=1) as loader:
        with pytest.raises(TrainingError, match=r"5 of 11 samples are bad") as refusal:
            steps(loader, 6)
        assert str(refusal.value).count(".tar: train-") == 3
        assert "max_bad_samples" in str(refusal.value.remedy)
        with pytest.raises(StopIteration):
            next(loader)


def test_a_set_with_no_good_sample_ends_the_run(shards: ShardSet) -> None:
    loader = load(shards, damaging(set(range(11))), max_bad_samples=1000)
    with pytest.raises(TrainingError, match="11 of 11"):
        next(loader)


def test_resuming_does_not_reset_what_is_allowed(shards: ShardSet) -> None:
    first = {index for _, index in expected(0, 4)}
    later = next(index for _, index in expected(4, 8) if index not in first)
    bad = {min(first), later}
    with load(shards, damaging(bad), max_bad_samples=1, prefetch=1) as loader:
        next(loader)
        state = loader.state_dict()
        assert state["bad_samples"] == [min(first)]
    with load(shards, damaging(bad), max_bad_samples=1) as loader:
        loader.load_state_dict(state)
        # A run that is stopped before its first batch saves what it was resumed from.
        assert loader.state_dict() == state
        with pytest.raises(TrainingError, match="2 of 11"):
            steps(loader, 3)


def test_an_error_in_the_transform_is_raised_in_its_place_and_once(shards: ShardSet) -> None:
    calls = 0

    def transform(draws: Sequence[Draw]) -> Pairs:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("planted")
        return pairs_of(draws)

    with load(shards, transform, prefetch=5) as loader:
        assert list(chain(*steps(loader, 2))) == expected(0, 8)
        with pytest.raises(ZeroDivisionError, match="planted"):
            next(loader)
        assert loader.state_dict()["position"] == 8
        with pytest.raises(StopIteration):
            next(loader)


def test_closing_early_or_twice_or_unused(shards: ShardSet) -> None:
    unused = load(shards)
    unused.close()
    with pytest.raises(StopIteration):
        next(unused)
    full = load(shards, prefetch=3)
    next(full)
    time.sleep(0.05)
    started = time.monotonic()
    full.close()
    full.close()
    assert time.monotonic() - started < 1
    assert threads() == []
    assert full.state_dict()["position"] == 4


def test_a_forgotten_loader_ends_its_thread(shards: ShardSet) -> None:
    loader = load(shards)
    next(loader)
    assert len(threads()) == 1
    forgotten = weakref.ref(loader)
    del loader
    gc.collect()
    assert forgotten() is None
    assert threads() == []


def test_waiting_is_counted(shards: ShardSet) -> None:
    def slow(draws: Sequence[Draw]) -> Pairs:
        time.sleep(0.05)
        return pairs_of(draws)

    with load(shards, slow) as loader:
        assert loader.seconds_waited == 0
        steps(loader, 4)
        assert 0.1 < loader.seconds_waited < 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"seed": 4}, "seed 4"),
        ({"window": 3}, "window 3"),
        ({"fingerprint": "another"}, "fingerprint"),
        ({"position": -1}, "position -1"),
        ({"position": 4.0}, "position 4.0"),
        ({"position": True}, "position True"),
        ({"position": "4"}, "position '4'"),
        ({"position": 11 * EPOCHS}, "position"),
        ({"bad_samples": [11]}, "bad samples"),
        ({"bad_samples": 3}, "bad samples"),
        ({"bad_samples": list(range(11))}, "all samples"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(shards: ShardSet, change: dict[str, Any], reason: str) -> None:
    loader = load(shards)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        loader.load_state_dict({**loader.state_dict(), **change})
    assert refusal.value.remedy
    assert loader.state_dict()["position"] == 0


@pytest.mark.parametrize("name", ["version", "seed", "window", "fingerprint", "position", "bad_samples"])
def test_a_state_that_lacks_something_is_refused(shards: ShardSet, name: str) -> None:
    loader = load(shards)
    state = loader.state_dict()
    del state[name]
    with pytest.raises(CheckpointError):
        loader.load_state_dict(state)


def test_the_state_of_another_split_is_refused(small_set: Path, shards: ShardSet) -> None:
    with pytest.raises(CheckpointError, match="fingerprint"):
        load(shards).load_state_dict(load(ShardSet.open(small_set, "validate")).state_dict())


def test_the_last_position_can_be_resumed(shards: ShardSet) -> None:
    loader = load(shards)
    loader.load_state_dict({**loader.state_dict(), "position": 11 * EPOCHS - 4})
    assert next(loader) == expected(11 * EPOCHS - 4, 11 * EPOCHS)
    loader.close()


def test_a_batch_that_ranks_cannot_share_is_refused(shards: ShardSet) -> None:
    with pytest.raises(AssertionError):
        load(shards, batch_size=4, world=3)


def test_state_is_plain_json(shards: ShardSet) -> None:
    with load(shards, damaging({2})) as loader:
        steps(loader, 4)
        state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert not any(isinstance(value, np.generic) for value in [*state.values(), *state["bad_samples"]])
