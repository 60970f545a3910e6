"""`mrm-stream bench order`: how well the order of samples is shuffled."""

from __future__ import annotations

from pathlib import Path

import click

from mrm_stream.commands.common import DIRECTORY, check_output, start


@click.command("order")
@click.option("--out", type=DIRECTORY, required=True, help="Directory for order.json and order.png.")
@click.option("-n", "count", type=click.IntRange(min=256), default=200_000, show_default=True, help="Samples.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Epochs of each shuffle.")
def bench_order(out: Path, count: int, seeds: int) -> None:
    """How well an epoch is shuffled, beside a full shuffle and WebDataset's buffer. Nothing is read.

    \b
    mrm-stream bench order --out bench
    """
    import sys

    from mrm_stream.bench.order import PLOT, RESULT, bench_order
    from mrm_stream.bench.order_figure import order_table
    from mrm_stream.bench.order_result import OrderBenchOptions
    from mrm_stream.progress import progress

    start()
    check_output(out)
    with progress("bench order", "steps") as advance:
        result = bench_order(out, options=OrderBenchOptions(samples=count, seeds=seeds), progress=advance)
    click.echo(order_table(result, terminal=sys.stdout.isatty()))
    click.echo(f"{out / RESULT}, {out / PLOT}")
