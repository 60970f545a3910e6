"""The packing job: lists records, deals them out to shards, packs these in parallel, publishes the manifest last."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrm_stream.errors import ConfigError, RecordError, ShardError, SourceError
from mrm_stream.packing.dictionary import TRAINING_BYTES, learn_dictionary
from mrm_stream.packing.journal import Journal, open_journal
from mrm_stream.packing.manifest import (
    DICTIONARY,
    QUARANTINE,
    TOKENIZER,
    VERSION,
    Manifest,
    read_manifest,
    write_manifest,
)
from mrm_stream.packing.shard import ShardEntry, canonical_json
from mrm_stream.packing.tokenizer import VOCABULARY_LIMIT, load_tokenizer, train_tokenizer
from mrm_stream.packing.worker import Job, Rejected, ShardPlan, ShardResult, die_with_parent, pack_shard, reason_of
from mrm_stream.publish import publish_bytes, sha256_of
from mrm_stream.randomness import Purpose, permutation
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.reading import read_report
from mrm_stream.sources.registry import list_records
from mrm_stream.sources.tables import quoted

_FRONTAL = {"AP", "PA", "FRONTAL"}
_REPORTS_NOTE = "reports"
# Libraries whose next release may make other bytes: an interrupted job is not finished with another one.
_LIBRARIES = ("numpy", "pillow", "simplejpeg", "tokenizers", "zstandard")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackOptions:
    """What a packed set is like; together with the records it decides every byte."""

    short_side: int = 1024
    """Height or width of the packed images, whichever is less, in pixels; smaller ones keep their size."""
    jpeg_quality: int = 95
    samples_per_shard: int = 512
    """At most; the shards of a split differ by one record."""
    seed: int = 0
    """Of the order in which records are dealt out to shards."""
    vocabulary: int = 30_000
    """Entries of the tokenizer that is trained, at most."""
    tokenizer: Path | None = None
    """Use this one instead of training one on the reports."""
    views: Literal["all", "frontal"] = "all"
    """frontal: views that begin with AP, PA or frontal; a record whose view is not known is left out."""

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("short_side", 16, 1 << 14),
            ("jpeg_quality", 1, 100),
            ("samples_per_shard", 1, 1 << 20),
            ("seed", 0, 2**63 - 1),
            ("vocabulary", 1, VOCABULARY_LIMIT),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"must be between {low} and {high}", where=name)
        if self.views not in ("all", "frontal"):
            raise ConfigError("must be all or frontal", where="views")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a packing job is."""

    records: int
    """Done, the bad ones among them."""
    total: int
    bad: int
    bytes_in: int
    """Of the images packed, as found."""
    bytes_out: int
    """Of the shards."""


