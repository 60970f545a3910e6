"""`mrm-stream plan`: simulates how a run reads its shards, before there are any data."""

from __future__ import annotations

from typing import Any

import click

_SAMPLES_PER_RANK = 64


_LARGEST = 10**10
"""Samples: the sizes of their shards are 80 MB."""


class _Whole(click.ParamType[int]):
    """A whole number, which may be written as 1e9."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = float(value)
            if not 1 <= number <= _LARGEST or number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a whole number from 1 to {float(_LARGEST):.0e}, such as 1e9", param, ctx)
        return int(number)


@click.command()
@click.option("--samples", type=_Whole(), required=True, help="In the set, such as 1e9.")
@click.option("--ranks", type=click.IntRange(min=1), required=True, help="Processes, one a GPU.")
@click.option("--ranks-per-node", type=click.IntRange(min=1), default=None, help="That share a cache.  [default: 8]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=None,
    help=f"Samples a step, over all ranks.  [default: {_SAMPLES_PER_RANK} a rank]",
)
@click.option("--samples-per-shard", type=click.IntRange(min=1), default=512, show_default=True, help="As packed.")
@click.option("--window", type=click.IntRange(min=1), default=16, show_default=True, help="Shards that are mixed.")
@click.option(
    "--shard-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Megabytes of a shard.",
)
def plan(
    samples: int,
    ranks: int,
    ranks_per_node: int | None,
    batch_size: int | None,
    samples_per_shard: int,
    window: int,
    shard_mb: float,
) -> None:
    """Simulate how a run of any size reads its shards, without data: state, time, memory and traffic.

    It plans training; what would be packed is told by `mrm-stream shard --dry-run`.

    \b
    mrm-stream plan --samples 1e9 --ranks 4096
    """
    from mrm_stream.bench.simulation import SimulationOptions, simulate_run, sizes_up_to
    from mrm_stream.bench.simulation_table import simulation_notes, simulation_table

    simulations = [
        simulate_run(
            SimulationOptions(
                samples=size,
                ranks=ranks,
                batch_size=batch_size or _SAMPLES_PER_RANK * ranks,
                ranks_per_node=ranks_per_node or min(8, ranks),
                samples_per_shard=samples_per_shard,
                window=window,
                shard_mb=shard_mb,
            )
        )
        for size in sizes_up_to(samples)
    ]
    click.echo(simulation_table(simulations))
    click.echo(f"\n{simulation_notes(simulations[-1])}")
