"""The simulation of reading: counts that agree with those made by hand, and what must not grow with the set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from mrm_stream.bench.simulation import Simulation, SimulationOptions, Traffic, count_traffic, simulate_run, sizes_up_to
from mrm_stream.bench.simulation_table import simulation_notes, simulation_table
from mrm_stream.commands.plan import plan
from mrm_stream.errors import ConfigError
from mrm_stream.randomness import permutation
from mrm_stream.stream.order import BLOCK, Order

SMALL = SimulationOptions(
    samples=10_000, ranks=12, batch_size=240, ranks_per_node=3, samples_per_shard=50, window=4, shard_mb=20
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_sizes_of_shards_are_those_that_packing_makes() -> None:
    sizes = replace(SMALL, samples=10_030).shard_sizes()
    assert int(sizes.sum()) == 10_030
    assert len(sizes) == 201
    assert set(sizes.tolist()) == {49, 50}


def test_the_shards_read_are_those_of_the_node_s_share_of_each_step() -> None:
    """Counted out by hand from the order: ranks 6, 7 and 8 are the middle node of four."""
    start, steps = 1_234, 5
    traffic = count_traffic(SMALL, start=start, steps=steps)
    order = Order([50] * 200, 0, 4)
    taken = []
    for step in range(steps):
        first = start + 240 * step + 6 * 20
        taken.append(
            [set((order.indexes(range(at, at + 20))[1] // 50).tolist()) for at in (first, first + 20, first + 40)]
        )
    unions = [set.union(*ranks) for ranks in taken]
    # Within an epoch no shard comes back; what the first step reads was there before.
    assert traffic.read == pytest.approx(len(set.union(*unions) - unions[0]) / (4 * 240) * 10_000)
    assert traffic.open == max(len(rank) for ranks in taken for rank in ranks)
    assert traffic.held >= max(map(len, unions))
    assert traffic.hinted >= traffic.read


def test_one_node_that_reads_all_fetches_each_shard_once_an_epoch() -> None:
    """A step is two windows: two are read, and no fewer hinted; those of the step before are gone."""
    options = replace(SMALL, ranks=2, ranks_per_node=2, batch_size=400)
    traffic = count_traffic(options, start=0, steps=6)
    assert traffic.hinted == pytest.approx(200)
    assert traffic.read == pytest.approx(200)
    assert 8 <= traffic.held <= 16


def test_steps_within_a_window_fetch_it_once() -> None:
    """A window is 50 steps, each of which reads some 13 of its 20 shards; after 200 more, four more were fetched."""
    options = replace(SMALL, ranks=2, ranks_per_node=2, batch_size=20, window=20)
    assert options.counted_steps == 200
    traffic = count_traffic(options, start=0, steps=201)
    assert traffic.hinted == pytest.approx(200)
    # The first step's 13 were read before, those of the last step's window that it leaves are not read.
    assert traffic.read == pytest.approx(200, abs=13 * 2.5)
    # Where a step crosses over, its window, the next and the one after that.
    assert traffic.held == 60


def test_enough_steps_are_counted_and_not_too_many() -> None:
    assert SMALL.counted_steps == 4
    assert replace(SMALL, ranks=1, ranks_per_node=1, batch_size=1).counted_steps == 800
    assert replace(SMALL, ranks=1, ranks_per_node=1, batch_size=1, window=100).counted_steps == 2000


def test_what_must_not_grow_with_the_set_does_not() -> None:
    near = simulate_run(replace(SMALL, samples=1_000_000, samples_per_shard=512), positions=2)
    far = simulate_run(replace(SMALL, samples=1_000_000_000, samples_per_shard=512), positions=2)
    # Three digits more of the position.
    assert far.state_bytes == near.state_bytes + 3
    assert 150 < near.state_bytes < 250
    assert far.traffic.held == near.traffic.held
    assert far.traffic.open <= SMALL.window * 2
    assert len(far.enter_seconds) == 2
    assert min(far.enter_seconds) > 0
    if near.memory_bytes is not None and far.memory_bytes is not None:
        assert far.memory_bytes - near.memory_bytes < 4 * far.options.shards + 8_000_000
        assert far.memory_bytes > 4 * far.options.shards
    assert far.list_bytes / far.options.shards == near.list_bytes / near.options.shards > 300
    assert far.steps == -(-1_000_000_000 // 240)


def test_any_position_is_entered_by_permuting_a_block_and_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted: list[int] = []

    def noting(seed: int, epoch: int, stream: int, purpose: Any, size: int) -> Any:
        permuted.append(size)
        return permutation(seed, epoch, stream, purpose, size)

    monkeypatch.setattr("mrm_stream.stream.order.permutation", noting)
    options = replace(SMALL, samples=1_000_000_000, samples_per_shard=512)
    sizes = options.shard_sizes()
    for position in (0, 123_456_789, 77 * 10**9 + 5):
        permuted.clear()
        Order(sizes, 0, 16).locate(position)
        assert sorted(permuted) in ([120, 16 * 512, BLOCK], [120, 16 * 512, len(sizes) % BLOCK])


def test_the_rows_go_up_to_the_size_that_was_asked_for() -> None:
    assert sizes_up_to(10**9) == [10**6, 10**7, 10**8, 10**9]
    assert sizes_up_to(2_000_000) == [1_000_000, 2_000_000]
    assert sizes_up_to(7) == [7]


def test_the_table_has_each_number_in_its_column() -> None:
    made = Simulation(SMALL, 171, (0.002, 0.004, 0.009), 12_340_000, 5_000_000, Traffic(1000.4, 250.2, 30, 7))
    head, rule, row = simulation_table([made]).splitlines()
    assert len(cells(head)) == len(cells(rule)) == len(cells(row)) == 11
    assert cells(row) == [
        "10,000",
        "200",
        "42",
        "171",
        "4.0 (9.0)",
        "12.3",
        "5.0",
        "7",
        "0.6",
        "1,000 (20)",
        "250 (5)",
    ]
    assert cells(simulation_table([replace(made, memory_bytes=None)]).splitlines()[-1])[5] == ""
    assert "12 ranks, 3 a node; 240 samples a step; shards of 50 samples and 20 MB, 4 a window" in simulation_notes(
        made
    )
    assert "counted over 4 steps" in simulation_notes(made)
    assert "some 25000 more" in simulation_notes(made)


def test_the_command_takes_sizes_as_people_write_them() -> None:
    result = CliRunner().invoke(plan, ["--samples", "2e6", "--ranks", "4"])
    assert result.exit_code == 0, result.output
    rows = [cells(line) for line in result.output.splitlines() if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [["1,000,000", "1,954", "3,907"], ["2,000,000", "3,907", "7,813"]]
    assert "4 ranks, 4 a node; 256 samples a step" in result.output


@pytest.mark.parametrize("text", ["1.5", "0", "-3", "many", "1e99", "1e400", "nan"])
def test_what_is_no_number_of_samples_is_refused(text: str) -> None:
    result = CliRunner().invoke(plan, ["--ranks", "4", f"--samples={text}"])
    assert result.exit_code == 2
    assert "is not a whole number" in result.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 0),
        ("samples", 10**12),
        ("ranks", 0),
        ("ranks_per_node", 13),
        ("samples_per_shard", 0),
        ("window", 0),
        ("shard_mb", 0),
        ("seed", -1),
        ("batch_size", 241),
        ("batch_size", 0),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: must be"):
        replace(SMALL, **{name: value})


def test_the_remedy_for_the_batch_is_one_that_works() -> None:
    with pytest.raises(ConfigError, match=r"Take 240\."):
        replace(SMALL, batch_size=245)