def pack(
    source: str,
    root: Path,
    out: Path,
    *,
    options: PackOptions | None = None,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Pack a data set into shards.

    The same records and options give the same bytes, whatever the number of workers and however often the job was
    interrupted; run again with the same `out`, it keeps the shards that are whole.

    Args:
        source: Name of the data set's layout, one of `SOURCES`.
        root: Where the data set lies.
        out: Directory to make; absent, empty, or left by an interrupted run of the same job.
        options: What the set is like.
        workers: Processes that pack; 1 packs in this process.
        progress: Called when a shard is done.

    Returns:
        The manifest, which then stands in `out`.

    Raises:
        SourceError: The data set is not laid out as its source expects.
        StorageError: `out` cannot be written to.
        ShardError: `out` is in use; a worker was killed; or no record at all can be used. No
            manifest is written then.
    """
    options = options or PackOptions()
    if workers < 1:
        raise ConfigError("must be at least 1", where="workers")
    records = _choose_views(list_records(source, root), options.views, root)
    plans = plan_shards(records, options)
    with open_journal(out, _fingerprint(source, plans, options)) as journal:
        if journal.is_finished:
            journal.close()
            return read_manifest(out)
        made = _make_reports_files(journal, root, plans, options)
        job = Job(
            root=root.resolve(),
            journal=Journal(out.resolve()),
            short_side=options.short_side,
            jpeg_quality=options.jpeg_quality,
            tokenizer_sha256=made.tokenizer_sha256,
            dictionary_sha256=made.dictionary_sha256,
        )
        results = _pack_shards(job, plans, workers, progress)
        manifest = _conclude(journal, source, options, made, plans, results)
        journal.close()
    return manifest


def plan_shards(records: Sequence[Record], options: PackOptions) -> list[ShardPlan]:
    """Deal records out to shards: a pure function of their keys, their splits and the seed."""
    plans = []
    for stream, split in enumerate(SPLITS):
        chosen = sorted((record for record in records if record.split == split), key=lambda record: record.key)
        if not chosen:
            continue
        order = permutation(options.seed, 0, stream, Purpose.PACKING, len(chosen))
        count = -(-len(chosen) // options.samples_per_shard)
        # Shards of equal length: a last one of a few samples would weigh in a shuffle like a full one.
        for number, places in enumerate(np.array_split(order, count)):
            plans.append(ShardPlan(f"{split}-{number:05d}", tuple(chosen[place] for place in places)))
    return plans


def _choose_views(records: list[Record], views: str, root: Path) -> list[Record]:
    if views == "all":
        return records
    frontal = [record for record in records if record.view.upper().partition(" ")[0] in _FRONTAL]
    _logger.info("%d of %d records are frontal views", len(frontal), len(records))
    if not frontal:
        raise SourceError("no record is a frontal view", where=root, remedy="Pack all views.")
    return frontal


def _fingerprint(source: str, plans: Sequence[ShardPlan], options: PackOptions) -> str:
    """Return a digest of all that decides the set's bytes, save the contents of the images and report files."""
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer).to_str()
    choices: dict[str, Any] = asdict(options) | {"tokenizer": tokenizer}
    digest = hashlib.sha256(canonical_json([VERSION, source, choices, {name: version(name) for name in _LIBRARIES}]))
    for plan in plans:
        for record in plan.records:
            # A canonical spelling of a record; asdict alone is slow, and labels may be any mapping.
            fields = [record.key, record.image_path, record.report_path, record.report_text, record.subject]
            digest.update(canonical_json([*fields, record.study, record.view, record.split, dict(record.labels)]))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _ReportsFiles:
    """Tokenizer and dictionary, as published."""

    tokenizer_sha256: str
    dictionary_sha256: str
    vocabulary: int


def _make_reports_files(
    journal: Journal, root: Path, plans: Sequence[ShardPlan], options: PackOptions
) -> _ReportsFiles:
    """Publish the tokenizer and the dictionary of a set, or keep those of an interrupted run.

    Both are learnt from the training split's reports; the images of those reports are not looked at yet.
    """
    noted = journal.recall(_REPORTS_NOTE)
    paths = {"tokenizer_sha256": journal.out / TOKENIZER, "dictionary_sha256": journal.out / DICTIONARY}
    if noted is not None and all(path.exists() and sha256_of(path) == noted[name] for name, path in paths.items()):
        return _ReportsFiles(**noted)
    reasons: Counter[str] = Counter()
    reports: list[str] = []
    enough = None if options.tokenizer is None else TRAINING_BYTES
    for report in _read_training_reports(root, plans, reasons):
        reports.append(report)
        if enough is not None and (enough := enough - len(report)) <= 0:
            break
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
    elif reports:
        _logger.info("training a tokenizer on %d reports", len(reports))
        tokenizer = train_tokenizer(reports, options.vocabulary)
    else:
        journal.discard()
        why = f": most often {reasons.most_common(1)[0][0]}" if reasons else ""
        raise SourceError(
            f"the training split has no report to train a tokenizer on{why}",
            where=root,
            remedy="Check the reports, or give a tokenizer.",
        )
    made = _ReportsFiles(
        tokenizer_sha256=publish_bytes(
            paths["tokenizer_sha256"], tokenizer.to_str(pretty=True).encode(), staging=journal.folder
        ),
        dictionary_sha256=publish_bytes(paths["dictionary_sha256"], learn_dictionary(reports), staging=journal.folder),
        vocabulary=tokenizer.get_vocab_size(),
    )
    journal.note(_REPORTS_NOTE, asdict(made))
    return made


