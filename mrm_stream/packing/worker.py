"""Packs one shard, in whatever process: reads, shrinks, tokenizes, writes; quarantines what cannot be used, and why.

Every image is decoded in full here: the last time that a damaged file costs no more than a line in a list. In training
it would hold up all ranks, once in every epoch.
"""

from __future__ import annotations

import platform
import re
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mrm_stream.errors import ClusterError, MrmStreamError, RecordError, ShardError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import DICTIONARY, TOKENIZER
from mrm_stream.formats.manifest import DICTIONARY_LIMIT, ReportsEntry, shard_entry_from_json
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import ShardEntry, canonical_json, index_path, members_of, verify_shard
from mrm_stream.packing.images.boxes import place_boxes
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import EncodedImage, encode_image
from mrm_stream.packing.images.mask import EncodedMask, MaskChange, encode_mask
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.plan import ShardPlan, libraries
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.records import Record
from mrm_stream.sources.reading import path_to_tell, read_image, read_mask, read_report
from mrm_stream.storage.files import read_whole, remove
from mrm_stream.storage.paths import AnyPath, is_remote
from mrm_stream.text.sections import text_to_tokenize
from mrm_stream.text.tokenizer import encode_report, load_tokenizer

_REQUESTS = 8
"""Images fetched at a time from a remote root, by each worker: with a single one it would mostly wait."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a set have in common."""

    root: AnyPath
    journal: Journal
    options: PackOptions
    reports: ReportsEntry | None
    has_masks: bool
    libraries: dict[str, str]
    """Versions; a worker with other ones refuses, as they may make other bytes."""

    @property
    def members(self) -> tuple[str, ...]:
        """Of each sample."""
        return members_of(reports=self.reports is not None, masks=self.has_masks)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was skipped; a line of quarantine.jsonl."""

    key: str
    image_path: str
    """Below the root; see `path_to_tell`."""
    reason: str
    """A code to count by, such as `image-truncated`."""
    detail: str


class Packed(NamedTuple):
    """A record that was packed."""

    sample: PackedSample
    bytes_in: int
    """Of its image's file."""
    mask_change: MaskChange | None
    """None where it has no mask, or an empty one."""
    assumed_bits: int | None
    is_padded: bool
    """See `EncodedImage`."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of one `ShardPlan`."""

    entry: ShardEntry | None
    """None where no record could be used."""
    rejected: tuple[Rejected, ...]
    bytes_in: int
    """Of the images read."""
    mask_changes: tuple[MaskChange, ...] = ()
    """A mask each, of those that are not empty."""
    assumed_bits: Mapping[int, int] = field(default_factory=dict)
    """Bits to how many images were packed as if their values had so many."""
    padded: int = 0
    """Images some of whose pixels are declared to be padding."""
    is_kept: bool = False
    """Whether an interrupted run had packed it."""


def pack_shard(job: Job, plan: ShardPlan) -> ShardResult:
    """Write and publish one shard, or keep the one that an interrupted run of the same job has published.

    It is kept only if every record that was skipped still has to be, for the same reason: so a source that was repaired
    meanwhile gives the same set as if it had been whole from the start.

    Raises:
        MrmStreamError: The disk is full, the source as a whole cannot be read, or this machine's libraries are others.
    """
    kept = _recall_result(job, plan)
    if kept is not None:
        return kept
    rejected: list[Rejected] = []
    mask_changes: list[MaskChange] = []
    assumed_bits: Counter[int] = Counter()
    bytes_in = padded = 0

    def samples() -> Iterator[PackedSample]:
        nonlocal bytes_in, padded
        for packed in pack_records(job, plan.records):
            if isinstance(packed, Rejected):
                rejected.append(packed)
                continue
            bytes_in += packed.bytes_in
            padded += packed.is_padded
            if packed.mask_change is not None:
                mask_changes.append(packed.mask_change)
            if packed.assumed_bits is not None:
                assumed_bits[packed.assumed_bits] += 1
            yield packed.sample

    tar = job.journal.out / f"{plan.name}.tar"
    entry = write_shard(tar, samples(), staging=job.journal.folder)
    if entry is None:  # an interrupted run with another tokenizer may have published one
        for path in (tar, index_path(tar)):
            remove(path)
    result = ShardResult(entry, tuple(rejected), bytes_in, tuple(mask_changes), assumed_bits, padded)
    job.journal.note(
        plan.name,
        {
            "entry": None if entry is None else asdict(entry),
            "rejected": [asdict(line) for line in rejected],
            "bytes_in": bytes_in,
            "mask_changes": [asdict(change) for change in mask_changes],
            "assumed_bits": assumed_bits,
            "padded": padded,
            "reports": _reports_digests(job),
        },
    )
    return result


