"""A mixture of sets through the loader: shares, identity, one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mrm_stream.config.pretrain import PretrainDataConfig
from mrm_stream.errors import CheckpointError, DamagedSamplesError, ShardError, StorageError
from mrm_stream.stream.joined import JoinedSets
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.opening import open_data
from mrm_stream.stream.shard_set import ShardSet
from tests.stream.conftest import MakeSet


def keys(draws: Sequence[Draw]) -> list[tuple[str, int]]:
    return [(draw.sample.key, draw.sample.index) for draw in draws]


OPTIONS = LoaderOptions(seed=3, batch_size=8, window=2, prefetch=1, max_bad_samples=5)


def loader(sets: JoinedSets) -> Loader[list[tuple[str, int]]]:
    return Loader(sets, keys, OPTIONS)


@pytest.fixture
def roots(make_set: MakeSet) -> tuple[Path, Path]:
    return make_set("a", splits={"train": [4, 3]}), make_set("b", splits={"train": [5]})


def joined(roots: tuple[Path, Path], shares: tuple[float, float] = (3.0, 1.0), cache: Path | None = None) -> JoinedSets:
    return JoinedSets([ShardSet.open(root, "train", (cache, 10**9) if cache else None) for root in roots], shares)


def test_samples_come_in_their_shares_under_indexes_of_their_own(roots: tuple[Path, Path]) -> None:
    sets = joined(roots)
    assert len(sets) == 12
    with loader(sets) as batches:
        seen = [item for _, batch in zip(range(512), batches, strict=False) for item in batch]
    second = [key for key, index in seen if index >= 7]
    assert len(second) == len(seen) // 4
    assert {index for _, index in seen} == set(range(12))
    assert all(sets.sample(index).key == key for key, index in seen[:50])
    assert "b/train-00000.tar: train-0" in sets.location(7)


def test_the_first_set_has_a_share_of_one_whatever_the_others_have(roots: tuple[Path, Path]) -> None:
    data = PretrainDataConfig(shards=str(roots[0]), mixture={str(roots[1]): 0.25})
    sets = open_data(data)
    assert isinstance(sets, JoinedSets)
    with loader(sets) as batches:
        seen = [index for _, batch in zip(range(512), batches, strict=False) for _, index in batch]
    # 4,096 / 5, to within a sample of the block.
    assert abs(sum(index >= 7 for index in seen) - 4096 / 5) <= 1


def test_a_resumed_mixture_goes_on_and_another_is_refused(roots: tuple[Path, Path]) -> None:
    with loader(joined(roots)) as batches:
        first = [next(batches) for _ in range(5)]
        state = batches.state_dict()
        rest = [next(batches) for _ in range(5)]
    with loader(joined(roots)) as again:
        again.load_state_dict(state)
        assert [next(again) for _ in range(5)] == rest != first
    for other in (joined(roots, (2.0, 1.0)), joined((roots[1], roots[0]))):
        with loader(other) as refusing, pytest.raises(CheckpointError, match="fingerprint"):
            refusing.load_state_dict(state)


def test_bad_samples_of_any_set_go_into_the_state_and_are_replaced_by_the_next_of_all(roots: tuple[Path, Path]) -> None:
    bad = {8, 11}

    def transform(draws: Sequence[Draw]) -> list[tuple[str, int]]:
        if reasons := {slot: "planted" for slot, draw in enumerate(draws) if draw.sample.index in bad}:
            raise DamagedSamplesError(reasons)
        return keys(draws)

    def load() -> Loader[list[tuple[str, int]]]:
        return Loader(joined(roots), transform, replace(OPTIONS, max_bad_samples=len(bad)))

    epochs = 8
    with load() as batches:
        seen = [index for _ in range(12 * epochs // 8) for _, index in next(batches)]
        state = batches.state_dict()
        rest = next(batches)
    _, order = joined(roots).order(3, 2).indexes(range(12 * epochs))
    assert seen == [{8: 9, 11: 0}.get(index, index) for index in order.tolist()]
    assert set(state["bad_samples"]) == bad
    with load() as again:
        again.load_state_dict(state)
        assert next(again) == rest


def test_a_cached_mixture_is_the_same(roots: tuple[Path, Path], tmp_path: Path) -> None:
    with loader(joined(roots)) as direct, loader(joined(roots, cache=tmp_path / "cache")) as cached:
        assert [next(direct) for _ in range(20)] == [next(cached) for _ in range(20)]
    sets = joined(roots, cache=tmp_path / "cache")
    with loader(sets) as batches:
        next(batches)
    assert sets.cache_counts().fetched == 0
    assert sets.cache_counts().hits > 0
    sets.close()


def test_a_set_that_wants_hints_has_them_whatever_the_other_wants(roots: tuple[Path, Path], tmp_path: Path) -> None:
    """Or the shards of a cache were fetched when they are read, once those of a local set have all been compared."""
    for cached in (0, 1):
        local, remote = (
            ShardSet.open(roots[1 - cached], "train"),
            ShardSet.open(roots[cached], "train", (tmp_path / f"cache-{cached}", 10**9)),
        )
        for index in range(len(local)):
            local.sample(index)
        assert not local.wants_hints
        sets = JoinedSets([remote, local] if cached == 0 else [local, remote], (1.0, 1.0))
        assert sets.wants_hints
        sets.close()
    assert not JoinedSets([local, local], (1.0, 1.0)).wants_hints


def test_every_set_s_cache_is_counted_and_closed(roots: tuple[Path, Path], tmp_path: Path) -> None:
    sets = joined(roots, cache=tmp_path / "cache")
    for index in range(len(sets)):
        sets.sample(index)
    counts = sets.cache_counts()
    assert (counts.fetched, counts.hits, counts.evicted) == (3, 0, 0)
    assert counts.bytes_fetched == sum(tar.stat().st_size for root in roots for tar in root.glob("*.tar"))
    sets.close()
    for index in (0, 7):
        with pytest.raises(StorageError, match="the cache was closed"):
            sets.sample(index)


def test_the_sets_of_a_mixture_share_the_room_of_the_cache(make_set: MakeSet, tmp_path: Path) -> None:
    roots = [make_set(name, splits={"train": [2] * 4}, seed=seed) for seed, name in enumerate("ab")]
    room = 4 * max(tar.stat().st_size for root in roots for tar in root.glob("*.tar"))
    data = PretrainDataConfig(
        shards=str(roots[0]), mixture={str(roots[1]): 1.0}, cache=str(tmp_path / "cache"), cache_gb=room / 1e9
    )
    sets = open_data(data)
    for shard in range(8):
        sets.hint([shard])
        sets.sample(2 * shard)
    sets.hint([])
    assert sum(tar.stat().st_size for tar in (tmp_path / "cache").rglob("*.tar")) == room
    sets.close()


def test_a_cache_of_any_set_is_one(roots: tuple[Path, Path], tmp_path: Path) -> None:
    local = ShardSet.open(roots[0], "train")
    cached = ShardSet.open(roots[1], "train", (tmp_path / "cache", 10**9))
    for sets in ([local, cached], [cached, local]):
        assert JoinedSets(sets, (1.0, 1.0)).is_cached
    assert not joined(roots).is_cached
    cached.close()


class Recording(ShardSet):
    """Notes what is hinted, as if there were a cache."""

    hinted: list[set[int]]

    @property
    def wants_hints(self) -> bool:
        return True

    def hint(self, shards: Sequence[int]) -> None:
        self.hinted.append(set(shards))


def recording(root: Path, batch_size: int, rank: int, world: int) -> tuple[Recording, Loader[list[tuple[str, int]]]]:
    shards = Recording.open(root, "train")
    assert isinstance(shards, Recording)
    shards.hinted = []
    options = LoaderOptions(seed=1, batch_size=batch_size, window=2, prefetch=1, max_bad_samples=0)
    return shards, Loader(shards, keys, options, rank=rank, world=world)


def test_each_set_is_told_of_its_own_shards(roots: tuple[Path, Path]) -> None:
    first, second = (recording(root, 8, 0, 1)[0] for root in roots)
    sets = JoinedSets([first, second], (1.0, 1.0))
    for shards in ([0, 1, 2], [0, 2], [1]):
        sets.hint(shards)
    assert (first.hinted, second.hinted) == ([{0, 1}, {0}, {1}], [{0}, {0}, set()])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_rank_hints_at_what_it_reads_and_the_window_after(make_set: MakeSet, world: int) -> None:
    root = make_set(splits={"train": [6] * 12})
    for rank in range(world):
        shards, batches = recording(root, 8, rank, world)
        made = batches._batches.following(0)
        read = [{index // 6 for _, index in next(made).batch} for _ in range(30)]
        steps = [found for found in shards.hinted if found]
        assert all(any(found <= told for told in steps) for found in read)
        assert max(map(len, steps)) <= 6
        assert min(map(len, steps)) >= 4


def test_ranks_far_apart_hint_at_their_own_windows(make_set: MakeSet) -> None:
    root = make_set(splits={"train": [4] * 32})
    told = []
    for rank in (0, 7):
        shards, batches = recording(root, 64, rank, 8)
        batches._batches._hint(0)
        told.append(shards.hinted[0])
    assert all(len(shards) <= 6 for shards in told)
    assert told[0] != told[1]


def test_sets_with_other_tokenizers_are_refused(make_set: MakeSet, roots: tuple[Path, Path]) -> None:
    import dataclasses

    from mrm_stream.formats.manifest import read_manifest, write_manifest

    manifest = read_manifest(roots[1])
    assert manifest.reports is not None
    other = dataclasses.replace(manifest.reports, tokenizer_sha256="1" * 64)
    write_manifest(roots[1], dataclasses.replace(manifest, reports=other))
    with pytest.raises(ShardError, match=r"another tokenizer[\s\S]*mrm-stream tokenize"):
        joined(roots)
