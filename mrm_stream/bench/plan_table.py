"""Shows what `mrm-stream plan` found: a row a size, in Markdown, so that it can be pasted."""

from __future__ import annotations

from collections.abc import Sequence

from mrm_stream.bench.plan import Plan, median_and_worst_ms
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


def plan_table(plans: Sequence[Plan]) -> str:
    """Return the table as Markdown, a row for each plan."""
    rows = [_COLUMNS, ("--:",) * len(_COLUMNS), *map(_row, plans)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plan_notes(plan: Plan) -> str:
    """Return what the table's columns rest on."""
    options = plan.options
    return (
        f"{options.ranks:,} ranks, {options.ranks_per_node} a node; {options.batch_size:,} samples a step; shards of "
        f"{options.samples_per_shard} samples and {options.shard_mb:g} MB, {options.window} a window.\n"
        f"State, time, memory and shards open do not depend on the number of samples, but for the list of shards: "
        f"the order keeps\n4 bytes of each shard, and the manifest's entries take some "
        f"{plan.list_bytes // options.shards} more (computed). A rank maps at most {MAPPED_SHARDS} shards\n"
        f"at a time. What a node fetches in an epoch is counted over {options.counted_steps} steps; it grows with the "
        "epoch."
    )


def _row(plan: Plan) -> tuple[str, ...]:
    options, traffic = plan.options, plan.traffic
    middle, worst = median_and_worst_ms(plan)
    memory = "" if plan.memory_bytes is None else f"{plan.memory_bytes / 1e6:.1f}"

    def shards_and_gb(shards: float) -> str:
        return f"{shards:,.0f} ({shards * options.shard_mb / 1e3:,.0f})"

    return (
        f"{options.samples:,}",
        f"{options.shards:,}",
        f"{plan.steps:,}",
        f"{plan.state_bytes}",
        f"{middle:.1f} ({worst:.1f})",
        memory,
        f"{plan.list_bytes / 1e6:.1f}",
        f"{traffic.open}",
        f"{traffic.held * options.shard_mb / 1e3:,.1f}",
        shards_and_gb(traffic.announced),
        shards_and_gb(traffic.read),
    )
