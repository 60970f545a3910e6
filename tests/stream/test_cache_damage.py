"""Shards that were damaged in the cache, or on the way there: every one found, none read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import TOKENIZER
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage import files
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of
from mrm_stream.stream import cache as caching
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.shard_set import ShardSet
from tests.stream.cached import (
    LARGE,
    in_memory,
    make_source,
    temporaries,
    whole,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture
def entries(source: Path) -> tuple[ShardEntry, ...]:
    return read_manifest(source).splits["train"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ShardCache]]:
    """(directory, limit_bytes) -> a cache in the test's folder."""
    caches: list[ShardCache] = []

    def open_cache(directory: AnyPath, limit_bytes: int = LARGE, folder: Path = tmp_path / "cache") -> ShardCache:
        caches.append(ShardCache(directory, folder, limit_bytes))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


def damage(folder: Path, entry: ShardEntry, other: ShardEntry, how: str, draw: random.Random) -> None:
    """Damage a shard that lies in the cache."""
    kind, _, suffix = how.partition(" ")
    path = (folder / entry.file).with_suffix(suffix)
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "grow":
        content += draw.randbytes(draw.choice([1, 512, 10240]))
    elif kind == "exchange":
        content[:] = (folder / other.file).with_suffix(suffix).read_bytes()
    else:
        assert kind == "remove"
    path.unlink()
    if kind != "remove":
        path.write_bytes(content)


KINDS = [f"{kind} {suffix}" for kind in ("flip", "cut", "grow", "exchange") for suffix in (".tar", ".idx")]


@pytest.mark.parametrize("how", KINDS)
def test_damage_in_the_cache_is_found(
    source: Path, tmp_path: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...], how: str
) -> None:
    cache = opened(source)
    damage_and_bring(cache, tmp_path / "cache", entries, how, random.Random(0))
    assert cache.counts.refetched == 1


def damage_and_bring(
    cache: ShardCache, folder: Path, entries: tuple[ShardEntry, ...], how: str, draw: random.Random
) -> None:
    """Damage one of two shards that are there, and see it made whole."""
    one, other = draw.sample(entries, 2)
    for entry in (one, other):
        cache.path(entry)
    cache.hint([])
    damage(folder, one, other, how, draw)
    assert not whole(folder, one)
    cache.path(one)
    assert whole(folder, one)
    cache.hint([])


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_file_that_was_removed_from_the_cache_is_fetched(
    source: Path, tmp_path: Path, opened: Callable[..., ShardCache], entries: tuple[ShardEntry, ...], suffix: str
) -> None:
    damage_and_bring(opened(source), tmp_path / "cache", entries, f"remove {suffix}", random.Random(0))


class Line:
    """What comes over the line from fsspec's memory: damaged, as often as was set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bad = 0
        """Pieces that are still to be damaged."""
        self.asked: Counter[str] = Counter()
        self.draw = random.Random(0)
        fetch = files._fetch

        def damaging(part: AnyPath, start: int, end: int) -> bytes:
            content = fetch(part, start, end)
            self.asked[part.name] += 1
            if not self.bad:
                return content
            self.bad -= 1
            place = self.draw.randrange(len(content))
            return content[:place] + bytes([content[place] ^ 1 << self.draw.randrange(8)]) + content[place + 1 :]

        patch.setattr(files, "_fetch", damaging)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


@pytest.mark.parametrize("bad", [1, 2])
def test_damage_on_the_way_is_found(
    source: Path,
    tmp_path: Path,
    opened: Callable[..., ShardCache],
    entries: tuple[ShardEntry, ...],
    line: Line,
    bad: int,
) -> None:
    cache = opened(in_memory(source))
    line.bad = bad
    cache.path(entries[0])
    assert whole(tmp_path / "cache", entries[0])
    assert cache.counts.refetched == bad


def test_a_source_that_is_damaged_for_good_is_named_and_not_fetched_for_every_sample(
    source: Path, tmp_path: Path, line: Line
) -> None:
    place = in_memory(source)
    fsspec.filesystem("memory").pipe_file(f"{place.path}/train-00000.tar", b"x" * 40000)  # longer than it should be
    shards = ShardSet.open(place, "train", cache=(tmp_path, LARGE))
    for index in range(6):
        with pytest.raises(ShardError, match=r"train-00000\.tar: the SHA-256 .* 3 times"):
            shards.sample(index)
    assert line.asked["train-00000.tar"] == caching.ATTEMPTS
    assert not list(tmp_path.rglob("train-00000.*"))
    assert not temporaries(tmp_path)
    assert shards.sample(6).key == "train-6"
    shards.close()


def test_the_tokenizer_is_checked_and_asked_for_again(
    source: Path, tmp_path: Path, opened: Callable[..., ShardCache], line: Line
) -> None:
    place = in_memory(source)
    fsspec.filesystem("memory").pipe_file(f"{place.path}/{TOKENIZER}", b"{}")
    (tmp_path / TOKENIZER).write_bytes(b"{}")
    digest = sha256_of(tmp_path / TOKENIZER)
    cache = opened(place)
    line.bad = 1
    path = cache.bring_file(TOKENIZER, digest)
    path.write_bytes(b"[]")
    assert cache.bring_file(TOKENIZER, digest).read_bytes() == b"{}"
    with pytest.raises(ShardError, match=TOKENIZER):
        cache.bring_file(TOKENIZER, "0" * 64)


@pytest.mark.campaign
def test_every_one_of_many_damages_is_found(
    source: Path,
    tmp_path: Path,
    opened: Callable[..., ShardCache],
    entries: tuple[ShardEntry, ...],
    line: Line,
) -> None:
    cache = opened(in_memory(source))
    draw = random.Random(1)
    for turn in range(2000):
        before = cache.counts.refetched
        damage_and_bring(cache, tmp_path / "cache", entries, KINDS[turn % len(KINDS)], draw)
        assert cache.counts.refetched == before + 1
    for _ in range(2000):
        entry = draw.choice(entries)
        (tmp_path / "cache" / entry.file).unlink(missing_ok=True)
        before = cache.counts.refetched
        line.bad = draw.choice([1, 2])
        bad = line.bad
        cache.path(entry)
        assert whole(tmp_path / "cache", entry)
        assert cache.counts.refetched == before + bad
        cache.hint([])
