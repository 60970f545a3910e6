"""The command that makes synthetic radiographs."""

from __future__ import annotations

from pathlib import Path

import click

from mrm_stream.commands.common import DIRECTORY, check_output, cores, start


@click.command()
@click.option("--out", type=DIRECTORY, required=True, help="New directory for the data set.")
@click.option("-n", "count", type=click.IntRange(min=1), required=True, help="Radiographs to make.")
@click.option("--size", type=click.IntRange(min=64), default=1024, show_default=True, help="Short side in pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other patients.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a core]")
def phantom(out: Path, count: int, size: int, seed: int, workers: int | None) -> None:
    """Make synthetic radiographs with reports, labels and masks, laid out as MIMIC-CXR-JPG.

    \b
    mrm-stream phantom --out data/phantom -n 1000
    """
    from mrm_stream.errors import command_line
    from mrm_stream.progress import progress
    from mrm_stream.sources.phantom.tree import write_phantom_tree

    start()
    check_output(out)
    written = 0
    with progress("phantom", "radiographs") as advance:

        def show(more: int) -> None:
            nonlocal written
            written += more
            advance(written, count, "")

        write_phantom_tree(
            out,
            count,
            seed=seed,
            size=size,
            workers=workers or cores(),
            progress=show,
        )
    click.echo(f"{count} radiographs with reports, labels and masks: {out}")
    words = ("shard", "--src", "mimic", "--root", out, "--out", "shards/phantom")
    click.echo(f"Next: {command_line('mrm-stream', *words)}")
