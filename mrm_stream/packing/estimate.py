"""What packing a set would give, from its listing and a few records packed in memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mrm_stream.packing.journal import Journal
from mrm_stream.packing.pack import make_job
from mrm_stream.packing.plan import SetPlan, ShardPlan
from mrm_stream.packing.reports_files import publish_files
from mrm_stream.packing.shard_writer import write_shard
from mrm_stream.packing.worker import Rejected, pack_records
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import make_private_folder, staging_folder

TRIED = 64
"""Records that are packed for the estimate, spread over the set."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would be packed, how large it would be, how long one process would take."""

    records: int
    shards: int
    splits: Mapping[str, int]
    views: Mapping[str, int]
    subjects: int
    tried: int
    bad: Mapping[str, int]
    """Reason to how many of those tried were bad for it."""
    assumed_bits: Mapping[int, int]
    """Bits to how many of those tried were packed as if their values had so many: PNGs of 16 bits."""
    bytes_in: int
    """Of all images, from those tried."""
    bytes_out: int
    """Of all shards."""
    seconds: float
    """Of one process, the page cache as it happens to be."""


def estimate(plan: SetPlan, tokenizer: AnyPath | None = None) -> Estimate:
    """Return what packing would give; nothing is left behind.

    Tokens are counted by a tokenizer that is trained on the records tried, unless one is given: theirs are hundreds of
    bytes beside the image's hundreds of thousands.

    Raises:
        SourceError, ShardError: As `pack`, where no record tried can be used at all.
    """
    records = [record for shard in plan.shards for record in shard.records]
    tried = min(TRIED, len(records))
    chosen = [records[number * len(records) // tried] for number in range(tried)]
    few = replace(plan, shards=(ShardPlan("tried", tuple(chosen)),))
    bad: Counter[str] = Counter()
    assumed_bits: Counter[int] = Counter()
    bytes_in = 0
    with staging_folder() as folder:
        journal = Journal(folder)
        make_private_folder(journal.folder)
        reports = publish_files(journal, few, tokenizer) if plan.has_reports else None
        started = time.perf_counter()
        packed = list(pack_records(make_job(few, journal, reports), chosen))
        samples = []
        for one in packed:
            if isinstance(one, Rejected):
                bad[one.reason] += 1
            else:
                samples.append(one.sample)
                bytes_in += one.bytes_in
                if one.assumed_bits is not None:
                    assumed_bits[one.assumed_bits] += 1
        entry = write_shard(folder / "tried.tar", samples)
        seconds = time.perf_counter() - started
    scale = len(records) / len(chosen)
    return Estimate(
        records=len(records),
        shards=len(plan.shards),
        splits=Counter(record.split for record in records),
        views=Counter(record.view or "not known" for record in records),
        subjects=len({record.subject for record in records if record.subject}),
        tried=len(chosen),
        bad=bad,
        assumed_bits=assumed_bits,
        bytes_in=round(bytes_in * scale),
        bytes_out=0 if entry is None else round(entry.bytes * scale),
        seconds=seconds * scale,
    )
