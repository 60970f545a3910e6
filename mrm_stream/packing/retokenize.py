"""Tokenizes the reports of a packed set again, from their stored text; all else is copied as it is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from mrm_stream.errors import ConfigError, RecordError, ShardError, SourceError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import DICTIONARY, QUARANTINE, TOKENIZER
from mrm_stream.formats.manifest import (
    DICTIONARY_LIMIT,
    QUARANTINE_LIMIT,
    Manifest,
    ReportsEntry,
    read_manifest,
    shard_entry_from_json,
    write_manifest,
)
from mrm_stream.formats.shard import MASK_MEMBER, SHARD_LIMIT, ShardEntry, canonical_json, verify_shard
from mrm_stream.packing.journal import Journal, open_journal
from mrm_stream.packing.pack import MAX_BAD
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.packing.verify import common_faults
from mrm_stream.packing.worker import Rejected, reason_of, tokens_of
from mrm_stream.packing.workers import Workers, check_cluster, run_all
from mrm_stream.storage.files import is_within, read_whole
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.strict import parse_json
from mrm_stream.text.sections import text_to_tokenize
from mrm_stream.text.tokenizer import load_tokenizer, train_tokenizer


@dataclass(frozen=True, slots=True)
class _Task:
    """What all shards have in common."""

    source: AnyPath
    journal: Journal
    members: tuple[str, ...]
    sections: tuple[str, ...]
    reports: ReportsEntry


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Which tokens the reports of a set shall have.

    Raises:
        ConfigError: `length` is below 1.
    """

    tokenizer: AnyPath | None = None
    """File of the tokenizer to use."""
    vocabulary: int | None = None
    """Train one of so many entries, at most, on the set's training split. With neither, the set's own is used."""
    sections: tuple[str, ...] | None = None
    """Of the reports; none: the whole report; None: those that the set was packed with."""
    length: int | None = None
    """Tokens of a report that are kept, at most; None: all."""

    def __post_init__(self) -> None:
        """Check the length."""
        if self.length is not None and self.length < 1:
            raise ConfigError("must be at least 1", where="length")


def check_changes(directory: AnyPath, choice: TokenChoice) -> None:
    """Check that `retokenize` would give a set other tokens.

    Raises:
        ConfigError: They would be those that it has: all of it would be copied.
        ShardError: There is no set.
    """
    old = read_manifest(directory)
    if old.reports is None or choice.tokenizer is not None or choice.vocabulary is not None:
        return
    if choice.sections in (None, old.options.sections) and choice.length == old.reports.length:
        raise ConfigError(
            "nothing would change: these are the tokens that the set has",
            where=directory,
            remedy="Give --tokenizer, --vocabulary, or --sections or --length other than the set's. To copy it: cp -r.",
        )


