"""The tokenizer and the dictionary of a set: learnt from the training split's reports before any image is looked at."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

from tokenizers import Tokenizer

from mrm_stream.errors import RecordError, SourceError
from mrm_stream.formats.dictionary import TRAINING_BYTES, learn_dictionary
from mrm_stream.formats.folder import DICTIONARY, TOKENIZER
from mrm_stream.formats.manifest import ReportsEntry
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.plan import SetPlan
from mrm_stream.packing.worker import reason_of
from mrm_stream.progress import SECONDS_BETWEEN_LINES
from mrm_stream.records import Record
from mrm_stream.sources.reading import read_report
from mrm_stream.storage.access import is_there
from mrm_stream.storage.paths import AnyPath, is_remote
from mrm_stream.storage.publish import publish_bytes, sha256_of
from mrm_stream.text.sections import text_to_tokenize
from mrm_stream.text.tokenizer import load_tokenizer, train_tokenizer

_NOTE = "reports"
_REQUESTS, _AHEAD = 32, 4096
"""Reports fetched at a time from a remote root, and those asked for before the first is used: each takes some 30 ms."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearntFiles:
    """Contents of the files, not yet written."""

    tokenizer: Tokenizer
    dictionary: bytes
    unread: tuple[str, ...] = ()
    """Keys of the records whose report could not be read, has none of the sections, or says nothing."""

    def tokenizer_text(self) -> bytes:
        """Return the content of the tokenizer's file."""
        text: str = self.tokenizer.to_str(pretty=True)
        return text.encode()


def learn_files(plan: SetPlan, given: AnyPath | None) -> LearntFiles:
    """Return what the training split's reports teach: the same for the same reports.

    Args:
        plan: Of the set.
        given: A tokenizer to use instead of training one.

    Raises:
        SourceError: There is no report to learn from.
        ShardError: The given tokenizer is none of ours.
    """
    reasons: Counter[str] = Counter()
    reports: list[str] = []
    chosen: list[str] = []
    unread: list[str] = []
    held = 0
    for record, report in _training_reports(plan):
        if held >= TRAINING_BYTES and given is not None:
            break
        try:
            if isinstance(report, RecordError):
                raise report
            if held < TRAINING_BYTES:  # the dictionary looks at no more
                reports.append(report)
                held += len(report)
            chosen.append(text_to_tokenize(report, record.study, plan.options.sections))
        except RecordError as error:  # told when its shard is packed
            unread.append(record.key)
            reasons[reason_of(error)] += 1
    if given is not None:
        tokenizer = load_tokenizer(given)
    elif chosen:
        _logger.info("training a tokenizer on %d reports", len(chosen))
        tokenizer = train_tokenizer(chosen, plan.options.vocabulary)
    else:
        why = f": most often {reasons.most_common(1)[0][0]}" if reasons else ""
        raise SourceError(
            f"the training split has no report to train a tokenizer on{why}",
            where=plan.root,
            remedy="Check the reports, or give a tokenizer.",
        )
    return LearntFiles(tokenizer, learn_dictionary(reports), tuple(unread))


def publish_files(journal: Journal, plan: SetPlan, given: AnyPath | None) -> ReportsEntry:
    """Publish tokenizer and dictionary of a set, or keep those of an interrupted run.

    They are kept only if no report has come that could not be read then. Else they are learnt again, and every shard
    that was packed with others is packed again.

    Raises:
        SourceError, ShardError: As `learn_files`; nothing is left behind then.
        StorageError: They cannot be written.
    """
    kept = _recall_files(journal, plan)
    if kept is not None:
        return kept
    try:
        learnt = learn_files(plan, given)
    except SourceError:
        journal.discard()
        raise
    made = ReportsEntry(
        tokenizer_sha256=publish_bytes(journal.out / TOKENIZER, learnt.tokenizer_text(), staging=journal.folder),
        dictionary_sha256=publish_bytes(journal.out / DICTIONARY, learnt.dictionary, staging=journal.folder),
        vocabulary=learnt.tokenizer.get_vocab_size(),
        is_trained=given is None,
    )
    journal.note(_NOTE, {"entry": asdict(made), "unread": learnt.unread})
    return made


def _recall_files(journal: Journal, plan: SetPlan) -> ReportsEntry | None:
    """Return what an interrupted run noted, if the files are what it wrote, and would be learnt again so."""
    noted = journal.recall(_NOTE)
    try:
        entry, unread = ReportsEntry(**noted["entry"]), set(noted["unread"])
    except (TypeError, KeyError):
        return None
    digests = {TOKENIZER: entry.tokenizer_sha256, DICTIONARY: entry.dictionary_sha256}
    for name, digest in digests.items():
        path = journal.out / name
        if not is_there(path) or sha256_of(path) != digest:
            return None
    for record, report in _training_reports(plan, unread):
        with suppress(RecordError):
            if not isinstance(report, RecordError):
                text_to_tokenize(report, record.study, plan.options.sections)
                _logger.warning("reports have come that the tokenizer was not trained on: all is packed again")
                return None
    return entry


def _training_reports(plan: SetPlan, only: set[str] | None = None) -> Iterator[tuple[Record, str | RecordError]]:
    """Yield each record of the training split with its report, or why there is none, in the shards' order.

    A report that several images share is read, and learnt from, once.

    Args:
        plan: Of the set.
        only: Keys of the records to read; None: all.
    """
    records = _one_a_report(record for shard in plan.shards for record in shard.records if record.split == "train")
    if only is not None:
        records = [record for record in records if record.key in only]
    told = time.monotonic()
    for number, (record, report) in enumerate(_read(plan.root, records), start=1):
        yield record, report
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            _logger.info("reading reports: %d/%d", number, len(records))


def _one_a_report(records: Iterable[Record]) -> list[Record]:
    """Return the first record of each report; a report that the listing itself holds is its record's own."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.report_path or record.key, record)
    return list(first.values())


def _read(root: AnyPath, records: Sequence[Record]) -> Iterator[tuple[Record, str | RecordError]]:
    if not is_remote(root):
        for record in records:
            yield record, _report_or_error(root, record)
        return
    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="fetch") as pool:
        for start in range(0, len(records), _AHEAD):
            some = records[start : start + _AHEAD]
            yield from zip(some, pool.map(partial(_report_or_error, root), some), strict=True)


def _report_or_error(root: AnyPath, record: Record) -> str | RecordError:
    try:
        return read_report(root, record)
    except RecordError as error:
        return error
