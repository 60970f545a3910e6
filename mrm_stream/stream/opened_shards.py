"""The shards of a split that are open: their indexes and memory maps, bounded in number.

An index of 512 samples takes some 100 KB and a map a file descriptor, so a set of a million shards cannot stay open.
What was used longest ago is closed; the samples that were cut out of a map keep it alive for as long as they live.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mrm_stream.errors import ShardError
from mrm_stream.formats.manifest import Manifest
from mrm_stream.formats.shard import ShardEntry, ShardIndex, index_path, read_index
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import sha256_of
from mrm_stream.stream.cache import ShardCache

T = TypeVar("T")

MAPPED_SHARDS = 256
"""Shards open at a time: each map holds a file descriptor, of which many systems allow 1,024."""
UNHINTED_SHARDS = 8
"""Shards of a cache that are in use without a prefetch hint, at a time."""

REMEDY = (
    "The set is damaged or incomplete: copy it again from where it came. `mrm-stream verify DIR` names all that is "
    "wrong, `mrm-stream repair DIR --root SOURCE` packs it again from the source."
)


class OpenedShards:
    """Indexes and maps of a split's shards by number, opened at first use; safe to share between threads.

    Args:
        directory: Of the set.
        manifest: The set's.
        split: Whose shards are numbered from 0.
        cache: Brings shards to this machine before they are opened; None where `directory` is local and read directly.
    """

    def __init__(self, directory: AnyPath, manifest: Manifest, split: str, cache: ShardCache | None) -> None:
        self._directory = directory
        self._entries = manifest.splits[split]
        self._members = manifest.members
        self._cache = cache
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._hinted: frozenset[int] = frozenset()
        self._unhinted: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def index(self, shard: int) -> ShardIndex:
        """Return a shard's index.

        Raises:
            ShardError: It is absent, damaged or of another shard.
            StorageError: It must be fetched, and the storage does not answer.
        """
        index = self._recent(self._indexes, shard)
        if index is None:
            entry = self._entries[shard]
            tar = self._local(shard)
            index = read_index(tar, self._members)
            # A size that is off by less than a tar's block passes every other check.
            if len(index) != entry.samples or sha256_of(index_path(tar)) != entry.index_sha256:
                raise ShardError("the index is not the manifest's", where=index_path(tar), remedy=REMEDY)
            index = self._keep(self._indexes, shard, index)
        return index

    def data(self, shard: int) -> memoryview:
        """Return the bytes of a shard's tar, mapped, not read; errors as those of `index`."""
        data = self._recent(self._maps, shard)
        if data is None:
            data = self._keep(self._maps, shard, _mapped(self._local(shard), self._entries[shard]))
        return data

    def hint(self, shards: Sequence[int]) -> None:
        """Fetch these into the cache, in this order, and unmap and release all others; there must be a cache."""
        assert self._cache is not None
        with self._lock:
            self._hinted = frozenset(shards)
            self._unhinted.clear()
            # The disk keeps the blocks of a removed file for as long as it is mapped: an evicted shard would take
            # room that the cache no longer counts.
            for shard in self._maps.keys() - self._hinted:
                del self._maps[shard]
        self._cache.hint([self._entries[shard] for shard in shards])

    def close(self) -> None:
        """Unmap all shards; the samples read before stay readable."""
        with self._lock:
            self._maps.clear()

    def _recent(self, opened: OrderedDict[int, T], shard: int) -> T | None:
        with self._lock:
            found = opened.get(shard)
            if found is not None:
                opened.move_to_end(shard)
            return found

    def _keep(self, opened: OrderedDict[int, T], shard: int, new: T) -> T:
        """Keep what was opened, unless another thread was first, and drop what was used longest ago."""
        # Opening is done before, without the lock: a shard that is still being fetched must not keep other threads
        # from one that is there. Two threads that open the same one do so to the same effect.
        with self._lock:
            kept = opened.setdefault(shard, new)
            if len(opened) > MAPPED_SHARDS:
                opened.popitem(last=False)
            return kept

    def _local(self, shard: int) -> Path:
        """Return the path of a shard on this machine; wait for it where it must be fetched."""
        entry = self._entries[shard]
        if self._cache is not None:
            self._bound_unhinted(shard)
            return self._cache.path(entry)
        assert isinstance(self._directory, Path)
        return self._directory / entry.file

    def _bound_unhinted(self, shard: int) -> None:
        """Release the oldest of the shards used without a hint, once there are many.

        Somebody who looks at samples here and there gives no hints, by which shards would be released.
        """
        assert self._cache is not None
        with self._lock:
            if shard in self._hinted:
                return
            self._unhinted[shard] = None
            if len(self._unhinted) <= UNHINTED_SHARDS:
                return
            oldest, _ = self._unhinted.popitem(last=False)
            self._maps.pop(oldest, None)
        self._cache.release(self._entries[oldest])


def _mapped(tar: Path, entry: ShardEntry) -> memoryview:
    try:
        with tar.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        if isinstance(error, OSError):
            refuse_barred(error, tar)
        raise ShardError(f"cannot be mapped: {error}", where=tar, remedy=REMEDY) from error
    if len(data) != entry.bytes:
        raise ShardError(f"is {len(data)} bytes long, the manifest says {entry.bytes}", where=tar, remedy=REMEDY)
    return data
