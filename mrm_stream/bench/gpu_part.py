"""One part of `mrm-stream bench gpu`, in a process of its own: an error on a GPU spoils all that follows in a process.

python -m mrm_stream.bench.gpu_part NAME OUT full|tiny
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrm_stream.bench.gpu_setting import Found, Setting, SkippedError

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def main(name: str, out: str, size: str) -> None:
    """Run a part, and write what it found to `OUT/NAME.json`."""
    started = time.perf_counter()
    result = _result(name, Setting(Path(out), tiny=size == "tiny"))
    result["seconds"] = round(time.perf_counter() - started, 1)
    (Path(out) / f"{name}.json").write_text(json.dumps(result))


def _result(name: str, setting: Setting) -> dict[str, Any]:
    try:
        found = _function(name)(setting)
    except SkippedError as skipped:
        return {"outcome": SKIPPED, "reason": str(skipped)}
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mrm_stream"):
            raise
        return {"outcome": SKIPPED, "reason": f"the package {error.name} is not installed"}
    except Exception as error:
        traceback.print_exc()
        return {"outcome": FAILED, "reason": f"{type(error).__name__}: {error}"}
    if found.faults:
        return {"outcome": FAILED, "reason": "; ".join(found.faults), "numbers": found.numbers}
    return {"outcome": PASSED, "numbers": found.numbers}


def _function(name: str) -> Callable[[Setting], Found]:
    # Imported here: a package that one part needs and this machine lacks is no matter of the others.
    if name in ("data", "decoders", "pixels", "decoding"):
        from mrm_stream.bench import gpu_pixels as parts
    elif name in ("run", "tests"):
        from mrm_stream.bench import gpu_run as parts  # type: ignore[no-redef]
    else:
        from mrm_stream.bench import gpu_steps as parts  # type: ignore[no-redef]
    function: Callable[[Setting], Found] = getattr(parts, f"check_{name}")
    return function


if __name__ == "__main__":
    main(*sys.argv[1:])
