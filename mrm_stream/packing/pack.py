"""The packing job: plans the set, packs its shards in parallel, publishes the manifest last."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from mrm_stream.errors import ConfigError, ShardError, SourceError
from mrm_stream.formats.folder import QUARANTINE
from mrm_stream.formats.manifest import Manifest, MasksEntry, ReportsEntry, read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import ShardEntry, canonical_json
from mrm_stream.packing.images.mask import MaskChange
from mrm_stream.packing.journal import Journal, check_vacant, open_journal
from mrm_stream.packing.plan import SetPlan, check_choices, libraries, plan_set
from mrm_stream.packing.reports_files import publish_files
from mrm_stream.packing.worker import Job, Rejected, ShardResult, pack_shard
from mrm_stream.packing.workers import Workers, check_cluster, run_all
from mrm_stream.storage.files import is_within
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.text.tokenizer import load_tokenizer

MAX_BAD = 0.01
"""Share of the records that may be rejected."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Supervision:
    """When a packing job is given up, and who hears of it; none of this changes a byte of the set.

    Raises:
        ConfigError: `max_bad` is no share.
    """

    max_bad: float = MAX_BAD
    """Share of the records that may be rejected."""
    planned: Callable[[SetPlan], None] | None = None
    """Called once the data set is listed, before anything is written."""
    progress: Callable[[Progress], None] | None = None
    """Called whenever a shard is done."""

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.max_bad <= 1:
            raise ConfigError("is a share: 0 to 1", where="max_bad")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a packing job is."""

    records: int
    """Done, the bad ones among them."""
    total: int
    bad: int
    bytes_in: int
    """Of the images that this run packed, as found."""
    bytes_out: int
    """Of the shards that this run packed."""
    kept: int = 0
    """Records done by an interrupted run before this one."""


def pack(
    source: str,
    root: AnyPath,
    out: AnyPath,
    *,
    options: PackOptions | None = None,
    lists: AnyPath | None = None,
    tokenizer: Path | None = None,
    workers: Workers | None = None,
    supervision: Supervision | None = None,
) -> Manifest:
    """Pack a data set into shards.

    The same records and options give the same bytes, whatever the workers and however often the job was interrupted;
    run again with the same `out`, it keeps the shards that are whole.

    Args:
        source: Name of the data set's layout, one of `SOURCES`.
        root: Where the data set lies.
        out: Directory to make; absent, empty, or left by an interrupted run of the same job.
        options: What the set is like.
        lists: Folder of the reference code's list files, which then say what is in which split.
        tokenizer: Use this one instead of training one on the reports.
        workers: What packs; by default this process.
        supervision: When to give up, and whom to tell how far it is.

    Returns:
        The manifest, which is then in `out`.

    Raises:
        ConfigError: A choice would change nothing in this data set; see `check_choices`.
        SourceError: The data set is not laid out as its source expects, or too many of its records are bad.
        StorageError: `out` cannot be written to.
        ClusterError: A worker was killed.
        ShardError: `out` is in use, or no record at all can be used.
            Whichever it is, no manifest is written then.
    """
    supervision = supervision or Supervision()
    check_vacant(out)
    for name, path in (("--root", root), ("--lists", lists)):
        if path is not None and is_within(out, path):
            raise ConfigError(
                f"lies in {name}, {path}: what is written there would be a part of the source the next time",
                where=out,
                remedy="Choose a directory outside of it.",
            )
        if path is not None and is_within(path, out):
            raise ConfigError(f"holds {name}, {path}", where=out, remedy="Choose a directory of its own.")
    plan = plan_set(source, root, options or PackOptions(), lists)
    check_choices(plan, tokenizer=tokenizer)
    if supervision.planned is not None:
        supervision.planned(plan)
    given = None if tokenizer is None else load_tokenizer(tokenizer).to_str()
    workers = workers or Workers()
    check_cluster(workers)
    with open_journal(out, plan.fingerprint(given)) as journal:
        if journal.is_finished:
            journal.close()
            return read_manifest(out)
        reports = publish_files(journal, plan, tokenizer) if plan.has_reports else None
        results = _pack_shards(make_job(plan, journal, reports), plan, workers, supervision)
        manifest = _conclude(journal, plan, reports, results)
        journal.close()
    return manifest


def make_job(plan: SetPlan, journal: Journal, reports: ReportsEntry | None) -> Job:
    """Return what the workers need to pack any shard of a plan."""
    # Workers may have another working directory.
    root = plan.root.resolve() if isinstance(plan.root, Path) else plan.root
    out = journal.out.resolve() if isinstance(journal.out, Path) else journal.out
    return Job(root, Journal(out), plan.options, reports, plan.has_masks, libraries())


def _pack_shards(job: Job, plan: SetPlan, workers: Workers, supervision: Supervision) -> dict[str, ShardResult]:
    """Pack all shards and return the results by the plans' names."""
    results: dict[str, ShardResult] = {}
    done = Progress(0, plan.records, 0, 0, 0)
    for shard, result in run_all(partial(pack_shard, job), plan.shards, workers):
        results[shard.name] = result
        done = Progress(
            records=done.records + len(shard.records),
            total=done.total,
            bad=done.bad + len(result.rejected),
            bytes_in=done.bytes_in + (0 if result.is_kept else result.bytes_in),
            bytes_out=done.bytes_out + (result.entry.bytes if result.entry and not result.is_kept else 0),
            kept=done.kept + (len(shard.records) if result.is_kept else 0),
        )
        if supervision.progress is not None:
            supervision.progress(done)
        # Once the allowed share of all records is used up, the job cannot succeed: it ends now rather than in the
        # morning. But where nothing at all is good, `_conclude` says so, which tells more.
        if done.bad > supervision.max_bad * done.total and any(result.entry for result in results.values()):
            raise _too_many_bad(_rejected(results), done, supervision.max_bad, job)
    return results


