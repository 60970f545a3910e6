"""Packs again the shards of a set that `verify` found wrong, from the source: the same bytes, or none."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mrm_stream.errors import ShardError
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.lock import locked
from mrm_stream.packing.manifest import DICTIONARY, TOKENIZER, Manifest, ReportsEntry, read_manifest
from mrm_stream.packing.pack import make_job
from mrm_stream.packing.plan import SetPlan, ShardPlan, plan_set
from mrm_stream.packing.reports_files import learn_files
from mrm_stream.packing.shard import ShardEntry, index_path, write_shard
from mrm_stream.packing.verify import STRAY, Fault, verify
from mrm_stream.packing.worker import Job, Rejected, pack_records
from mrm_stream.packing.workers import Workers, run_all
from mrm_stream.publish import publish_bytes, publishing
from mrm_stream.storage import Place, remove

_LOCK = ".repair.lock"
_CHUNK = 8 << 20
_CHANGED = "The images or reports, or the libraries that pack them, have changed since: pack the set anew."


def repair(
    directory: Place,
    root: Place,
    *,
    lists: Place | None = None,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Fault], list[Fault]]:
    """Mend a set: pack wrong shards again, learn tokenizer and dictionary again, remove files that are in no list.

    A file is replaced only by one that has the manifest's SHA-256: the set is then, to the bit, what it was.

    Args:
        directory: Of the set.
        root: Where the data set lies that it was packed from.
        lists: As given when it was packed.
        workers: What verifies and packs; by default this process.
        progress: Called with shards packed again, and how many there are to pack.

    Returns:
        The faults found, and those that are left.

    Raises:
        ShardError: The manifest is damaged; what comes of the source is no longer what was packed; or another process
            repairs this set.
        SourceError: The source is not laid out as it should be.
    """
    workers = workers or Workers()
    manifest = read_manifest(directory)
    if manifest.by_lists and lists is None:
        raise ShardError("was packed by list files", where=directory, remedy="Give their folder with --lists.")
    with locked(directory / _LOCK, directory):
        try:
            return _repair(directory, root, manifest, lists, workers, progress)
        finally:
            remove(directory / _LOCK)  # by its holder alone


def _repair(
    directory: Place,
    root: Place,
    manifest: Manifest,
    lists: Place | None,
    workers: Workers,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Fault], list[Fault]]:
    faults = verify(directory, workers=workers)
    if not faults:
        return [], []
    plan = plan_set(manifest.source, root, manifest.options, lists if manifest.by_lists else None)
    if manifest.reports is not None:
        _mend_reports_files(directory, plan, manifest.reports, {fault.file for fault in faults})
    wrong = {fault.shard for fault in faults}
    entries = {Path(entry.file).stem: entry for entry in manifest.shards() if entry.file in wrong}
    shards = [shard for shard in plan.shards if shard.name in entries]
    if len(shards) != len(entries):
        raise ShardError("the source no longer has the records of some shards", where=root, remedy=_CHANGED)
    again = partial(_pack_again, make_job(plan, Journal(directory), manifest.reports), entries)
    for done, _ in enumerate(run_all(again, shards, workers), start=1):
        if progress is not None:
            progress(done, len(shards))
    for fault in faults:
        if fault.what == STRAY:
            remove(directory / fault.file)
    return faults, verify(directory, workers=workers)


def _pack_again(job: Job, entries: dict[str, ShardEntry], plan: ShardPlan) -> None:
    """Pack one shard aside, and put it in its place if it is what it was."""
    entry = entries[plan.name]
    with tempfile.TemporaryDirectory(prefix="mrm-stream-") as folder:
        aside = Path(folder) / entry.file
        samples = (packed[0] for packed in pack_records(job, plan.records) if not isinstance(packed, Rejected))
        if write_shard(aside, samples) != entry:
            raise ShardError(f"{entry.file}, packed again, is not what it was", where=job.root, remedy=_CHANGED)
        for path in (aside, index_path(aside)):
            with path.open("rb") as file, publishing(job.journal.out / path.name) as published:
                while chunk := file.read(_CHUNK):
                    published.write(chunk)


def _mend_reports_files(directory: Place, plan: SetPlan, reports: ReportsEntry, wrong: set[str]) -> None:
    if not wrong & {TOKENIZER, DICTIONARY}:
        return
    if TOKENIZER in wrong and not reports.is_trained:
        raise ShardError(
            "the tokenizer is damaged, and was not trained when this set was packed",
            where=directory / TOKENIZER,
            remedy="Copy it there again from where it came; then repair the rest.",
        )
    learnt = learn_files(plan, None if TOKENIZER in wrong else directory / TOKENIZER)
    contents = {TOKENIZER: learnt.tokenizer_text(), DICTIONARY: learnt.dictionary}
    digests = {TOKENIZER: reports.tokenizer_sha256, DICTIONARY: reports.dictionary_sha256}
    for name in sorted(wrong & contents.keys()):
        if hashlib.sha256(contents[name]).hexdigest() != digests[name]:
            raise ShardError(f"{name}, learnt again, is not what it was", where=plan.root, remedy=_CHANGED)
        publish_bytes(directory / name, contents[name])
