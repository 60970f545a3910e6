"""`mrm-stream bench pack`: records/s of packing beside its peers, on images of MIMIC-CXR-JPG's size.

All contenders run in one go and take turns, each in fresh processes, so that a machine that is slow for a minute is
slow for all of them; ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from mrm_stream.bench.formats import QUALITY
from mrm_stream.bench.machine import machine, run_afresh, versions
from mrm_stream.bench.pack_figure import draw_pack_bench
from mrm_stream.bench.pack_result import PackBench, PackBenchOptions
from mrm_stream.bench.peers import CONTENDERS, Job, Run, run_contender
from mrm_stream.bench.radiographs import make_bench_set
from mrm_stream.errors import MrmStreamError
from mrm_stream.storage.publish import make_private_folder, publish_bytes

RESULT = "pack.json"
PLOT = "pack.png"

_LIBRARIES = ("numpy", "pillow", "simplejpeg", "tokenizers", "webdataset")


def bench_pack(
    out: Path,
    *,
    options: PackBenchOptions | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> PackBench:
    """Measure packing beside its peers, and write `pack.json` and `pack.png`.

    Args:
        out: Folder of the two files; images and shards lie in it too, in a temporary folder, until the end, as the
            disk decides what syncing costs.
        options: What is measured.
        progress: Called before each step with the steps done, their number, and what comes now.

    Raises:
        MrmStreamError: webdataset is not installed, or a process was killed.
        StorageError: `out` cannot be written to.
    """
    options = options or PackBenchOptions()
    _require_webdataset()
    advance = progress or (lambda done, total, note: None)
    steps = 1 + options.rounds * len(CONTENDERS)
    make_private_folder(out)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as work:
        advance(0, steps, "making images")
        made = make_bench_set(Path(work) / "set", options.count, width=options.width, workers=options.workers)
        rounds: list[dict[str, Run]] = []
        for number in range(options.rounds):
            runs: dict[str, Run] = {}
            for name in _turns(number):
                advance(1 + number * len(CONTENDERS) + len(runs), steps, f"round {number + 1}: {name}")
                job = Job(
                    root=made.root,
                    tokenizer=made.tokenizer,
                    out=Path(work) / "out",
                    count=made.count,
                    workers=options.workers,
                    short_side=options.short_side,
                    quality=QUALITY,
                )
                runs[name] = _run(name, job)
            rounds.append({name: runs[name] for name in CONTENDERS})
    result = PackBench(
        options=options,
        mean_image_bytes=made.mean_bytes,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions(_LIBRARIES),
        rounds=tuple(rounds),
    )
    publish_bytes(out / RESULT, json.dumps(result.to_json(), indent=2).encode() + b"\n")
    publish_bytes(out / PLOT, draw_pack_bench(result))
    advance(steps, steps, "")
    return result


def _turns(number: int) -> Iterator[str]:
    """Yield the contenders, another one first in each round: none always follows the same one."""
    names = list(CONTENDERS)
    first = number % len(names)
    yield from names[first:] + names[:first]


def _run(name: str, job: Job) -> Run:
    """Run a contender in a new process, and leave neither files nor unwritten pages to the next one."""
    job.out.mkdir()
    try:
        return run_afresh(name, run_contender, name, job)
    finally:
        shutil.rmtree(job.out)
        os.sync()


def _require_webdataset() -> None:
    if find_spec("webdataset") is None:
        raise MrmStreamError(
            "webdataset, which packing is measured beside, is not installed",
            remedy="Run: pip install 'mrm-stream[bench]'",
        )