def retokenize(
    directory: AnyPath,
    out: AnyPath,
    choice: TokenChoice | None = None,
    *,
    max_bad: float = MAX_BAD,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write a packed set again with other tokens.

    Interrupted, it goes on as `pack` does; the same arguments give the same bytes.

    Args:
        directory: Of the set, which stays as it is.
        out: Directory to make.
        choice: The tokens; by default those of whole reports, by the set's own tokenizer.
        max_bad: Share of the samples that may be skipped because they have none of the sections.
        workers: By default this process.
        progress: Called with shards done, and shards in all.

    Returns:
        The manifest, which is then in `out`.

    Raises:
        ShardError: The set is damaged or has no reports, or `out` is in use or within the set.
        SourceError: Too many samples have none of the sections.
        StorageError: `out` cannot be written to.
    """
    choice = choice or TokenChoice()
    old = read_manifest(directory)
    if old.reports is None:
        raise ShardError("the set has no reports", where=directory, remedy="Give a set that was packed with reports.")
    if is_within(out, directory):
        raise ShardError(
            "a set within a set", where=out, remedy="Choose a directory that is not in the one of the set."
        )
    # They would be copied, and then vouched for: quarantine.jsonl too, which tells `repair` what was skipped.
    for fault in common_faults(directory, old):
        raise ShardError(fault.what, where=directory / fault.file, remedy=fault.remedy or "Repair the set first.")
    options = old.options if choice.sections is None else replace(old.options, sections=choice.sections)
    choices = [old.fingerprint, list(options.sections), choice.vocabulary, choice.length]
    given = None if choice.tokenizer is None else load_tokenizer(choice.tokenizer).to_str()
    fingerprint = hashlib.sha256(canonical_json(["retokenize", *choices, given])).hexdigest()
    workers = workers or Workers()
    check_cluster(workers)
    with open_journal(out, fingerprint) as journal:
        if journal.is_finished:
            journal.close()
            return read_manifest(out)
        try:
            reports = _publish_files(journal, directory, old, options.sections, choice)
        except SourceError:
            journal.discard()  # as `pack` does: `out` is free for a better choice
            raise
        here = Journal(journal.out.resolve()) if isinstance(journal.out, Path) else journal
        source = directory.resolve() if isinstance(directory, Path) else directory
        task = _Task(source, here, old.members, options.sections, reports)
        entries = old.shards()
        results: dict[str, tuple[ShardEntry | None, list[Rejected]]] = {}
        for done, (entry, result) in enumerate(run_all(partial(_rewrite, task), entries, workers), 1):
            results[entry.file] = result
            if progress is not None:
                progress(done, len(entries))
        if choice.vocabulary is not None:
            options = replace(options, vocabulary=choice.vocabulary)
        manifest = _conclude(journal, directory, replace(old, options=options, reports=reports), results, max_bad)
        journal.close()
    return manifest


def _publish_files(
    journal: Journal, directory: AnyPath, old: Manifest, sections: tuple[str, ...], choice: TokenChoice
) -> ReportsEntry:
    """Publish the tokenizer, new or old, and the dictionary as it is."""
    assert old.reports is not None
    tokenizer, vocabulary = choice.tokenizer, choice.vocabulary
    if vocabulary is None:
        learnt = load_tokenizer(tokenizer if tokenizer is not None else directory / TOKENIZER)
    else:
        learnt = train_tokenizer(list(_stored_reports(directory, old, sections)), vocabulary)
    text: str = learnt.to_str(pretty=True)
    dictionary = read_whole(directory / DICTIONARY, DICTIONARY_LIMIT)
    is_own = tokenizer is None and vocabulary is None
    is_retrained = vocabulary is not None or (is_own and old.reports.is_retrained)
    trained_sections = None
    if is_own and old.reports.is_trained:
        before = old.reports.trained_sections
        before = old.options.sections if before is None else before
        trained_sections = None if before == sections else before
    return ReportsEntry(
        tokenizer_sha256=publish_bytes(journal.out / TOKENIZER, text.encode(), staging=journal.folder),
        dictionary_sha256=publish_bytes(journal.out / DICTIONARY, dictionary, staging=journal.folder),
        vocabulary=learnt.get_vocab_size(),
        is_trained=vocabulary is not None or (is_own and old.reports.is_trained),
        length=choice.length,
        is_retrained=is_retrained,
        trained_sections=trained_sections,
    )


def _stored_reports(directory: AnyPath, manifest: Manifest, sections: tuple[str, ...]) -> Iterator[str]:
    """Yield the chosen sections of the training split's reports; reports without any are reported when rewritten."""
    codec = ReportCodec(read_whole(directory / DICTIONARY, DICTIONARY_LIMIT))
    for entry in manifest.splits.get("train", ()):
        for sample in _samples(directory, entry, manifest.members):
            assert sample.report is not None
            report = codec.decompress(sample.report)
            with suppress(RecordError):
                study = parse_json(sample.metadata)["study"]
                yield text_to_tokenize(report, study, sections)


def _rewrite(task: _Task, entry: ShardEntry) -> tuple[ShardEntry | None, list[Rejected]]:
    """Write one shard with new tokens, or keep the one that an interrupted run wrote."""
    name = Path(entry.file).stem
    noted = task.journal.recall(name)
    if noted is not None:
        with suppress(ShardError, KeyError, TypeError, ValueError):
            kept = None if noted["entry"] is None else shard_entry_from_json(noted["entry"])
            if kept is not None:
                verify_shard(task.journal.out, kept, task.members)
            return kept, [Rejected(**line) for line in noted["rejected"]]
    tokenizer = load_tokenizer(task.journal.out / TOKENIZER)
    codec = ReportCodec(read_whole(task.source / DICTIONARY, DICTIONARY_LIMIT))
    rejected: list[Rejected] = []

    def samples() -> Iterator[PackedSample]:
        for sample in _samples(task.source, entry, task.members):
            assert sample.report is not None
            try:
                study = parse_json(sample.metadata)["study"]
                report = codec.decompress(sample.report)
                tokens = tokens_of(report, study, tokenizer, task.sections, task.reports.length)
            except RecordError as error:
                path = f"{entry.file}::{sample.key}"
                rejected.append(Rejected(sample.key, path, reason_of(error), error.what))
            else:
                yield replace(sample, tokens=tokens)

    written = write_shard(task.journal.out / entry.file, samples(), staging=task.journal.folder)
    lines = [asdict(line) for line in rejected]
    task.journal.note(name, {"entry": None if written is None else asdict(written), "rejected": lines})
    return written, rejected


def _samples(directory: AnyPath, entry: ShardEntry, members: tuple[str, ...]) -> Iterator[PackedSample]:
    """Yield the samples of a shard, once it is found to be what the manifest says."""
    index = verify_shard(directory, entry, members)
    data = read_whole(index.path, SHARD_LIMIT)
    for row in range(len(index)):
        contents = index.cut(data, row)
        yield PackedSample(
            index.key(row),
            contents["jpg"],
            contents["json"],
            contents["tok"],
            contents["txt.zst"],
            contents.get(MASK_MEMBER),
        )


def _conclude(
    journal: Journal,
    directory: AnyPath,
    new: Manifest,
    results: dict[str, tuple[ShardEntry | None, list[Rejected]]],
    max_bad: float,
) -> Manifest:
    """Publish the quarantine, the old lines first, and then the manifest."""
    rejected = sorted((line for _, lines in results.values() for line in lines), key=lambda line: line.key)
    total = sum(entry.samples for entry in new.shards())
    if len(rejected) > max_bad * total:
        raise SourceError(
            f"{len(rejected)} of {total} samples have no tokens (most often: {rejected[0].detail}); {max_bad:.2%} may",
            where=directory,
            remedy="Choose other sections, or run again with a larger --max-bad: what is done is kept.",
        )
    lines = read_whole(directory / QUARANTINE, QUARANTINE_LIMIT)
    lines += b"".join(canonical_json(asdict(line)) + b"\n" for line in rejected)
    splits = {
        split: tuple(written for entry in entries if (written := results[entry.file][0]) is not None)
        for split, entries in new.splits.items()
    }
    manifest = replace(
        new,
        quarantined=dict(Counter(new.quarantined) + Counter(line.reason for line in rejected)),
        quarantine_sha256=publish_bytes(journal.out / QUARANTINE, lines, staging=journal.folder),
        splits={split: entries for split, entries in splits.items() if entries},
    )
    write_manifest(journal.out, manifest, staging=journal.folder)
    return manifest
