"""What a run's settings call its data -> the samples that it reads."""

from __future__ import annotations

from pathlib import Path

from mrm_stream.config.base import DataConfig
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.stream.joined import JoinedSets, joined_fingerprint
from mrm_stream.stream.shard_set import ShardSet, split_fingerprint
from mrm_stream.stream.source import IMAGES, Needs, SampleSource


def open_data(data: DataConfig, needs: Needs = IMAGES) -> SampleSource:
    """Return the packed set of a run, or the mixture of several.

    Args:
        data: Names the sets.
        needs: What the task reads of each sample besides its image.

    Raises:
        ShardError: A set is unfinished, damaged, has no such split or not what is needed, or two have different
            tokenizers.
        ConfigError: A set lies elsewhere, and there is no cache.
        StorageError: The storage does not answer, or the cache cannot be made.
    """
    directories = [data.shards, *data.mixture]
    sets = [open_set(parse_path(directory), data.split, data, needs, of=len(directories)) for directory in directories]
    return sets[0] if len(sets) == 1 else JoinedSets(sets, [1.0, *data.mixture.values()])


def fingerprint_of(data: DataConfig) -> str:
    """Return the fingerprint that what `open_data` returns would have; nothing but manifests is read, or made.

    Raises:
        ShardError: A manifest cannot be read.
        StorageError: The storage does not answer.
    """
    directories = [data.shards, *data.mixture]
    fingerprints = [split_fingerprint(read_manifest(parse_path(directory)), data.split) for directory in directories]
    return fingerprints[0] if len(directories) == 1 else joined_fingerprint(fingerprints, [1.0, *data.mixture.values()])


def open_set(directory: AnyPath, split: str, data: DataConfig, needs: Needs = IMAGES, *, of: int = 1) -> ShardSet:
    """Return a split of one set, read through the run's cache where it has one.

    Args:
        directory: Of the set.
        split: Part of it.
        data: Says where the cache is, and how large.
        needs: What is read of each sample besides its image.
        of: Sets that share the cache's room.
    """
    cache = (Path(data.cache), round(data.cache_gb * 1e9 / of)) if data.cache else None
    return ShardSet.open(directory, split, cache, needs=needs)
