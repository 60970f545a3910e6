"""Packs one shard, in whatever process: reads, shrinks, tokenizes, writes; sets aside what cannot be used, and why."""

from __future__ import annotations

import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mrm_stream.errors import MrmStreamError, RecordError, ShardError
from mrm_stream.packing.dictionary import ReportCodec
from mrm_stream.packing.image import ImageError, encode_image
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.manifest import DICTIONARY, TOKENIZER, shard_entry_from_json
from mrm_stream.packing.shard import PackedSample, ShardEntry, verify_shard, write_shard
from mrm_stream.packing.tokenizer import encode_report, load_tokenizer
from mrm_stream.records import Record
from mrm_stream.sources.reading import read_image, read_report


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a set have in common."""

    root: Path
    journal: Journal
    short_side: int
    jpeg_quality: int
    tokenizer_sha256: str
    dictionary_sha256: str


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The records that go into one shard, in their order."""

    name: str
    """Without `.tar`."""
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was left out; a line of quarantine.jsonl."""

    key: str
    image_path: str
    reason: str
    """A code to count by, such as `image-truncated`."""
    detail: str


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a plan."""

    entry: ShardEntry | None
    """None where no record could be used."""
    rejected: tuple[Rejected, ...]
    bytes_in: int
    """Of the images read."""


def pack_shard(job: Job, plan: ShardPlan) -> ShardResult:
    """Write and publish one shard, or keep the one that an interrupted run of the same job has published.

    Raises:
        MrmStreamError: The disk is full, or the source as a whole cannot be read.
    """
    kept = _recall_result(job, plan)
    if kept is not None:
        return kept
    tokenizer, codec = _load_tools(job.journal.out, job.tokenizer_sha256, job.dictionary_sha256)
    rejected: list[Rejected] = []
    bytes_in = 0

    def samples() -> Iterator[PackedSample]:
        nonlocal bytes_in
        for record in plan.records:
            try:
                sample, image_bytes = _pack_record(job, record, tokenizer, codec)
            except RecordError as error:
                rejected.append(Rejected(record.key, record.image_path, reason_of(error), error.what))
            else:
                bytes_in += image_bytes
                yield sample

    entry = write_shard(job.journal.out / f"{plan.name}.tar", samples(), staging=job.journal.folder)
    result = ShardResult(entry, tuple(rejected), bytes_in)
    job.journal.note(plan.name, asdict(result))
    return result


def reason_of(error: RecordError) -> str:
    """Return a code for quarantine.jsonl: an image's own, or the sentence of the source in short.

    Example:
        >>> reason_of(RecordError("the report is missing")), reason_of(RecordError("the path leads out of the root"))
        ('report-missing', 'path-leads-out-of-the-root')
    """
    if isinstance(error, ImageError):
        return error.code
    words = re.sub(r"^the | (is|are|has|have)(?= )", "", error.what.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:60]


def die_with_parent(alive: Connection) -> None:
    """Make this worker process end at once when the other end of `alive` closes, however its parent ended.

    The pool's own queues would not tell: sibling workers hold both their ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.

    def wait() -> None:
        try:
            alive.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _pack_record(job: Job, record: Record, tokenizer: Tokenizer, codec: ReportCodec) -> tuple[PackedSample, int]:
    """Return the packed record and the size of its image's file."""
    try:
        report = read_report(job.root, record)
        token_ids = encode_report(tokenizer, report)
        data = read_image(job.root, record)
        image = encode_image(data, short_side=job.short_side, quality=job.jpeg_quality)
        metadata = {
            "subject": record.subject,
            "study": record.study,
            "view": record.view,
            "split": record.split,
            "labels": dict(record.labels),
            "original_size": image.original_size,
            "size": image.size,
        }
        tokens = token_ids.astype(np.dtype("<u2"), copy=False).tobytes()
        return PackedSample(record.key, image.jpeg, tokens, metadata, codec.compress(report)), len(data)
    except MrmStreamError:
        raise
    except Exception as error:
        # A mistake of ours. Its message may hold the report, which must not reach a traceback: only the place goes on.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise RuntimeError(f"packing {record.key} failed: {type(error).__name__} at {where}") from None


def _recall_result(job: Job, plan: ShardPlan) -> ShardResult | None:
    """Return what an interrupted run noted of this shard, if its files are still as it left them, to the bit."""
    noted: Any = job.journal.recall(plan.name)
    if noted is None:
        return None
    try:
        entry = None if noted["entry"] is None else shard_entry_from_json(noted["entry"])
        if entry is not None:
            verify_shard(job.journal.out, entry)
        rejected = tuple(Rejected(**line) for line in noted["rejected"])
        return ShardResult(entry, rejected, int(noted["bytes_in"]))
    except (ShardError, KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=1)
def _load_tools(out: Path, tokenizer_sha256: str, dictionary_sha256: str) -> tuple[Tokenizer, ReportCodec]:
    """Load tokenizer and dictionary once a process; the digests tell jobs apart."""
    return load_tokenizer(out / TOKENIZER), ReportCodec((out / DICTIONARY).read_bytes())
