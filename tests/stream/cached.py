"""Sets read through a cache: what its tests do, and look for."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import fsspec

from mrm_stream.errors import StorageError
from mrm_stream.formats.shard import ShardEntry
from mrm_stream.storage.paths import parse_path
from mrm_stream.storage.publish import sha256_of
from mrm_stream.storage.remote import RemotePath
from mrm_stream.stream.cache import ShardCache
from mrm_stream.stream.order import Order
from mrm_stream.stream.shard_set import ShardSet
from tests.stream.conftest import build_set

SHARDS = 8
SAMPLES = 6 * SHARDS
LARGE = 1 << 40
"""A limit that is never reached."""
_numbers = count()


def make_source(folder: Path) -> Path:
    """Write a set of 8 shards of 6 samples, 30 KB each."""
    return build_set(folder / "set", splits={"train": [6] * SHARDS})


def in_memory(source: Path) -> RemotePath:
    """Copy a set to a place of its own in fsspec's memory."""
    place = parse_path(f"memory://cache-{next(_numbers)}/set")
    assert isinstance(place, RemotePath)
    for path in source.iterdir():
        fsspec.filesystem("memory").pipe_file(f"{place.path}/{path.name}", path.read_bytes())
    return place


def assert_all_read(shards: ShardSet) -> None:
    """Read every sample in the order of a run of two epochs, expecting as the loader does, and look at each."""
    order = Order(shards.shard_sizes, seed=1, window=2)
    for position in range(2 * SAMPLES):
        if position % 12 == 0:
            shards.hint([shard for _, window in islice(order.windows_from(position), 2) for shard in window])
        _, index = order.locate(position)
        sample = shards.sample(index)
        assert (sample.key, bytes(sample.jpeg)) == (f"train-{index}", f"jpeg {index}".encode())
        assert sample.token_ids is not None
        assert sample.token_ids.tolist() == [index % 40 + 4, *range(index % 3)]


def whole(folder: Path, entry: ShardEntry) -> bool:
    """Return whether a shard lies in the folder as the manifest says."""
    tar = folder / entry.file
    index = tar.with_suffix(".idx")
    if not tar.exists() or not index.exists():
        return False
    return sha256_of(tar) == entry.sha256 and sha256_of(index) == entry.index_sha256


def error_of(cache: ShardCache, entry: ShardEntry) -> StorageError | None:
    """Return the error that asking for a shard ends in."""
    try:
        cache.path(entry)
    except StorageError as error:
        return error
    return None


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))
