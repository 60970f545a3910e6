"""How data flow to this rank: what was decoded and fetched since the last report."""

from __future__ import annotations

from mrm_stream.stream.joined import JoinedSets
from mrm_stream.stream.reader import ShardSet
from mrm_stream.training.batches import BatchMaker


class Flow:
    """Differences of running totals.

    Args:
        batches: Counts what is decoded.
        shards: Count what is fetched, where there is a cache.
    """

    def __init__(self, batches: BatchMaker, shards: ShardSet | JoinedSets) -> None:
        self._batches, self._shards = batches, shards
        self._last = self._totals()

    def since_last(self) -> dict[str, float]:
        """Return each total's growth since the last call: seconds, bytes, and the cache's counts of shards."""
        now = self._totals()
        grown = {name: value - self._last[name] for name, value in now.items()}
        self._last = now
        return grown

    def _totals(self) -> dict[str, float]:
        totals: dict[str, float] = {
            "seconds_decoding": self._batches.seconds_decoding,
            "bytes_decoded": self._batches.bytes_decoded,
        }
        if self._shards.is_cached:
            counts = self._shards.cache_counts()
            totals |= {
                "cache_hits": counts.hits,
                "cache_fetched": counts.fetched,
                "cache_refetched": counts.refetched,
                "cache_mb": counts.bytes_fetched / 1e6,
            }
        return totals
