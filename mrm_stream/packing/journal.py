"""What a packing job keeps while it runs, in `OUT/.packing/`, so that an interrupted one goes on where it stopped.

    lock            held by the one process that packs into OUT
    job.json        fingerprint of the job: other options or other records are another job
    NAME.json       written after the files it speaks of are published: one a shard, one for tokenizer and dictionary
    rejected.jsonl  the records that cannot be used, where they were too many
    .*.tmp          unfinished files

The folder is removed once the manifest is published.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import DICTIONARY, FOLDER, JOB, MANIFEST, QUARANTINE, TOKENIZER, set_around
from mrm_stream.formats.manifest import SHARD_NAME
from mrm_stream.formats.shard import canonical_json
from mrm_stream.packing.lock import locked
from mrm_stream.storage.access import is_there, matching
from mrm_stream.storage.files import names_in, read_whole, remove, remove_empty_folder
from mrm_stream.storage.paths import AnyPath
from mrm_stream.storage.publish import TEMPORARY_SUFFIX, make_private_folder, publish_bytes, sweep_staging, sync_folder
from mrm_stream.strict import parse_json

_LOCK = "lock"
_REJECTED = "rejected.jsonl"
_NOTE_LIMIT = 1 << 30
_OUR_FILES = {FOLDER, MANIFEST, TOKENIZER, DICTIONARY, QUARANTINE}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Journal:
    """The notes of one packing job; small enough to be pickled for worker processes."""

    out: AnyPath

    @property
    def folder(self) -> AnyPath:
        """Where notes and unfinished files lie."""
        return self.out / FOLDER

    @property
    def is_finished(self) -> bool:
        """Whether the job was interrupted so late that its manifest is there."""
        return MANIFEST in names_in(self.out)

    def note(self, name: str, content: Any) -> None:
        """Keep `content` (JSON) under a name, for good."""
        sealed = {"content": content, "sha256": hashlib.sha256(canonical_json(content)).hexdigest()}
        publish_bytes(self.folder / f"{name}.json", canonical_json(sealed))

    def recall(self, name: str) -> Any:
        """Return what was kept under a name, or None where it is absent or damaged."""
        try:
            sealed = parse_json(read_whole(self.folder / f"{name}.json", _NOTE_LIMIT))
            content = sealed["content"]
            is_whole = hashlib.sha256(canonical_json(content)).hexdigest() == sealed["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return content if is_whole else None

    def list_rejected(self, lines: bytes) -> AnyPath:
        """Keep the list of records that a job which ends without a set could not use; return its file."""
        path = self.folder / _REJECTED
        publish_bytes(path, lines)
        return path

    def sweep(self) -> None:
        """Remove unfinished files; remote storage shows none."""
        if isinstance(self.folder, Path):
            for path in matching(self.folder, f".*{TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the journal, the job's fingerprint last: interrupted here, the same job still knows its set."""
        for name in sorted(names_in(self.folder) - {_LOCK}, key=lambda name: name == JOB):
            remove(self.folder / name)
        if isinstance(self.folder, Path):  # a remote lock is removed by its holder, and the folder is gone with it
            shutil.rmtree(self.folder, ignore_errors=True)
        sync_folder(self.out)

    def discard(self) -> None:
        """Remove everything that the job wrote; the directory itself stays."""
        for name in names_in(self.out):
            if _is_ours(name) and name != FOLDER:
                remove(self.out / name)
        self.close()


@contextmanager
def open_journal(out: AnyPath, fingerprint: str) -> Iterator[Journal]:
    """Begin or resume the job with this fingerprint in the directory `out`, locked against every other process.

    Raises:
        ShardError: `out` holds a finished set, another job's leftovers, or files that are not ours; another process is
            packing there; or it cannot be written to.
    """
    check_vacant(out)
    journal = Journal(out)
    is_new = not is_there(out)
    made = make_private_folder(out)
    if not is_new and isinstance(out, Path) and out.stat().st_mode & 0o077:
        # What is in it is closed to others; the folder's own mode is its owner's business.
        _logger.warning("%s: others can see the names of the files in it, though not read them", out)
    make_private_folder(journal.folder)
    with locked(journal.folder / _LOCK, out):
        _check_job(journal, fingerprint)
        journal.sweep()
        sweep_staging()
        try:
            yield journal
        finally:
            journal.sweep()
            sweep_staging()  # of worker processes, which end at once when this one does
            for folder in made:  # A job that was refused has discarded all that it wrote: nothing is left of it.
                with suppress(OSError):
                    folder.rmdir()
    remove_empty_folder(journal.folder)


def _is_ours(name: str) -> bool:
    return name in _OUR_FILES or SHARD_NAME.fullmatch(Path(name).with_suffix(".tar").name) is not None


def check_vacant(out: AnyPath) -> None:
    """Check that a job may begin, or go on, in a directory.

    Raises:
        ShardError: It holds a finished set or files that are not ours, is none, or lies in another set.
    """
    outer = set_around(out.resolve().parent) if isinstance(out, Path) else None
    if outer is not None:
        raise ShardError(
            f"lies in the packed set {outer}", where=out, remedy="Choose a directory that is not in one of a set."
        )
    try:
        names = names_in(out)
    except NotADirectoryError as error:
        raise ShardError("is not a directory", where=out, remedy="Choose another directory.") from error
    if FOLDER not in names and MANIFEST in names:
        raise _finished(out)
    foreign = sorted(name for name in names if not _is_ours(name)) if FOLDER in names else sorted(names)
    if foreign:
        raise ShardError(
            f"holds other files, such as {foreign[0]!r}", where=out, remedy="Choose a new or empty directory."
        )


def _finished(out: AnyPath) -> ShardError:
    return ShardError(
        "already holds shards", where=out, remedy="Choose another directory, or remove this one to pack it anew."
    )


def _check_job(journal: Journal, fingerprint: str) -> None:
    begun = journal.recall(Path(JOB).stem)
    if begun is None and journal.is_finished:
        # Interrupted at the last step of `close`: whose set it is can no longer be told.
        journal.close()
        raise _finished(journal.out)
    if begun is None:
        # Notes of a job that cannot be told are nobody's: they may be of other options.
        for name in names_in(journal.folder) - {_LOCK}:
            remove(journal.folder / name)
        journal.note(Path(JOB).stem, fingerprint)
    elif begun != fingerprint:
        raise ShardError(
            "holds the beginning of another packing job (other options, other records or other library versions)",
            where=journal.out,
            remedy="Run that one again to finish it, or remove the directory.",
        )
