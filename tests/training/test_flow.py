from __future__ import annotations

import pytest

from mrm_stream.training.flow import flow_of_all


def test_shares_are_the_worst_rank_s_and_amounts_are_all_ranks() -> None:
    flows = [
        {"seconds_waiting": 0.0, "seconds_decoding": 1.0, "bytes_decoded": 2e6, "cache_hits": 1},
        {"seconds_waiting": 3.0, "seconds_decoding": 4.0, "bytes_decoded": 6e6, "cache_hits": 2},
        {"seconds_waiting": 1.0, "seconds_decoding": 2.0, "bytes_decoded": 0.0, "cache_hits": 0},
    ]
    expected = {"waiting_share": 0.75, "decoding_share": 1.0, "mb_per_s": 2.0, "cache_hits": 3}
    assert flow_of_all(flows, 4.0) == pytest.approx(expected)
