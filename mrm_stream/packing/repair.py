"""Packs again the shards of a set that `verify` found wrong, from the source: the same bytes, or none."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import DICTIONARY, QUARANTINE, TOKENIZER
from mrm_stream.formats.manifest import QUARANTINE_LIMIT, Manifest, ReportsEntry, read_manifest
from mrm_stream.formats.shard import ShardEntry, index_path
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.lock import locked
from mrm_stream.packing.pack import make_job
from mrm_stream.packing.plan import SetPlan, ShardPlan, plan_set
from mrm_stream.packing.reports_files import learn_files
from mrm_stream.packing.shard_writer import write_shard
from mrm_stream.packing.verify import STRAY, Fault, verify
from mrm_stream.packing.worker import Job, Rejected, pack_records
from mrm_stream.packing.workers import Workers, run_all
from mrm_stream.sources.registry import check_folders
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import read_whole, remove
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import publish_bytes, publishing
from mrm_stream.strict import parse_json

_LOCK = ".repair.lock"
_CHUNK = 8 << 20
_CHANGED = "the images or reports, or the libraries that pack them, have changed since: pack the set anew"


def repair(
    directory: AnyPath,
    root: AnyPath,
    *,
    lists: AnyPath | None = None,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Fault], list[Fault]]:
    """Repair a set: pack wrong shards again, learn tokenizer and dictionary again, remove files that are in no list.

    A file is replaced only by one that has the manifest's SHA-256: the set is then, to the bit, what it was.

    Args:
        directory: Of the set.
        root: Where the data set lies that it was packed from.
        lists: As given when it was packed.
        workers: What verifies and packs; by default this process.
        progress: Called with shards packed again, and how many there are to pack.

    Returns:
        The faults found, and those that are left, with the reason; the others are repaired whatever is left.

    Raises:
        ShardError: The manifest is damaged, another process repairs this set, or list files are missing or given
            against what it was packed by.
        SourceError: There is no such source, or it is not laid out as it should be.
    """
    workers = workers or Workers()
    manifest = read_manifest(directory)
    if manifest.by_lists and lists is None:
        raise ShardError("was packed by list files", where=directory, remedy="Give their folder with --lists.")
    if lists is not None and not manifest.by_lists:
        raise ShardError("was not packed by list files", where=directory, remedy="Omit --lists.")
    check_folders(root, lists)  # Told now: where there is no fault, nobody else looks there.
    if isinstance(directory, Path):
        directory = directory.resolve()  # workers may have another working directory
    with locked(directory / _LOCK, directory):
        try:
            return _repair(directory, root, manifest, lists, workers, progress)
        finally:
            remove(directory / _LOCK)  # by its holder alone


def _repair(
    directory: AnyPath,
    root: AnyPath,
    manifest: Manifest,
    lists: AnyPath | None,
    workers: Workers,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Fault], list[Fault]]:
    faults = verify(directory, workers=workers)
    if not faults:
        return [], []
    plan = plan_set(manifest.source, root, manifest.options, lists)
    damaged = {fault.file for fault in faults}
    if QUARANTINE in damaged and not manifest.quarantined:
        publish_bytes(directory / QUARANTINE, b"")
    failures: dict[str, str] = {}
    if manifest.reports is not None:
        failures |= _repair_reports_files(directory, plan, manifest.reports, damaged)
    wrong = {fault.shard for fault in faults}
    entries = {Path(entry.file).stem: entry for entry in manifest.shards() if entry.file in wrong}
    if failures:  # every shard's bytes come of them
        failures |= {
            entry.file: f"{' and '.join(sorted(failures))} must be repaired first" for entry in entries.values()
        }
    else:
        failures |= _repair_shards(directory, plan, manifest, entries, workers, progress)
    for fault in faults:
        if fault.what == STRAY:
            remove(directory / fault.file)
    left = verify(directory, workers=workers)
    return faults, [replace(fault, why_left=failures.get(fault.shard or fault.file)) for fault in left]


def _repair_shards(
    directory: AnyPath,
    plan: SetPlan,
    manifest: Manifest,
    entries: dict[str, ShardEntry],
    workers: Workers,
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """Pack shards again; return why, for each that is not what it was."""
    changed, skipped = _CHANGED, _skipped_keys(directory, manifest)
    if skipped is None:
        changed, skipped = f"{QUARANTINE}, which tells what was skipped, is damaged too; or {_CHANGED}", frozenset()
    shards = [
        ShardPlan(shard.name, tuple(record for record in shard.records if record.key not in skipped))
        for shard in plan.shards
        if shard.name in entries
    ]
    failures = {
        entries[name].file: f"the source no longer has its records: {changed}"
        for name in entries.keys() - {shard.name for shard in shards}
    }
    again = partial(_pack_again, make_job(plan, Journal(directory), manifest.reports), entries)
    for done, (shard, is_repaired) in enumerate(run_all(again, shards, workers), start=1):
        if not is_repaired:
            failures[entries[shard.name].file] = f"packed again, it is not what it was: {changed}"
        if progress is not None:
            progress(done, len(shards))
    return failures


def _skipped_keys(directory: AnyPath, manifest: Manifest) -> frozenset[str] | None:
    """Return the keys of the records that have no sample, for whatever reason; None where that is no longer known.

    They are read from the quarantine, as packing the records again would not find them all: tokenizing may have skipped
    what packing did not, and does not keep for which sections packing skipped a record.
    """
    try:
        content = read_whole(directory / QUARANTINE, QUARANTINE_LIMIT)
    except OSError as error:
        refuse_barred(error, directory / QUARANTINE)
        return None
    if hashlib.sha256(content).hexdigest() != manifest.quarantine_sha256:
        return None
    try:
        return frozenset(str(parse_json(line)["key"]) for line in content.splitlines())
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _pack_again(job: Job, entries: dict[str, ShardEntry], plan: ShardPlan) -> bool:
    """Pack one shard to a temporary folder, and publish it if it is, to the bit, what it was; return whether it is."""
    entry = entries[plan.name]
    with tempfile.TemporaryDirectory(prefix="mrm-stream-") as folder:
        aside = Path(folder) / entry.file
        samples = (packed.sample for packed in pack_records(job, plan.records) if not isinstance(packed, Rejected))
        if write_shard(aside, samples) != entry:
            return False
        for path in (aside, index_path(aside)):
            with path.open("rb") as file, publishing(job.journal.out / path.name) as published:
                while chunk := file.read(_CHUNK):
                    published.write(chunk)
    return True


def _repair_reports_files(directory: AnyPath, plan: SetPlan, reports: ReportsEntry, wrong: set[str]) -> dict[str, str]:
    """Learn tokenizer and dictionary again, those that are wrong; return why, for each that is left."""
    failures: dict[str, str] = {}
    if TOKENIZER in wrong and (not reports.is_trained or reports.is_retrained):
        failures[TOKENIZER] = "it was not trained when this set was packed"
    repairable = (wrong & {TOKENIZER, DICTIONARY}) - failures.keys()
    if not repairable:
        return failures
    if reports.trained_sections is not None:
        plan = replace(plan, options=replace(plan.options, sections=reports.trained_sections))
    # Where the tokenizer is lost for good, any tokenizer will do to learn the dictionary: it is not written.
    learnt = learn_files(plan, None if TOKENIZER in wrong else directory / TOKENIZER)
    contents = {TOKENIZER: learnt.tokenizer_text(), DICTIONARY: learnt.dictionary}
    digests = {TOKENIZER: reports.tokenizer_sha256, DICTIONARY: reports.dictionary_sha256}
    for name in sorted(repairable):
        if hashlib.sha256(contents[name]).hexdigest() == digests[name]:
            publish_bytes(directory / name, contents[name])
        else:
            failures[name] = f"learnt again, it is not what it was: {_CHANGED}"
    return failures
