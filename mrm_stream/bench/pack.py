"""`mrm-stream bench pack`: records/s of packing beside its peers, on images of MIMIC-CXR-JPG's size.

All contenders run in one go and take turns, each in fresh processes, so that a machine that is slow for a minute is
slow for all of them; ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mrm_stream.bench.pack_figure import draw_pack_bench
from mrm_stream.bench.pack_result import PackBench, PackBenchOptions
from mrm_stream.bench.peers import CONTENDERS, Job, Run, run_contender
from mrm_stream.bench.radiographs import QUALITY, make_bench_set
from mrm_stream.errors import MrmStreamError
from mrm_stream.publish import make_private_folder, publish_bytes

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
                runs[name] = _run_afresh(name, job)
            rounds.append({name: runs[name] for name in CONTENDERS})
    result = PackBench(
        options=options,
        mean_image_bytes=made.mean_bytes,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        versions={"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
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


def _run_afresh(name: str, job: Job) -> Run:
    """Run a contender in a new process, and leave neither files nor unwritten pages to the next one."""
    job.out.mkdir()
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(run_contender, name, job).result()
    except BrokenProcessPool as error:
        raise MrmStreamError(
            f"a process of {name} was killed", remedy="Often memory was short: take fewer workers."
        ) from error
    finally:
        shutil.rmtree(job.out)
        os.sync()


def _require_webdataset() -> None:
    if find_spec("webdataset") is None:
        raise MrmStreamError(
            "webdataset, which packing is measured beside, is not installed",
            remedy="Run: pip install 'mrm-stream[bench]'",
        )


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
