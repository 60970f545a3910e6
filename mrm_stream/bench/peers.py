"""What packs, or only decodes, the same images: ours, the scripts that people write, and the bounds that decoding sets.

Where a choice had to be made it favours the peers. They are handed a tokenizer, where ours trains one within its time;
their workers are forked with everything imported, where ours start afresh; nothing that they write is synced.
"""

from __future__ import annotations

import csv
import importlib
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import simplejpeg
from PIL import Image
from tokenizers import Tokenizer

from mrm_stream.bench.machine import cpu_seconds, peak_bytes
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.images.sizes import target_size
from mrm_stream.packing.pack import pack
from mrm_stream.packing.workers import Workers

OURS = "ours"
PIECES_PER_WORKER = 4
"""Shards, or slices of the list, for each worker: all work is cut alike, and nobody waits long for the last piece."""

_Row: TypeAlias = tuple[str, str]
"""Path of the image below the root, and the report."""
_Work: TypeAlias = "Callable[[Job, int, Sequence[_Row]], None]"
"""Does one piece of the list: the job, the piece's number, its rows."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender is given."""

    root: Path
    """Data set of layout training-csv."""
    tokenizer: Path
    out: Path
    """Empty folder to write to."""
    count: int
    """Records in the set."""
    workers: int
    short_side: int
    """Of the packed images, in pixels."""
    quality: int


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's one run over the whole set."""

    seconds: float
    cpu_seconds: float
    """Of all its processes together; on a machine that others use too, this tells more than the clock."""
    records_per_s: float
    peak_bytes: int | None
    """Resident memory of the largest process at its peak, pages that it shares included; None where unknown."""
    bytes_out: int


def run_contender(name: str, job: Job) -> Run:
    """Let one contender do the job in this process and workers of it; call it in a fresh process.

    Args:
        name: One of `CONTENDERS`.
        job: What to do; its `out` must be empty.
    """
    work = CONTENDERS[name]
    if name.endswith("webdataset"):
        importlib.import_module("webdataset")  # The seconds that it takes are not the peer's: forked workers have it.
    start, cpu_start = time.perf_counter(), cpu_seconds()
    done = _pack_ours(job) if work is None else _do_in_pieces(work, job)
    seconds, used = time.perf_counter() - start, cpu_seconds() - cpu_start
    assert done == job.count, f"{name} did {done} of {job.count} records"
    bytes_out = sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file())
    return Run(seconds, used, done / seconds, peak_bytes(), bytes_out)


def _pack_ours(job: Job) -> int:
    options = PackOptions(
        short_side=job.short_side,
        jpeg_quality=job.quality,
        samples_per_shard=-(-job.count // (PIECES_PER_WORKER * job.workers)),
    )
    manifest = pack("training-csv", job.root, job.out / "shards", options=options, workers=Workers(job.workers))
    return sum(manifest.samples(split) for split in manifest.splits)


def _do_in_pieces(work: _Work, job: Job) -> int:
    """Do the list in pieces, one after the other in each worker; return the number of records."""
    with (job.root / "training.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["image_path"], row["report_content"]) for row in csv.DictReader(file)]
    pieces = PIECES_PER_WORKER * job.workers
    bounds = [len(rows) * number // pieces for number in range(pieces + 1)]
    slices = [rows[low:high] for low, high in pairwise(bounds) if low < high]
    with ProcessPoolExecutor(job.workers, mp_context=get_context("fork")) as pool:
        list(pool.map(partial(work, job), range(len(slices)), slices))
    return sum(len(part) for part in slices)


def _pack_with_pil(job: Job, number: int, rows: Sequence[_Row], *, draft: bool) -> None:
    """The script that people write: Pillow, a tokenizer, and a `ShardWriter` for each process's part of the list.

    Args:
        draft: Ask Pillow for the scaled decoding of `Image.draft`, which most scripts do not.
    """
    import webdataset

    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    pattern = str(job.out / f"part{number:04d}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=len(rows), verbose=0) as sink:
        for path, report in rows:
            with Image.open(job.root / path) as image:
                height, width = target_size((image.height, image.width), job.short_side)
                if draft:
                    image.draft("L", (width, height))
                small = image.convert("L").resize((width, height), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=job.quality)
            ids = np.array(tokenizer.encode(report).ids, np.uint16)
            metadata = {"image_path": path, "size": [height, width]}
            sink.write(
                {"__key__": Path(path).stem, "jpg": buffer.getvalue(), "npy": ids, "json": metadata, "txt": report}
            )


def _decode(job: Job, number: int, rows: Sequence[_Row], *, scaled: bool) -> None:
    """Read and decode to grey, in full or at the least scale that holds the packed size, and keep nothing."""
    for path, _ in rows:
        data = (job.root / path).read_bytes()
        if scaled:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            least = target_size((height, width), job.short_side)
            simplejpeg.decode_jpeg(data, "GRAY", min_height=least[0], min_width=least[1])
        else:
            simplejpeg.decode_jpeg(data, "GRAY")


CONTENDERS: dict[str, _Work | None] = {
    OURS: None,
    "pil+webdataset": partial(_pack_with_pil, draft=False),
    "pil-draft+webdataset": partial(_pack_with_pil, draft=True),
    "libjpeg-turbo": partial(_decode, scaled=False),
    "libjpeg-turbo scaled": partial(_decode, scaled=True),
}
"""By the names that table and JSON show; the last two write nothing, and are bounds rather than peers."""
