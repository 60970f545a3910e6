"""How data flow to this rank: what was decoded and fetched since the last report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrm_stream.stream.loader import Loader
from mrm_stream.stream.source import SampleSource
from mrm_stream.training.task import Batches


class Throughput:
    """Differences of running totals.

    Args:
        loader: Counts how long the steps wait for it.
        batches: Counts what is decoded.
        source: Counts what is fetched, where there is a cache.
    """

    def __init__(self, loader: Loader[Any], batches: Batches[Any], source: SampleSource) -> None:
        self._loader, self._batches, self._source = loader, batches, source
        self._last = self._totals()

    def since_last(self) -> dict[str, float]:
        """Return each total's growth since the last call: seconds, bytes, and the cache's counts of shards."""
        now = self._totals()
        grown = {name: value - self._last[name] for name, value in now.items()}
        self._last = now
        return grown

    def _totals(self) -> dict[str, float]:
        totals: dict[str, float] = {
            "seconds_waiting": self._loader.seconds_waited,
            "seconds_decoding": self._batches.seconds_decoding,
            "bytes_decoded": self._batches.bytes_decoded,
        }
        if self._source.is_cached:
            counts = self._source.cache_counts()
            totals |= {
                "cache_hits": counts.hits,
                "cache_fetched": counts.fetched,
                "cache_refetched": counts.refetched,
                "cache_mb": counts.bytes_fetched / 1e6,
            }
        return totals


def throughput_of_all(flows: Sequence[dict[str, float]], elapsed: float) -> dict[str, float]:
    """Return what the log says of a stretch of so many seconds, from what each rank's `Throughput` has seen of it.

    Shares are the worst rank's: all others wait for it in the step.
    """
    total = {name: sum(flow[name] for flow in flows) for name in flows[0]}
    return {
        "waiting_share": max(flow["seconds_waiting"] for flow in flows) / elapsed,
        # Of the time of the loader's thread; beside the step, as long as it is below 1.
        "decoding_share": max(flow["seconds_decoding"] for flow in flows) / elapsed,
        "mb_per_s": total["bytes_decoded"] / 1e6 / elapsed,
        **{name: total[name] for name in total if name.startswith("cache_")},
    }
