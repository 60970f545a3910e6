"""Commands that measure: each stage beside its peers, in one run."""

from __future__ import annotations

from pathlib import Path

import click

from mrm_stream.commands.common import DIRECTORY, FILE, check_output, cores, start


@click.group()
def bench() -> None:
    """Measure how fast a stage is beside its peers: a table, JSON and a plot."""


@bench.command("pack")
@click.option("--out", type=DIRECTORY, required=True, help="Directory for pack.json, pack.png and temporary files.")
@click.option("-n", "count", type=click.IntRange(min=1), default=240, show_default=True, help="Radiographs.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Times that each is measured.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes each.  [default: one a core]")
def bench_pack(out: Path, count: int, rounds: int, workers: int | None) -> None:
    """Packing, beside a PIL + webdataset script and libjpeg-turbo's bare decoding, on MIMIC-sized JPEGs.

    \b
    mrm-stream bench pack --out bench
    """
    import sys

    from mrm_stream.bench.pack import PLOT, RESULT, bench_pack
    from mrm_stream.bench.pack_figure import describe, pack_table
    from mrm_stream.bench.pack_result import PackBenchOptions
    from mrm_stream.progress import progress

    start()
    check_output(out)
    with progress("bench pack", "steps") as advance:
        result = bench_pack(
            out, options=PackBenchOptions(count=count, rounds=rounds, workers=workers or cores()), progress=advance
        )
    click.echo(describe(result))
    click.echo(pack_table(result, terminal=sys.stdout.isatty()))
    click.echo(f"{out / RESULT}, {out / PLOT}")


@bench.command("data")
@click.option("--out", type=DIRECTORY, required=True, help="Directory for data.json, data.png and temporary files.")
@click.option("-n", "count", type=click.IntRange(min=1), default=240, show_default=True, help="Radiographs.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Times that each is measured.")
@click.option(
    "--mosaicml",
    type=FILE,
    default=None,
    metavar="PYTHON",
    help="Interpreter of an environment with mosaicml-streaming, which is skipped without it.",
)
@click.option("--trace", type=FILE, default=None, help="Chrome trace of some batches to write.")
def bench_data(out: Path, count: int, rounds: int, mosaicml: Path | None, trace: Path | None) -> None:
    """Reading, decoding and resuming, beside webdataset, mosaicml-streaming, PIL + torchvision and libjpeg-turbo.

    \b
    mrm-stream bench data --out bench --trace bench/trace.json
    """
    import sys

    from mrm_stream.bench.data import PLOT, RESULT, bench_data
    from mrm_stream.bench.data_figure import data_table
    from mrm_stream.bench.data_result import DataBenchOptions
    from mrm_stream.progress import progress

    start()
    for path in (out, trace):
        if path is not None:
            check_output(path)
    with progress("bench data", "steps") as advance:
        options = DataBenchOptions(count=count, rounds=rounds)
        result = bench_data(out, options=options, mosaicml=mosaicml, trace=trace, progress=advance)
    click.echo(data_table(result, terminal=sys.stdout.isatty()))
    click.echo(", ".join(str(path) for path in (out / RESULT, out / PLOT, trace) if path is not None))


@bench.command("gpu")
@click.option("--out", type=DIRECTORY, required=True, help="Directory for gpu.json, logs and temporary files.")
@click.option("--tiny", is_flag=True, help="The same code at tiny sizes, which a CPU manages.")
@click.option("--only", multiple=True, metavar="PART", help="Run this part alone; may be given several times.")
def bench_gpu(out: Path, tiny: bool, only: tuple[str, ...]) -> None:
    """Check and time everything on one GPU, in under 9 minutes; exit status 1 if a check fails.

    \b
    mrm-stream bench gpu --out bench/gpu
    """
    from mrm_stream.bench.gpu import PARTS, RESULT, bench_gpu, has_failed, summary

    start()
    names = [part.name for part in PARTS]
    for name in only:
        if name not in names:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(names)}", param_hint="--only")
    result = bench_gpu(out, tiny=tiny, only=only, progress=click.echo)
    click.echo(f"{summary(result)}; {out / RESULT}")
    if has_failed(result):
        raise SystemExit(1)
