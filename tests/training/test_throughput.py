from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mrm_stream.stream.cache import CacheCounts
from mrm_stream.training.throughput import Throughput, throughput_of_all


def test_each_look_tells_what_has_grown_since_the_one_before() -> None:
    loader = SimpleNamespace(seconds_waited=1.0)
    batches = SimpleNamespace(seconds_decoding=10.0, bytes_decoded=100)
    counts = CacheCounts(hits=1, fetched=2, refetched=3, evicted=4, bytes_fetched=5_000_000)
    shards = SimpleNamespace(is_cached=True, cache_counts=lambda: counts)
    flow = Throughput(cast(Any, loader), cast(Any, batches), cast(Any, shards))
    for times in (1, 2):
        loader.seconds_waited += 0.5 * times
        batches.seconds_decoding += 0.25 * times
        batches.bytes_decoded += 40 * times
        counts.hits += 5 * times
        counts.fetched += 6 * times
        counts.refetched += 7 * times
        counts.bytes_fetched += 8_000_000 * times
        assert flow.since_last() == {
            "seconds_waiting": 0.5 * times,
            "seconds_decoding": 0.25 * times,
            "bytes_decoded": 40 * times,
            "cache_hits": 5 * times,
            "cache_fetched": 6 * times,
            "cache_refetched": 7 * times,
            "cache_mb": 8 * times,
        }


def test_shares_are_the_worst_rank_s_and_amounts_are_all_ranks() -> None:
    flows = [
        {"seconds_waiting": 0.0, "seconds_decoding": 1.0, "bytes_decoded": 2e6, "cache_hits": 1},
        {"seconds_waiting": 3.0, "seconds_decoding": 4.0, "bytes_decoded": 6e6, "cache_hits": 2},
        {"seconds_waiting": 1.0, "seconds_decoding": 2.0, "bytes_decoded": 0.0, "cache_hits": 0},
    ]
    expected = {"waiting_share": 0.75, "decoding_share": 1.0, "mb_per_s": 2.0, "cache_hits": 3}
    assert throughput_of_all(flows, 4.0) == pytest.approx(expected)
