"""`mrm-stream bench data`: how fast data reach the model, beside what others would use.

All contenders of a stage run one after the other, each in a fresh process, in every round anew; ratios are taken
within a round, so that a machine that is slow for a minute is slow for both sides of one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from mrm_stream.bench.data_figure import draw_data_bench
from mrm_stream.bench.data_result import (
    DALI,
    ENCODED,
    MOSAICML,
    PAIRS_LARGE,
    PAIRS_SMALL,
    RESUME,
    STAGES,
    DataBench,
    DataBenchOptions,
    Run,
)
from mrm_stream.bench.data_resume import run_resume
from mrm_stream.bench.data_sets import SEED, DataSets, make_data_sets, warm
from mrm_stream.bench.machine import machine, run_afresh, versions
from mrm_stream.bench.mosaicml import Mosaicml
from mrm_stream.errors import MrmStreamError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.storage.publish import make_private_folder, publish_bytes

RESULT, PLOT = "data.json", "data.png"

_LIBRARIES = (
    "numpy",
    "torch",
    "torchvision",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "nvidia-dali-cuda130",
    "webdataset",
)
_TRACED = 6
"""Batches."""


def bench_data(
    out: Path,
    *,
    options: DataBenchOptions | None = None,
    mosaicml: Path | None = None,
    trace: Path | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> DataBench:
    """Measure reading, decoding and resuming beside peers, and write `data.json` and `data.png`.

    Args:
        out: Folder of the two files; the packed sets lie in it too, in a temporary folder, until the end.
        options: What is measured.
        mosaicml: Python of another environment, which has mosaicml-streaming.
        trace: File for a Chrome trace of some batches, made when all is measured.
        progress: Called before each step with the steps done, their number, and what comes now.

    Raises:
        MrmStreamError: webdataset or torchvision is not installed, or mosaicml-streaming where it was said to be, or a
            process was killed.
        StorageError: `out` cannot be written to.
    """
    options = options or DataBenchOptions()
    _require_peers()
    advance = progress or (lambda done, total, note: None)
    other = None if mosaicml is None else Mosaicml(mosaicml)
    missing = {} if other else {MOSAICML: "no Python that has it was given"}
    if not _is_there("nvidia.dali"):
        missing[DALI] = "it is not installed"
    stages = {stage: [name for name in names if name not in missing] for stage, names in STAGES.items()}
    steps = 1 + options.rounds * sum(map(len, stages.values()))
    make_private_folder(out)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as work:
        advance(0, steps, "making packed sets")
        sets = make_data_sets(Path(work) / "sets", options, other)
        done = 1
        rounds: list[dict[str, dict[str, Run]]] = []
        for number in range(options.rounds):
            found: dict[str, dict[str, Run]] = {}
            for stage, names in stages.items():
                # Each round starts with another one, so that none always follows the same one.
                first = number % len(names)
                runs: dict[str, Run] = {}
                for name in names[first:] + names[:first]:
                    advance(done, steps, f"round {number + 1}: {stage}, {name}")
                    runs[name] = _run(stage, name, sets, options, other)
                    done += 1
                found[stage] = {name: runs[name] for name in names}
            rounds.append(found)
        result = DataBench(
            options=options,
            mean_bytes={stage: _mean_bytes(path) for stage, path in _decoded(sets).items()},
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            versions=versions(_LIBRARIES) | ({MOSAICML: other.version} if other else {}),
            notes=tuple(f"{name} was skipped: {why}" for name, why in missing.items()),
            rounds=tuple(rounds),
        )
        publish_bytes(out / RESULT, json.dumps(result.to_json(), indent=2).encode() + b"\n")
        publish_bytes(out / PLOT, draw_data_bench(result))
        if trace is not None:
            from mrm_stream.bench.trace import write_trace

            make_private_folder(trace.parent)
            write_trace(trace, sets.large, batch=options.batch, count=_TRACED, threads=options.threads)
    advance(steps, steps, "")
    return result


def _run(stage: str, name: str, sets: DataSets, options: DataBenchOptions, mosaicml: Mosaicml | None) -> Run:
    if name == MOSAICML:
        assert mosaicml is not None
        return mosaicml.run(sets.mds, options.encoded, options.batch, SEED)
    # Imported here, and in the new process: one that resumes must not find torch imported by this module.
    if stage == RESUME:
        return run_afresh(name, run_resume, name, sets.long, sets.position, options.batch, options.threads)
    from mrm_stream.bench.data_encoded import run_encoded
    from mrm_stream.bench.data_pairs import run_pairs

    if stage == ENCODED:
        return run_afresh(name, run_encoded, name, sets, options.encoded, options.batch)
    directory = _decoded(sets)[stage]
    warm(directory)
    return run_afresh(name, run_pairs, name, directory, options.count, options.batch, options.threads)


def _decoded(sets: DataSets) -> dict[str, Path]:
    return {PAIRS_LARGE: sets.large, PAIRS_SMALL: sets.small}


def _mean_bytes(directory: Path) -> int:
    """Return the bytes of a set's shards per sample: the JPEG, and the little beside it."""
    shards = read_manifest(directory).shards()
    return sum(shard.bytes for shard in shards) // sum(shard.samples for shard in shards)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def _require_peers() -> None:
    for module in ("webdataset", "torchvision"):
        if not _is_there(module):
            raise MrmStreamError(
                f"{module}, a peer that reading and decoding are compared with, is not installed",
                remedy="Run: pip install 'mrm-stream[bench]'",
            )
