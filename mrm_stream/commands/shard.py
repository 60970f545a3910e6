"""The command that packs a data set."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mrm_stream.commands.common import (
    FILE,
    PATH_OR_URL,
    F,
    check_one_tokenizer,
    counted,
    resumable,
    start,
    with_links,
    with_permission,
    with_workers,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from mrm_stream.formats.manifest import Manifest
    from mrm_stream.formats.options import PackOptions
    from mrm_stream.packing.estimate import Estimate
    from mrm_stream.packing.workers import Workers
    from mrm_stream.storage.paths import AnyPath


def one_of(name: str, *kinds: str, what: str) -> Callable[[F], F]:
    """Return an option with these values, the first by default."""
    return click.option(name, type=click.Choice(kinds), default=kinds[0], show_default=True, help=what)


@click.command()
@click.option("--src", "source", required=True, help="What lies at --root: mimic, nih, ...; any other word lists them.")
@click.option("--root", type=PATH_OR_URL, required=True, help="The data set's directory.")
@click.option("--out", type=PATH_OR_URL, required=True, help="New directory for the shards.")
@click.option(
    "--lists", type=PATH_OR_URL, help="The reference code's list files, which then say what is in which split."
)
@with_links
@click.option(
    "--short-side", type=click.IntRange(32, 1 << 14), default=1024, show_default=True, help="Pixels; never up-scaled."
)
@one_of("--views", "all", "frontal", what="Which to pack.")
@click.option("--sections", help="Of the reports, in order: findings,impression.  [default: the whole report]")
@one_of(
    *("--uncertain", "keep", "ignore", "zero", "one", "mixed"),
    what="Labels of -1: as they are, dropped, absent, present, or by the finding as is usual for CheXpert.",
)
@one_of("--rendering", "window", "equalized", what="DICOM to grey: by the file's window, or as MIMIC-CXR-JPG was made.")
@click.option(
    "--bits",
    type=click.IntRange(8, 16),
    help="Of the values in 16-bit PNGs.  [default: as few as hold each picture, stray pixels apart]",
)
@one_of(
    *("--blank", "quarantine", "keep"),
    what="Images with nothing on them: 999 of 1,000 pixels within 20 of 256 grey levels.",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=64, max=65_536),
    help="Size of the tokenizer that is trained, at most.  [default: 30000]",
)
@click.option("--tokenizer", type=FILE, help="Use this tokenizer.json instead of training one.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of the records.")
@click.option(
    "--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share that may be skipped."
)
@with_workers
@click.option("--dry-run", is_flag=True, help="Only say what would be packed, and how large it would be.")
@with_permission("out", "--out")
def shard(
    source: str,
    root: AnyPath,
    out: AnyPath,
    lists: AnyPath | None,
    tokenizer: Path | None,
    max_bad: float,
    workers: Workers,
    dry_run: bool,
    **choices: Any,
) -> None:
    """Pack radiographs, and reports where there are any, into tar shards.

    Interrupted, the same command goes on where it stopped. --root, --out and --lists may be URLs, as s3://bucket/set.

    \b
    mrm-stream shard --src mimic --root /data/mimic-cxr-jpg --out shards/mimic
    """
    from mrm_stream.errors import command_line
    from mrm_stream.packing.estimate import estimate
    from mrm_stream.packing.pack import Progress, Supervision, pack
    from mrm_stream.packing.plan import SetPlan, check_choices, plan_set
    from mrm_stream.progress import progress
    from mrm_stream.sources.registry import find_source
    from mrm_stream.storage.files import names_in

    start()
    conditions = find_source(source).conditions
    vocabulary: int | None = choices["vocabulary"]
    check_one_tokenizer(tokenizer, vocabulary)
    options = pack_options(**choices)
    if dry_run:
        plan = plan_set(source, root, options, lists)
        check_choices(plan, tokenizer=tokenizer, vocabulary=vocabulary)
        guess = estimate(plan, tokenizer)
        tell_estimate(guess, None if workers.scheduler is not None else workers.processes)
        return

    def listed(plan: SetPlan) -> None:
        check_choices(plan, tokenizer=tokenizer, vocabulary=vocabulary)
        if conditions and not names_in(out):
            click.echo(f"Conditions of use: {conditions}")

    started = time.perf_counter()
    with resumable(), unwinding_on_sigterm(), progress("packing", "records") as advance:

        def show(state: Progress) -> None:
            nonlocal started
            if state.records == state.kept:
                started = time.perf_counter()  # the speed is that of packing, not of checking what is there already
            seconds = max(time.perf_counter() - started, 1e-9)
            speed = f"{state.bytes_in / 1e6 / seconds:.1f} MB/s in, {state.bytes_out / 1e6 / seconds:.1f} MB/s out"
            kept = f", {state.kept} kept" if state.kept else ""
            advance(state.records, state.total, f"{speed}, {state.bad} bad{kept}", state.kept)

        manifest = pack(
            source,
            root,
            out,
            options=options,
            lists=lists,
            tokenizer=tokenizer,
            workers=workers,
            supervision=Supervision(max_bad, planned=listed, progress=show),
        )
    tell_manifest(manifest, out)
    if manifest.reports is not None:
        words = ("train", "--config", "configs/mrm_vit_b16.yaml", "--shards", out, "--out", "runs/first")
        click.echo(f"Next: {command_line('mrm-stream', *words)}")


def pack_options(*, sections: str | None, vocabulary: int | None, **choices: Any) -> PackOptions:
    """Return the options as the command line gives them; None: not given.

    Raises:
        ConfigError: A section's name is none.
    """
    from mrm_stream.formats.options import PackOptions
    from mrm_stream.text.sections import check_sections

    if sections is not None:
        choices["sections"] = check_sections(sections)
    if vocabulary is not None:
        choices["vocabulary"] = vocabulary
    return PackOptions(**choices)


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Let SIGTERM, which schedulers send before they kill, end the block as an exception does: it tidies up first.

    The process ends with 143, as the shell tells of a SIGTERM. A signal that is repeated meanwhile is the same request.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell_manifest(manifest: Manifest, out: AnyPath) -> None:
    """Say what has been packed, what was assumed for it, and what was skipped."""
    from mrm_stream.formats.manifest import tell_bits, tell_padded

    splits = ", ".join(f"{manifest.samples(split):,} {split}" for split in manifest.splits)
    size = sum(entry.bytes for entry in manifest.shards()) / 1e9
    words = "no reports" if manifest.reports is None else f"a vocabulary of {manifest.reports.vocabulary:,}"
    click.echo(f"{splits} samples, {size:.3g} GB, {words}: {out}")
    if manifest.assumed_bits:
        click.echo(f"16-bit PNGs: {tell_bits(manifest.assumed_bits)}; --bits settles it")
    if manifest.padded:
        click.echo(tell_padded(manifest.padded))
    if manifest.quarantined:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.quarantined.items())
        click.echo(f"Skipped: {reasons}; each is named in {out / 'quarantine.jsonl'}")


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(20), duration(60), duration(170), duration(7_500)
        ('under a minute', '1 minute', '3 minutes', '2.1 hours')
    """
    if seconds < 60:
        return "under a minute"
    if seconds < 90 * 60:
        return counted(round(seconds / 60), "minute")
    return f"{seconds / 3600:,.1f} hours"