def _conclude(
    journal: Journal, plan: SetPlan, reports: ReportsEntry | None, results: dict[str, ShardResult]
) -> Manifest:
    """Publish the quarantine and then the manifest."""
    rejected = _rejected(results)
    reasons = Counter(line.reason for line in rejected)
    splits: dict[str, list[ShardEntry]] = {}
    for shard in plan.shards:
        entry = results[shard.name].entry
        if entry is not None:
            splits.setdefault(shard.records[0].split, []).append(entry)
    if not splits:
        journal.discard()
        raise _nothing_usable(rejected, reasons, journal.out)
    if rejected:
        _logger.warning("%d records are quarantined: %s", len(rejected), dict(reasons.most_common()))
    masks = _masks_entry([change for shard in plan.shards for change in results[shard.name].mask_changes])
    if masks is not None:
        _logger.info("masks: %s", masks)
    manifest = Manifest(
        source=plan.source,
        options=plan.options,
        reports=reports,
        has_masks=plan.has_masks,
        masks=masks,
        assumed_bits=dict(sum((Counter(result.assumed_bits) for result in results.values()), Counter())),
        padded=sum(result.padded for result in results.values()),
        by_lists=plan.by_lists,
        quarantined=dict(reasons),
        quarantine_sha256=publish_bytes(journal.out / QUARANTINE, _as_lines(rejected), staging=journal.folder),
        splits={split: tuple(entries) for split, entries in splits.items()},
    )
    write_manifest(journal.out, manifest, staging=journal.folder)
    return manifest


def _masks_entry(changes: Sequence[MaskChange]) -> MasksEntry | None:
    if not changes:
        return None
    areas = [change.area for change in changes]
    return MasksEntry(
        count=len(changes),
        mean_area_change=round(math.fsum(map(abs, areas)) / len(areas), 6),
        worst_area_change=max(areas, key=abs),
        kept_by_rule=sum(change.kept_by_rule for change in changes),
    )


def _rejected(results: dict[str, ShardResult]) -> list[Rejected]:
    lines = (line for result in results.values() for line in result.rejected)
    return sorted(lines, key=lambda line: line.key)


def _as_lines(rejected: Sequence[Rejected]) -> bytes:
    return b"".join(canonical_json(asdict(line)) + b"\n" for line in rejected)


def _too_many_bad(rejected: Sequence[Rejected], done: Progress, max_bad: float, job: Job) -> SourceError:
    """Return the error, and leave the list of those that are bad so far."""
    path = job.journal.list_rejected(_as_lines(rejected))
    reasons = Counter(line.reason for line in rejected)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return SourceError(
        f"{done.bad} of the first {done.records} records are bad ({listed}); of {done.total}, {max_bad:.2%} may be",
        where=job.root,
        remedy=f"{_example(rejected[0])} Each is named in {path}. Repair the source and run the same command again, or "
        "run it with a larger --max-bad: what is done is kept, and those that were bad are tried again.",
    )


def _nothing_usable(rejected: Sequence[Rejected], reasons: Counter[str], out: AnyPath) -> ShardError:
    reason, count = reasons.most_common(1)[0]
    return ShardError(
        f"nothing was packed: none of {len(rejected)} records can be used, {count} of them for {reason!r}",
        where=out,
        remedy=_example(next(line for line in rejected if line.reason == reason)),
    )


def _example(line: Rejected) -> str:
    # The path may be missing where it could not be printed; the key is always there.
    return f"For example {line.key}, {line.image_path}: {line.detail}."
