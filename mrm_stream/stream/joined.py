"""Several packed sets that are trained on together, as if they were one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from mrm_stream.errors import ConfigError, ShardError, command_line
from mrm_stream.formats.manifest import ReportsEntry
from mrm_stream.records import Sample
from mrm_stream.storage.paths import AnyPath
from mrm_stream.stream.cache import CacheCounts
from mrm_stream.stream.mixture import LEAST_SHARE, Mixture
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.stream.source import reports_of


class JoinedSets:
    """The samples of several sets by index, set after set; used like a `ShardSet`.

    Args:
        sets: With the same tokenizer, where they have reports.
        shares: Of the samples of a run, one a set; only their proportion counts.

    Raises:
        ShardError: Two sets have different tokenizers: their token ids mean different words.
        ConfigError: A share is too small.
    """

    def __init__(self, sets: Sequence[ShardSet], shares: Sequence[float]) -> None:
        told = [(each, each.reports) for each in sets if each.reports is not None]
        for other, reports in told[1:]:
            if reports.tokenizer_sha256 != told[0][1].tokenizer_sha256:
                raise ShardError(
                    f"has another tokenizer than {told[0][0].directory}",
                    where=other.directory,
                    remedy=f"Make it the same: {command_line('mrm-stream', 'tokenize', other.directory)} "
                    "--tokenizer FILE --out DIR.",
                )
        if min(shares) / sum(shares) < LEAST_SHARE:
            raise ConfigError(
                f"a share is less than 1 in {round(1 / LEAST_SHARE)} of the samples",
                where="data.mixture",
                remedy="Leave that set out, or raise its share.",
            )
        self._sets = sets
        self._shares = shares
        self._firsts = np.array([0, *accumulate(len(each) for each in sets)])
        self._first_shards = np.array([0, *accumulate(len(each.shard_sizes) for each in sets)])
        self.shard_sizes: tuple[int, ...] = tuple(size for each in sets for size in each.shard_sizes)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def directory(self) -> AnyPath:
        """Of the first set, for messages."""
        return self._sets[0].directory

    @property
    def reports(self) -> ReportsEntry | None:
        """Tokenizer and vocabulary, which are the same in all; None where any of the sets has no reports."""
        return self._sets[0].reports if all(each.reports is not None for each in self._sets) else None

    @property
    def fingerprint(self) -> str:
        """What tells these sets, in these shares, from any others."""
        return joined_fingerprint([each.fingerprint for each in self._sets], self._shares)

    @property
    def is_cached(self) -> bool:
        """Whether any of the sets is read through a cache."""
        return any(each.is_cached for each in self._sets)

    @property
    def wants_hints(self) -> bool:
        """Whether any of the sets does; see `ShardSet.wants_hints`."""
        return any(each.wants_hints for each in self._sets)

    def order(self, seed: int, window: int) -> Mixture:
        """Return the order in which a run reads the samples."""
        return Mixture([each.order(seed, window) for each in self._sets], self._shares, seed)

    def sample(self, index: int) -> Sample:
        """Return the sample at an index over all sets; see `ShardSet.sample`."""
        number = self._set_of(index)
        return replace(self._sets[number].sample(index - int(self._firsts[number])), index=index)

    def location(self, index: int) -> str:
        """Return where a sample lies, for people."""
        number = self._set_of(index)
        each = self._sets[number]
        return f"{each.directory.name}/{each.location(index - int(self._firsts[number]))}"

    def hint(self, shards: Sequence[int]) -> None:
        """Tell which shards, numbered over all sets, will be read next; see `ShardSet.hint`."""
        for first, end, each in zip(self._first_shards, self._first_shards[1:], self._sets, strict=False):
            each.hint([shard - int(first) for shard in shards if first <= shard < end])

    def cache_counts(self) -> CacheCounts:
        """Return what the caches have done, in sum."""
        counts = [each.cache_counts() for each in self._sets]
        return CacheCounts(
            **{name: sum(getattr(each, name) for each in counts) for name in CacheCounts.__dataclass_fields__}
        )

    def tokenizer_file(self) -> Path:
        """Return the tokenizer that the token ids are of; see `ShardSet.tokenizer_file`."""
        for each in self._sets:
            reports_of(each)
        return self._sets[0].tokenizer_file()

    def close(self) -> None:
        """Release the caches' shards."""
        for each in self._sets:
            each.close()

    def _set_of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(np.searchsorted(self._firsts, index, side="right")) - 1


def joined_fingerprint(fingerprints: Sequence[str], shares: Sequence[float]) -> str:
    """Return the fingerprint of several sets in these shares, by their own."""
    described = [list(fingerprints), [float(share) for share in shares]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