def tell_estimate(guess: Estimate, processes: int | None) -> None:
    """Say what would be packed, and how long so many processes take; None: a cluster's, whose number is not known."""
    from mrm_stream.formats.manifest import tell_bits

    if processes is None:
        time_taken = f"about {duration(guess.seconds)} of one process's time, which the cluster's share"
    else:
        time_taken = (
            f"about {duration(guess.seconds / processes)} with {processes} process{'' if processes == 1 else 'es'}"
        )
    splits = ", ".join(f"{count:,} {split}" for split, count in guess.splits.items())
    views = ", ".join(f"{count:,} {view}" for view, count in guess.views.items())
    click.echo(f"{guess.records:,} records of {guess.subjects:,} known subjects in {guess.shards:,} shards: {splits}")
    click.echo(f"Views: {views}")
    click.echo(
        f"From {guess.tried} records tried: {guess.bytes_in / 1e9:.3g} GB of images would become "
        f"{guess.bytes_out / 1e9:.3g} GB of shards, in {time_taken}"
    )
    if guess.assumed_bits:
        click.echo(f"16-bit PNGs among those tried: {tell_bits(guess.assumed_bits)}; --bits settles it")
    if guess.bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in guess.bad.items())
        click.echo(f"Bad among those tried: {reasons}")
