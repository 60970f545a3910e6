"""Shows what `mrm-stream plan` found: a row a size, in Markdown, so that it can be pasted."""

from __future__ import annotations

from collections.abc import Sequence

from mrm_stream.bench.simulation import Simulation, median_and_worst_ms
from mrm_stream.stream.opened_shards import MAPPED_SHARDS

_COLUMNS = (
    "samples",
    "shards",
    "steps an epoch",
    "state, bytes",
    "to any position, ms: median (worst)",
    "order's memory, MB a rank",
    "shard list, MB a rank",
    "shards a rank reads in a step",
    "cache a node must hold, GB",
    "fetched a node and epoch: shards (GB)",
    "of these read: shards (GB)",
)


def simulation_table(simulations: Sequence[Simulation]) -> str:
    """Return the table as Markdown, a row for each simulation."""
    rows = [_COLUMNS, ("--:",) * len(_COLUMNS), *map(_row, simulations)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def simulation_notes(simulation: Simulation) -> str:
    """Return what the table's columns rest on."""
    options = simulation.options
    return (
        f"{options.ranks:,} ranks, {options.ranks_per_node} a node; {options.batch_size:,} samples a step; shards of "
        f"{options.samples_per_shard} samples and {options.shard_mb:g} MB, {options.window} a window.\n"
        f"State, time, memory and shards open do not depend on the number of samples, but for the list of shards: "
        f"the order keeps\n4 bytes of each shard, and the manifest's entries take some "
        f"{simulation.list_bytes // options.shards} more (computed). A rank maps at most {MAPPED_SHARDS} shards\n"
        f"at a time. What a node fetches in an epoch is counted over {options.counted_steps} steps; it grows with the "
        "epoch."
    )


def _row(simulation: Simulation) -> tuple[str, ...]:
    options, traffic = simulation.options, simulation.traffic
    middle, worst = median_and_worst_ms(simulation)
    memory = "" if simulation.memory_bytes is None else f"{simulation.memory_bytes / 1e6:.1f}"

    def shards_and_gb(shards: float) -> str:
        return f"{shards:,.0f} ({shards * options.shard_mb / 1e3:,.0f})"

    return (
        f"{options.samples:,}",
        f"{options.shards:,}",
        f"{simulation.steps:,}",
        f"{simulation.state_bytes}",
        f"{middle:.1f} ({worst:.1f})",
        memory,
        f"{simulation.list_bytes / 1e6:.1f}",
        f"{traffic.open}",
        f"{traffic.held * options.shard_mb / 1e3:,.1f}",
        shards_and_gb(traffic.hinted),
        shards_and_gb(traffic.read),
    )
