"""A split of a packed set as a sequence of samples: slices of memory-mapped shards, found through their indexes.

A tar is a tape: to find a sample, a reader goes through all before it. Each shard therefore has an index of where its
members begin and end, so that any sample is a slice, of no copy, whose bytes the kernel reads when they are first
touched and keeps, for all ranks of the machine, in the page cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import ConfigError, ShardError
from mrm_stream.formats.manifest import Manifest, ReportsEntry, read_manifest
from mrm_stream.formats.shard import MASK_MEMBER, ShardEntry, ShardIndex, index_path
from mrm_stream.records import Sample
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.paths import AnyPath
from mrm_stream.stream.cache import CacheCounts, ShardCache
from mrm_stream.stream.checksums import Checksums
from mrm_stream.stream.opened_shards import REMEDY, OpenedShards
from mrm_stream.stream.order import Order
from mrm_stream.stream.report_files import ReportFiles
from mrm_stream.stream.source import IMAGES, Needs, check_needs, no_reports
from mrm_stream.strict import parse_json

METADATA_LIMIT = 1 << 20
"""Bytes of one sample's JSON."""


class DamagedShardError(ShardError):
    """A shard is not what the manifest says: none of its samples can be trusted, and none is replaced by another."""


class ShardSet:
    """The samples of one split, by index; safe to share between threads.

    Opening a set reads its manifest, and the sizes of local shards. A shard's index is read, and its tar mapped, when a
    sample of it is first asked for; where there is a cache, it is fetched then, unless a hint had it fetched before.
    Each shard is compared with the manifest's SHA-256 before its first sample is handed out: by the cache whenever it
    brings one, else here, once a process.

    Samples are views of the map, which lives as long as any of them does. A tar that is cut short while it is mapped
    ends the process (SIGBUS), as with any memory map; so published shards are replaced by renaming, never rewritten.
    """

    def __init__(
        self,
        directory: AnyPath,
        split: str,
        manifest: Manifest,
        cache: ShardCache | None = None,
        *,
        needs: Needs = IMAGES,
        verify: bool = True,
    ) -> None:
        self.directory = directory
        self.cache = cache
        self.split = split
        self.manifest = manifest
        self._entries: tuple[ShardEntry, ...] = manifest.splits[split]
        self.shard_sizes: tuple[int, ...] = tuple(entry.samples for entry in self._entries)
        self._firsts = [0, *accumulate(self.shard_sizes)]
        self._opened = OpenedShards(directory, manifest, split, cache)
        self.reports: ReportsEntry | None = manifest.reports
        self._needs = needs
        self._column = {member: column for column, member in enumerate(manifest.members)}
        self._files = None if self.reports is None else ReportFiles(directory, self.reports, cache)
        # Where there is a cache, it compares what it brings.
        self._checksums = Checksums(directory, self._entries) if verify and isinstance(directory, Path) else None

    @classmethod
    def open(
        cls,
        directory: AnyPath,
        split: str,
        cache: tuple[Path, int] | None = None,
        *,
        needs: Needs = IMAGES,
        verify: bool = True,
    ) -> ShardSet:
        """Return a split of a packed set, once all its shards are found to be there and as long as they should be.

        Args:
            directory: Of the set.
            split: Part of it.
            cache: Local folder, and the bytes that it may hold: shards are then fetched whole, ahead of need, and not
                looked for one by one now. Needed where `directory` is a URL; sensible on slow shared file systems.
            needs: What is read of each sample besides its image.
            verify: Read each shard once and compare it with the manifest's SHA-256 before its first sample is handed
                out: 0.06 s of a core per 100 MB, ahead of need where `hint` tells what will be read. Without it a
                flipped bit that leaves a JPEG valid is trained on. What comes through a cache is compared in any case.

        Raises:
            ShardError: There is no finished set here, it lacks what is needed, has no such split or none of its
                samples, or a shard is missing or of another size than the manifest says.
        """
        manifest = read_manifest(directory)
        check_needs(needs, manifest, directory)
        if manifest.samples(split) == 0:
            filled = [name for name in manifest.splits if manifest.samples(name)]
            raise ShardError(
                f"the set has no samples in a split {split!r}",
                where=directory,
                remedy=f"Choose one of: {', '.join(filled)}." if filled else "Pack a set that has samples.",
            )
        if cache is not None:
            folder, limit_bytes = cache
            # Two sets, or two versions of one, never meet under one name.
            own = folder / manifest.fingerprint[:16]
            return cls(directory, split, manifest, ShardCache(directory, own, limit_bytes), needs=needs, verify=False)
        if not isinstance(directory, Path):
            raise ConfigError(
                "shards that lie elsewhere are trained on through a cache",
                where="data.cache",
                remedy="Set it to a local folder, on a fast disk.",
            )
        # A look at each file's size takes microseconds: a copy that was cut short is told now, not hours into the run.
        for entry in manifest.splits[split]:
            _check_files(directory / entry.file, entry)
        return cls(directory, split, manifest, needs=needs, verify=verify)

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def fingerprint(self) -> str:
        """What tells this split of this set from any other."""
        return split_fingerprint(self.manifest, self.split)

    def tokenizer_file(self) -> Path:
        """Return the tokenizer that the token ids are of.

        Raises:
            ShardError: The set has no reports, the file is absent, or another one has taken its place.
        """
        return self._shared_files().tokenizer()

    @property
    def is_cached(self) -> bool:
        """Whether shards are fetched before they are read."""
        return self.cache is not None

    @property
    def wants_hints(self) -> bool:
        """Whether hints are of use: shards are fetched, or are still to be compared."""
        return self.cache is not None or (self._checksums is not None and not self._checksums.are_all_compared())

    def order(self, seed: int, window: int) -> Order:
        """Return the order in which a run reads the samples."""
        return Order(self.shard_sizes, seed, window)

    def cache_counts(self) -> CacheCounts:
        """Return what the cache has done; nothing, where there is none."""
        return self.cache.counts if self.cache is not None else CacheCounts()

    def hint(self, shards: Sequence[int]) -> None:
        """Tell which shards will be read next, in this order: they are fetched and compared, all others released."""
        if self._checksums is not None:
            self._checksums.hint(shards)
        if self.cache is not None:
            self._opened.hint(shards)

    def close(self) -> None:
        """Release the cache's shards; their samples can no longer be read, those read before can."""
        if self._checksums is not None:
            self._checksums.close()
        if self.cache is not None:
            self._opened.close()
            self.cache.close()

    def sample(self, index: int) -> Sample:
        """Return the sample at an index, as views of its shard, with the labels and the mask where they are needed.

        Raises:
            IndexError: There is no such index.
            DamagedShardError: The shard or its index is damaged or absent, or cannot be read.
            ShardError: The token ids are not of the set's vocabulary, or the labels are none.
            StorageError: The shard must be fetched, and the storage does not answer.
        """
        shard, row = self._find(index)
        table, data = self._whole(shard)
        starts, sizes = table.offsets[row].tolist(), table.sizes[row].tolist()
        # The image is the first member of every sample, and token ids, where there are reports, the second.
        token_ids = None if self.reports is None else self._token_ids(index, data, starts[1], sizes[1])
        labels = self._labels(index) if self._needs.labels else None
        mask = self._member(index, MASK_MEMBER) if self._needs.masks else None
        return Sample(index, table.key(row), data[starts[0] : starts[0] + sizes[0]], token_ids, labels, mask)

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what the set knows of a sample besides image and report: subject, study, view, labels, sizes.

        Raises:
            IndexError: There is no such index.
            ShardError: The shard, its index or the sample's JSON is damaged.
        """
        content = self._member(index, "json")
        try:
            metadata = parse_json(bytes(content)) if len(content) <= METADATA_LIMIT else None
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise self._damaged(index, "the metadata is not a JSON object")
        return metadata

    def report(self, index: int) -> str:
        """Return a sample's report.

        Raises:
            IndexError: There is no such index.
            ShardError: The set has no reports; or the shard, its index, the dictionary or the compressed report is
                damaged.
        """
        files = self._shared_files()
        try:
            return files.text(bytes(self._member(index, "txt.zst")))
        except ValueError as error:
            what = str(error)
        # Out of the handler: the error of a decoder, which may hold the report's bytes, must not become its context.
        raise self._damaged(index, what)

    def location(self, index: int) -> str:
        """Return where a sample lies, for messages: the shard's file and the key (or the row, if the index is lost).

        Example: `train-00001.tar: train-4`.
        """
        shard, row = self._find(index)
        try:
            name = self._opened.index(shard).key(row)
        except ShardError:
            name = f"sample {row + 1}"
        return f"{self._entries[shard].file}: {name}"

    def _find(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample, and its row in the shard's index."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        shard = bisect_right(self._firsts, index) - 1
        return shard, index - self._firsts[shard]

    def _token_ids(self, index: int, data: memoryview, start: int, size: int) -> NDArray[np.uint16]:
        assert self.reports is not None
        if size == 0 or size % 2:
            raise self._damaged(index, "the token ids are absent or cut short")
        token_ids = np.frombuffer(data, "<u2", size // 2, start)
        # An embedding would be looked up past its end: on a GPU that ends the process, far from here.
        if int(token_ids.max()) >= self.reports.vocabulary:
            raise self._damaged(index, "a token id is outside the tokenizer's vocabulary")
        return token_ids

    def _labels(self, index: int) -> dict[str, int]:
        labels = self.metadata(index).get("labels")
        if not isinstance(labels, dict) or any(type(value) is not int or abs(value) > 1 for value in labels.values()):
            raise self._damaged(index, "the labels are not findings with 1, 0 or -1")
        return labels

    def _member(self, index: int, name: str) -> memoryview:
        shard, row = self._find(index)
        column = self._column[name]
        table = self._opened.index(shard)
        start = int(table.offsets[row, column])
        return self._opened.data(shard)[start : start + int(table.sizes[row, column])]

    def _whole(self, shard: int) -> tuple[ShardIndex, memoryview]:
        """Return a shard's index and bytes, both known to be the manifest's."""
        # Whatever is wrong with a shard or its index is wrong with all its samples: an error of its own, so that who
        # replaces bad samples does not replace them one by one.
        try:
            table, data = self._opened.index(shard), self._opened.data(shard)
            if self._checksums is not None:
                self._checksums.require(shard)
        except ShardError as error:
            raise DamagedShardError(error.what, where=error.where, remedy=REMEDY) from error
        return table, data

    def _shared_files(self) -> ReportFiles:
        if self._files is None:
            raise no_reports(self.directory)
        return self._files

    def _damaged(self, index: int, what: str) -> ShardError:
        return ShardError(what, where=f"{self.directory / self.location(index)}", remedy=REMEDY)


def split_fingerprint(manifest: Manifest, split: str) -> str:
    """Return what tells a split of a packed set from any other."""
    return f"{manifest.fingerprint}/{split}"


def _check_files(tar: Path, entry: ShardEntry) -> None:
    for path in (tar, index_path(tar)):
        try:
            size = path.stat().st_size
        except OSError as error:
            refuse_barred(error, path)
            raise ShardError(f"cannot be read: {error.strerror}", where=path, remedy=REMEDY) from error
        if path == tar and size != entry.bytes:
            raise ShardError(f"is {size} bytes long, the manifest says {entry.bytes}", where=path, remedy=REMEDY)
