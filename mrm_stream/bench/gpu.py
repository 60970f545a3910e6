"""Checks on a GPU what the tests can only check by rule, and times it; on a CPU the same code, at tiny sizes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mrm_stream.bench.gpu_part import FAILED, PASSED, SKIPPED
from mrm_stream.bench.machine import machine, versions
from mrm_stream.errors import ConfigError
from mrm_stream.strict import parse_json

RESULT = "gpu.json"
BUDGET_S = 525.0
"""For all parts; what is not reached is skipped."""
_PATIENCE = 4
"""Times as long at tiny sizes: the machine may be a busy one, and nobody pays for a GPU."""
_PACKAGES = ("torch", "triton", "timm", "transformers", "deepspeed", "nvidia-dali-cuda130", "simplejpeg", "numpy")


@dataclass(frozen=True, slots=True)
class Part:
    """What is checked or timed in one process."""

    name: str
    what: str
    limit_s: float
    needs_data: bool = False


PARTS = (
    Part("data", "synthetic radiographs, made and packed", 90),
    Part("decoders", "DALI beside libjpeg-turbo, in grey levels", 60, needs_data=True),
    Part("pixels", "batches that the step reads late are still their own", 90, needs_data=True),
    Part("losses", "losses and gradients beside float32 on the CPU", 60),
    Part("zero", "ZeRO 0 to 3, saved and continued", 90),
    Part("training", "samples/s of the step, and with its data", 90),
    Part("decoding", "samples/s of decoding", 60, needs_data=True),
    Part("compile", "compiled blocks beside the others", 120),
    Part("run", "a run, stopped and continued", 90, needs_data=True),
    Part("tests", "the tests of DALI's decoder", 60),
)


def bench_gpu(
    out: Path, *, tiny: bool, only: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run the parts one after another, and return what they found; `gpu.json` has it after each of them.

    Args:
        out: Folder of the result, of each part's log, and of what is made on the way.
        tiny: Tiny sizes, whatever the device.
        only: Names of parts to run, with the data that they need; none: all.
        progress: Called with each part's line of the table.

    Raises:
        ConfigError: There is no GPU, and sizes are not tiny.
    """
    device = _device()
    if not tiny and "gpu" not in device:
        raise ConfigError("there is no GPU here", where="bench gpu", remedy="Try the same code on the CPU: --tiny.")
    out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if not only or part.name in only]
    if any(part.needs_data for part in chosen) and PARTS[0] not in chosen:
        chosen = [PARTS[0], *chosen]
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sizes": "tiny" if tiny else "full",
        "machine": {**machine(), **device},
        "versions": versions(_PACKAGES),
        "parts": {},
    }
    patience = _PATIENCE if tiny else 1
    end = time.monotonic() + patience * BUDGET_S
    for part in chosen:
        limit_s = min(patience * part.limit_s, end - time.monotonic())
        found = _skipped(part, result["parts"], limit_s) or _run(part, out, tiny, limit_s)
        result["parts"][part.name] = found
        (out / RESULT).write_text(json.dumps(result, indent=1) + "\n")
        if progress is not None:
            progress(line(part.name, found))
    return result


def has_failed(result: dict[str, Any]) -> bool:
    """Return whether any part failed; what was skipped has not."""
    return any(found["outcome"] == FAILED for found in result["parts"].values())


def summary(result: dict[str, Any]) -> str:
    """Return how many parts came out how, and where."""
    outcomes = [found["outcome"] for found in result["parts"].values()]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, SKIPPED))
    return f"{counts}; sizes {result['sizes']}, {result['machine'].get('gpu', 'no GPU: ' + result['machine']['cpu'])}"


def line(name: str, found: dict[str, Any]) -> str:
    """Return a part's line of the table: name, outcome, seconds, and numbers or the reason.

    Example:
        >>> line("zero", {"outcome": "passed", "seconds": 3.0, "numbers": {"a": 0.12345, "b": 7}})
        'zero      passed     3.0 s  a 0.1235, b 7'
    """
    numbers = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.get("numbers", {}).items()
    )
    told = "; ".join(part for part in (found.get("reason", ""), numbers) if part)
    return f"{name:9} {found['outcome']:7} {found.get('seconds', 0):6.1f} s  {told}"


def _skipped(part: Part, before: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
    if part.needs_data and before[PARTS[0].name]["outcome"] != PASSED:
        return {"outcome": SKIPPED, "reason": "there is no packed set: see data"}
    if limit_s < 1:
        return {"outcome": SKIPPED, "reason": "the time for all parts is over"}
    return None


def _run(part: Part, out: Path, tiny: bool, limit_s: float) -> dict[str, Any]:
    file = out / f"{part.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mrm_stream.bench.gpu_part", part.name, str(out), "tiny" if tiny else "full"]
    started = time.monotonic()
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Its children too: none may use the GPU while the next part is timed.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if file.exists():
        found: dict[str, Any] = parse_json(file.read_text())
        return found
    ending = f"has not ended within {limit_s:.0f} s" if status is None else f"ended with exit status {status}"
    seconds = round(time.monotonic() - started, 1)
    return {"outcome": FAILED, "reason": f"{ending}: see {part.name}.log", "seconds": seconds}


def _device() -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        return {}
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    memory_gb = round(properties.total_memory / 1e9, 1)
    return {"gpu": properties.name, "gpu_memory_gb": memory_gb, "cuda": torch.version.cuda}
