"""Whatever the ranks, threads and batches made ahead: the same samples in each step, with the same crops and masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, product
from typing import Any

import pytest

from mrm_stream.stream.shard_set import ShardSet
from tests.stream.phantoms import NAMES, SEED, WINDOW, Seen, batch_maker, fingerprints, load, packed_phantoms

STEPS = 9
"""Of 24 samples: more than two epochs."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardSet]:
    opened = ShardSet.open(packed_phantoms(tmp_path_factory), "train")
    assert 80 < len(opened) < 24 * STEPS / 2
    yield opened
    opened.close()


def steps(
    shards: ShardSet, count: int, *, threads: int = 1, state: dict[str, Any] | None = None, **choices: Any
) -> Any:
    """What some steps of one rank are made of, and the state after them."""
    maker = batch_maker(shards, threads=threads)
    with load(shards, fingerprints(maker), **choices) as loader:
        if state is not None:
            loader.load_state_dict(state)
        seen = [next(loader) for _ in range(count)]
        state = json.loads(json.dumps(loader.state_dict()))
    maker.close()
    return seen, state


def all_ranks(shards: ShardSet, count: int, world: int, **choices: Any) -> Any:
    """Each step's samples over all ranks, in the order of the ranks; and the state, which is the same on each."""
    ranks = [steps(shards, count, rank=rank, world=world, **choices) for rank in range(world)]
    assert all(state == ranks[0][1] for _, state in ranks)
    return [list(chain(*parts)) for parts in zip(*(seen for seen, _ in ranks), strict=True)], ranks[0][1]


@pytest.fixture(scope="module")
def undisturbed(shards: ShardSet) -> list[list[Seen]]:
    """On one rank, one thread, one batch ahead."""
    seen: list[list[Seen]] = steps(shards, STEPS, prefetch=1)[0]
    return seen


def test_the_measure_sees_what_it_should(shards: ShardSet, undisturbed: list[list[Seen]]) -> None:
    """Each draw of a sample differs from epoch to epoch, and the order is the one that `Order` tells."""
    flat = [*chain(*undisturbed)]
    epochs, indexes = shards.order(SEED, WINDOW).indexes(range(len(flat)))
    told = [(epoch, shards.sample(index).key) for epoch, index in zip(epochs.tolist(), indexes.tolist(), strict=True)]
    assert [(epoch, key) for epoch, key, _ in flat] == told
    first = {key: digests for epoch, key, digests in flat if epoch == 0}
    second = {key: digests for epoch, key, digests in flat if epoch == 1}
    assert first.keys() == second.keys()
    assert len(first) == len(shards)
    for place, name in enumerate(NAMES):
        same = sum(first[key][place] == second[key][place] for key in first)
        # The tokens are the report's: they alone stay. A short report may have the same few hidden twice.
        assert same == len(first) if name == "token_ids_BL" else same <= len(first) // 10, name


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
def test_ranks_threads_and_prefetching_change_nothing(
    shards: ShardSet, undisturbed: list[list[Seen]], world: int
) -> None:
    for threads, prefetch in product((1, 2, 3, 4), (1, 2, 3)):
        seen, _ = all_ranks(shards, 5, world, threads=threads, prefetch=prefetch)
        assert seen == undisturbed[:5], (threads, prefetch)


@pytest.mark.parametrize("batch_size", [24, 30, "an epoch"])
def test_resuming_at_every_boundary_gives_the_same_tail(shards: ShardSet, batch_size: int | str) -> None:
    """From before the first batch to after the one that ends the second epoch."""
    size = len(shards) if isinstance(batch_size, str) else batch_size
    count = -(-2 * len(shards) // size)
    whole, _ = steps(shards, count + 1, batch_size=size)
    state: dict[str, Any] | None = None
    for boundary in range(count + 1):
        tail, _ = steps(shards, count + 1 - boundary, batch_size=size, state=state)
        assert tail == whole[boundary:], boundary
        again, state = steps(shards, 1, batch_size=size, state=state)
        assert again == whole[boundary : boundary + 1]


@pytest.mark.parametrize("hops", [(8, 3, 5), (5, 8, 3), (1, 6, 4, 2)])
def test_ranks_may_change_in_the_middle_of_an_epoch(shards: ShardSet, hops: tuple[int, ...]) -> None:
    """The batch follows the ranks, so that every hop lies within an epoch; what each position gets stays."""
    flat = [*chain(*steps(shards, 14)[0])]
    position, state = 0, None
    for world in hops:
        size = 24 if world != 5 else 25
        seen, state = all_ranks(shards, 2, world, batch_size=size, threads=2, state=state)
        assert [*chain(*seen)] == flat[position : position + 2 * size], (world, position)
        position += 2 * size
        assert state["position"] == position
        assert position % len(shards)


def test_hops_with_one_batch_size_keep_each_step(shards: ShardSet) -> None:
    """120 samples a step, which 8, 3 and 5 ranks can share."""
    whole, _ = steps(shards, 5, batch_size=120)
    state, seen = None, []
    for world, count in ((8, 1), (3, 2), (5, 2)):
        part, state = all_ranks(shards, count, world, batch_size=120, state=state)
        seen += part
    assert seen == whole


def test_more_ranks_than_samples(tmp_path_factory: pytest.TempPathFactory) -> None:
    few = ShardSet.open(packed_phantoms(tmp_path_factory), "validate")
    assert len(few) < 8
    expected, _ = steps(few, 3, batch_size=24)
    assert all_ranks(few, 3, 8, batch_size=24)[0] == expected