def pack_records(job: Job, records: Sequence[Record]) -> Iterator[Packed | Rejected]:
    """Yield, for each record in order, the sample, or why there is none.

    Raises:
        MrmStreamError: As `pack_shard`.
    """
    if job.libraries != libraries():
        ours = ", ".join(f"{name} {number}" for name, number in libraries().items() if job.libraries[name] != number)
        raise ClusterError(
            f"machine {platform.node()} has other versions of libraries: {ours}",
            remedy="They may make other bytes: install the same versions on every machine.",
        )
    tools = None if job.reports is None else _load_tools(job.journal.out, job.reports, threading.get_ident())
    for record, image in _with_images(job.root, records):
        try:
            yield _pack_record(job, record, image, tools)
        except RecordError as error:
            yield Rejected(record.key, path_to_tell(job.root, record.image_path), reason_of(error), error.what)


def reason_of(error: RecordError) -> str:
    """Return a code for quarantine.jsonl: an image's own, or the sentence of the source in short.

    Example:
        >>> reason_of(RecordError("the report is missing")), reason_of(RecordError("the path leads out of the root"))
        ('report-missing', 'path-leads-out-of-the-root')
    """
    if isinstance(error, ImageError):
        return error.code
    # What follows a colon tells of this one case; the code is for counting a kind.
    words = re.sub(r"^the | (is|are|has|have)(?= )", "", error.what.lower().partition(":")[0])
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:60]


