"""Commands about a packed set: check it, look at it, repair it, tokenize it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrm_stream.commands.common import (
    FILE,
    PATH_OR_URL,
    check_one_tokenizer,
    check_output,
    counted,
    resumable,
    start,
    with_links,
    with_permission,
    with_workers,
)

if TYPE_CHECKING:
    from mrm_stream.packing.verify import Fault
    from mrm_stream.packing.workers import Workers
    from mrm_stream.storage.paths import AnyPath

_SHOWN = 20
"""Faults that are listed one by one."""


@click.command()
@click.argument("directory", type=PATH_OR_URL)
@click.option("--decode", is_flag=True, help="Decode every image, mask, token stream and report as well.")
@with_workers
def verify(directory: AnyPath, decode: bool, workers: Workers) -> None:
    """Check a packed set, every byte of it; exit with 1 and name what is wrong.

    \b
    mrm-stream verify shards/mimic --decode
    """
    from mrm_stream.packing.verify import verify
    from mrm_stream.progress import progress

    start()
    with progress("verifying", "shards") as advance:
        faults = verify(
            directory,
            decode=decode,
            workers=workers,
            progress=lambda done, total, found: advance(done, total, f"{found} faults"),
        )
    _tell_faults(faults)
    if faults:
        raise click.ClickException(f"{directory}: {counted(len(faults), 'fault')}{_remedies(faults, directory)}")
    click.echo(f"{directory}: no fault found{'' if decode else ' (every checksum; --decode looks at each sample)'}")


@click.command()
@click.argument("directory", type=PATH_OR_URL)
@click.option("--out", type=FILE, help="HTML page to write.  [default: DIRECTORY's name, .html, here]")
@click.option("-n", "count", type=click.IntRange(0, 500), default=24, show_default=True, help="Radiographs to show.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of radiographs.")
def inspect(directory: AnyPath, out: Path | None, count: int, seed: int) -> None:
    """Say what a packed set holds, and draw it on an HTML page that needs no network.

    The page shows radiographs: treat it as you treat the data set.

    \b
    mrm-stream inspect shards/mimic --out mimic.html
    """
    from mrm_stream.errors import ConfigError
    from mrm_stream.packing.summary import summarise
    from mrm_stream.progress import progress
    from mrm_stream.visual.set_lines import summary_lines
    from mrm_stream.visual.set_page import write_set_page

    start()
    page = out or Path(f"{directory.name or 'set'}.html")
    if page.suffix != ".html":
        raise ConfigError("pages are written as HTML", where=page, remedy="Give a name that ends in .html.")
    check_output(page)
    with progress("inspecting", "shards") as advance:
        summary = summarise(directory, contact=count, seed=seed, progress=lambda done, total: advance(done, total, ""))
    for line in summary_lines(summary):
        click.echo(line)
    write_set_page(summary, directory, page)
    click.echo(f"The page: {page}")


@click.command()
@click.argument("directory", type=PATH_OR_URL)
@click.option("--root", type=PATH_OR_URL, required=True, help="The data set that it was packed from.")
@click.option("--lists", type=PATH_OR_URL, help="As given when it was packed.")
@with_links
@with_workers
@with_permission("directory", "DIRECTORY")
def repair(directory: AnyPath, root: AnyPath, lists: AnyPath | None, workers: Workers) -> None:
    """Pack again, from the source, the shards that `verify` finds wrong; the set is then what it was, to the bit.

    \b
    mrm-stream repair shards/mimic --root /data/mimic-cxr-jpg
    """
    from mrm_stream.packing.repair import repair
    from mrm_stream.progress import progress

    start()
    with progress("repairing", "shards") as advance:
        found, left = repair(
            directory,
            root,
            lists=lists,
            workers=workers,
            progress=lambda done, total: advance(done, total, ""),
        )
    _tell_faults(left)
    if left:
        remedies = _remedies([fault for fault in left if fault.remedy], directory)
        raise click.ClickException(f"{directory}: {len(left)} of {counted(len(found), 'fault')} left{remedies}")
    click.echo(f"{directory}: {counted(len(found), 'fault')} repaired" if found else f"{directory}: there was no fault")


@click.command()
@click.argument("directory", type=PATH_OR_URL)
@click.option("--out", type=PATH_OR_URL, required=True, help="New directory for the shards.")
@click.option("--tokenizer", type=FILE, help="Use this tokenizer.json.  [default: the set's own]")
@click.option(
    "--vocabulary", type=click.IntRange(min=64, max=65_536), help="Train one of this size on the set's reports."
)
@click.option("--sections", help="Of the reports, in order, or `whole`.  [default: as packed]")
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a report to keep.  [default: all]")
@click.option(
    "--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share that may be skipped."
)
@with_workers
@with_permission("out", "--out")
def tokenize(
    directory: AnyPath,
    out: AnyPath,
    tokenizer: Path | None,
    vocabulary: int | None,
    sections: str | None,
    length: int | None,
    max_bad: float,
    workers: Workers,
) -> None:
    """Tokenize a packed set's reports again, from the text in it; images are copied untouched.

    \b
    mrm-stream tokenize shards/mimic --out shards/mimic-findings --sections findings
    """
    from mrm_stream.commands.shard import tell_manifest
    from mrm_stream.packing.retokenize import TokenChoice, check_changes, retokenize
    from mrm_stream.progress import progress
    from mrm_stream.text.sections import check_sections

    start()
    check_one_tokenizer(tokenizer, vocabulary)
    wanted = None if sections is None else () if sections == "whole" else check_sections(sections)
    choice = TokenChoice(tokenizer, vocabulary, wanted, length)
    check_changes(directory, choice)
    with resumable(), progress("tokenizing", "shards") as advance:
        manifest = retokenize(
            directory,
            out,
            choice,
            max_bad=max_bad,
            workers=workers,
            progress=lambda done, total: advance(done, total, ""),
        )
    tell_manifest(manifest, out)


def _tell_faults(faults: list[Fault]) -> None:
    for fault in faults[:_SHOWN]:
        click.echo(str(fault))
    if len(faults) > _SHOWN:
        click.echo(f"... and {len(faults) - _SHOWN} more")


def _remedies(faults: list[Fault], directory: AnyPath) -> str:
    """Return a line for each remedy: `repair` is named only where it can repair some of the faults."""
    from mrm_stream.errors import command_line

    repair_it = f"{command_line('mrm-stream', 'repair', directory)} --root SOURCE repairs what it can."
    lines = [repair_it] * any(not fault.remedy for fault in faults)
    lines += sorted({fault.remedy for fault in faults if fault.remedy})
    return "".join(f"\n  {line}" for line in lines)