def _read_training_reports(root: Path, plans: Sequence[ShardPlan], reasons: Counter[str]) -> Iterator[str]:
    """Yield the training split's reports in the order of the shards; count in `reasons` those that cannot be read."""
    for plan in plans:
        for record in plan.records:
            if record.split != "train":
                continue
            try:
                yield read_report(root, record)
            except RecordError as error:
                reasons[reason_of(error)] += 1


def _pack_shards(
    job: Job, plans: Sequence[ShardPlan], workers: int, progress: Callable[[Progress], None] | None
) -> dict[str, ShardResult]:
    """Pack all shards and return the results by the plans' names."""
    results: dict[str, ShardResult] = {}
    total = sum(len(plan.records) for plan in plans)
    done = Progress(0, total, 0, 0, 0)
    for plan, result in _pack_each(job, plans, min(workers, len(plans))):
        results[plan.name] = result
        done = Progress(
            records=done.records + len(plan.records),
            total=total,
            bad=done.bad + len(result.rejected),
            bytes_in=done.bytes_in + result.bytes_in,
            bytes_out=done.bytes_out + (result.entry.bytes if result.entry else 0),
        )
        if progress is not None:
            progress(done)
    return results


def _pack_each(job: Job, plans: Sequence[ShardPlan], workers: int) -> Iterator[tuple[ShardPlan, ShardResult]]:
    """Yield each plan with its result, as they are done; on any exception every worker is gone before it goes on."""
    if workers == 1:
        for plan in plans:
            yield plan, pack_shard(job, plan)
        return
    # Spawned, not forked: a child forked while another thread holds a lock waits for it for ever.
    context = multiprocessing.get_context("spawn")
    alive_in_worker, alive_here = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, initializer=die_with_parent, initargs=(alive_in_worker,))
    try:
        futures: dict[Future[ShardResult], ShardPlan] = {executor.submit(pack_shard, job, plan): plan for plan in plans}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            "a worker process was killed",
            where=job.journal.out,
            remedy="Often memory was short: take fewer workers. Run the same command again to go on where it stopped.",
        ) from error
    finally:
        alive_here.close()  # Workers still at a shard end at once.
        executor.shutdown(wait=True, cancel_futures=True)
        alive_in_worker.close()


def _conclude(
    journal: Journal,
    source: str,
    options: PackOptions,
    made: _ReportsFiles,
    plans: Sequence[ShardPlan],
    results: dict[str, ShardResult],
) -> Manifest:
    """Publish the quarantine and then the manifest."""
    rejected = sorted(
        (line for result in results.values() for line in result.rejected), key=lambda rejected: rejected.key
    )
    reasons = Counter(line.reason for line in rejected)
    splits: dict[str, list[ShardEntry]] = {}
    for plan in plans:
        entry = results[plan.name].entry
        if entry is not None:
            splits.setdefault(plan.records[0].split, []).append(entry)
    if not splits:
        journal.discard()
        raise _nothing_usable(rejected, reasons, journal.out)
    if rejected:
        _logger.warning("%d records are quarantined: %s", len(rejected), dict(reasons.most_common()))
    lines = b"".join(canonical_json(asdict(line)) + b"\n" for line in rejected)
    publish_bytes(journal.out / QUARANTINE, lines, staging=journal.folder)
    manifest = Manifest(
        source=source,
        seed=options.seed,
        short_side=options.short_side,
        jpeg_quality=options.jpeg_quality,
        samples_per_shard=options.samples_per_shard,
        vocabulary=made.vocabulary,
        tokenizer_sha256=made.tokenizer_sha256,
        dictionary_sha256=made.dictionary_sha256,
        choices={
            "views": options.views,
            "report": "whole",
            "tokenizer": "trained" if options.tokenizer is None else "given",
        },
        quarantined=dict(reasons),
        splits={split: tuple(entries) for split, entries in splits.items()},
    )
    write_manifest(journal.out, manifest, staging=journal.folder)
    return manifest


def _nothing_usable(rejected: Sequence[Rejected], reasons: Counter[str], out: Path) -> ShardError:
    reason, count = reasons.most_common(1)[0]
    example = next(line for line in rejected if line.reason == reason)
    return ShardError(
        f"nothing was packed: none of {len(rejected)} records can be used, {count} of them for {reason!r}",
        where=out,
        remedy=f"For example {quoted(example.image_path)}: {example.detail}.",
    )