def _with_images(root: AnyPath, records: Sequence[Record]) -> Iterator[tuple[Record, Future[bytes] | None]]:
    """Yield each record, and its image if it is being fetched already: a remote root's are, some ahead of their use."""
    if not is_remote(root):
        for record in records:
            yield record, None
        return
    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="fetch") as pool:
        coming = iter(records)
        ahead = deque((record, pool.submit(read_image, root, record)) for record in islice(coming, _REQUESTS))
        try:
            while ahead:
                yield ahead.popleft()
                ahead.extend((record, pool.submit(read_image, root, record)) for record in islice(coming, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pack_record(
    job: Job, record: Record, image: Future[bytes] | None, tools: tuple[Tokenizer, ReportCodec] | None
) -> Packed:
    try:
        tokens = report = None
        if job.reports is not None and tools is not None:
            text = read_report(job.root, record)
            tokens = tokens_of(text, record.study, tools[0], job.options.sections, job.reports.length)
            report = tools[1].compress(text)
        data = read_image(job.root, record) if image is None else image.result()
        options = job.options
        encoded = encode_image(
            data,
            short_side=options.short_side,
            quality=options.jpeg_quality,
            rendering=options.rendering,
            bits=options.bits,
            blank=options.blank,
        )
        mask = _pack_mask(job.root, record, encoded) if job.has_masks else None
        metadata = canonical_json(_metadata(record, encoded))
        png, change = (None, None) if mask is None else (mask.png, mask.change)
        sample = PackedSample(record.key, encoded.jpeg, metadata, tokens, report, png)
        return Packed(sample, len(data), change, encoded.assumed_bits, encoded.is_padded)
    except MrmStreamError:
        raise
    except MemoryError:
        raise MrmStreamError(
            f"memory was short when {record.key} was packed",
            remedy="Take fewer workers, and run the same command again: what is done is kept.",
        ) from None
    except Exception as error:
        # A mistake of ours. Its message may hold the report, which must not reach a traceback: only file and line do.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        raise RuntimeError(f"packing {record.key} failed: {type(error).__name__} at {where}") from None


def tokens_of(report: str, study: str, tokenizer: Tokenizer, sections: tuple[str, ...], length: int | None) -> bytes:
    """Return the token ids of a report's chosen sections, as a shard holds them: little-endian uint16.

    Args:
        report: The whole text.
        study: Its study, by which a few reports of MIMIC-CXR are known to be written otherwise.
        tokenizer: Of the set.
        sections: In the order wanted; none: the whole report.
        length: Tokens that are kept, at most; None: all.

    Raises:
        RecordError: The report has none of the sections, says nothing, or has no or too many tokens.
    """
    chosen = text_to_tokenize(report, study, sections)
    return encode_report(tokenizer, chosen)[:length].astype(np.dtype("<u2"), copy=False).tobytes()


def _pack_mask(root: AnyPath, record: Record, image: EncodedImage) -> EncodedMask:
    mask = read_mask(root, record) if record.mask_path is not None else record.mask_runs
    assert mask is not None, "every record of a source with masks has one"
    return encode_mask(mask, original_size=record.annotated_size or image.original_size, size=image.size)


def _metadata(record: Record, image: EncodedImage) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "subject": record.subject,
        "study": record.study,
        "view": record.view or image.view,
        "split": record.split,
        "labels": dict(record.labels),
        "original_size": image.original_size,
        "size": image.size,
    }
    if record.boxes:
        # In pixels of the packed image, so that whoever reads a sample needs nothing else.
        drawn_on = record.annotated_size or image.original_size
        metadata["boxes"] = place_boxes(record.boxes, drawn_on=drawn_on, size=image.size)
    if image.assumed_bits is not None:
        metadata["assumed_bits"] = image.assumed_bits
    if record.lists:
        metadata["lists"] = list(record.lists)
    return metadata


def _recall_result(job: Job, plan: ShardPlan) -> ShardResult | None:
    """Return what an interrupted run noted of this shard, if all is as it was then; else None, and it is packed again.

    Three things could have changed: the shard's files, the tokenizer and dictionary, and the records that were skipped,
    which are tried again. Images that were packed are not read again: that would take as long as packing them.
    """
    noted: Any = job.journal.recall(plan.name)
    if noted is None:
        return None
    try:
        entry = None if noted["entry"] is None else shard_entry_from_json(noted["entry"])
        if entry is not None:
            verify_shard(job.journal.out, entry, job.members)
        rejected = tuple(Rejected(**line) for line in noted["rejected"])
        mask_changes = tuple(MaskChange(**change) for change in noted["mask_changes"])
        assumed_bits = {int(bits): int(count) for bits, count in noted["assumed_bits"].items()}
        counts = int(noted["bytes_in"]), mask_changes, assumed_bits, int(noted["padded"])
        result = ShardResult(entry, rejected, *counts, is_kept=True)
        if noted["reports"] != _reports_digests(job):  # the tokens are of another tokenizer
            return None
    except (ShardError, KeyError, TypeError, ValueError):
        return None
    keys = {line.key for line in rejected}
    tried_again = pack_records(job, [record for record in plan.records if record.key in keys])
    is_as_it_was = all(one == line for one, line in zip(tried_again, rejected, strict=True))
    return result if is_as_it_was else None


def _reports_digests(job: Job) -> list[str] | None:
    return None if job.reports is None else [job.reports.tokenizer_sha256, job.reports.dictionary_sha256]


@lru_cache(maxsize=16)
def _load_tools(out: AnyPath, reports: ReportsEntry, thread: int) -> tuple[Tokenizer, ReportCodec]:
    """Load tokenizer and dictionary once a thread, as zstd's contexts are not thread-safe; digests distinguish jobs."""
    return load_tokenizer(out / TOKENIZER), ReportCodec(read_whole(out / DICTIONARY, DICTIONARY_LIMIT))
