"""Names of the files of a packed set, and whether a folder is one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
DICTIONARY = "reports.zdict"
QUARANTINE = "quarantine.jsonl"
FORMAT = "mrm-stream-shards"
"""What every manifest says that it is."""
FOLDER = ".packing"
"""Notes of a job that is not finished; removed when it is."""
JOB = "job.json"


def set_around(path: Path) -> Path | None:
    """Return the packed set, finished or not, that a local path is or lies in; None where there is none.

    What else is written there would be foreign to `verify`, and might replace a shard.
    """
    whole = path.resolve()
    return next((folder for folder in (whole, *whole.parents) if _is_set(folder)), None)


def _is_set(folder: Path) -> bool:
    for name, beginning in ((MANIFEST, FORMAT.encode()), (f"{FOLDER}/{JOB}", b"")):
        with suppress(OSError), (folder / name).open("rb") as file:
            return beginning in file.read(100)
    return False
