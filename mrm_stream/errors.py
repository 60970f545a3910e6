"""Errors that a user can act on: what is wrong, where, and what to do.

Anything that the user, the data or the machine can cause is a `MrmStreamError`; the command line prints it without a
traceback. What only a mistake of ours can cause is an `assert`. No message ever holds report text.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping


class MrmStreamError(Exception):
    """Something that the user can repair.

    Args:
        what: What is wrong, as one clause.
        where: The file (a path or URL), and the position in it, or the setting.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = str(where) if where is not None else None
        self.remedy = remedy
        super().__init__(what, self.where, remedy)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        remedy = f"\n  {self.remedy}" if self.remedy else ""
        return f"{where}{self.what}{remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross process boundaries.
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def command_line(*words: object) -> str:
    """Return a command that can be pasted into a shell, however its paths are spelled.

    Example:
        >>> command_line("mrm-stream", "verify", "my shards")
        "mrm-stream verify 'my shards'"
    """
    return shlex.join(map(str, words))


def _rebuild(kind: type[MrmStreamError], what: str, where: str | None, remedy: str | None) -> MrmStreamError:
    return kind(what, where=where, remedy=remedy)


class ConfigError(MrmStreamError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class SourceError(MrmStreamError):
    """A data set's directory is not laid out as its source expects."""


class ShardError(MrmStreamError):
    """A packed data set is damaged, unfinished, or does not fit what it is used with."""


class StorageError(MrmStreamError):
    """A file or folder cannot be written: the disk is full, or writing there is not allowed."""


class CheckpointError(MrmStreamError):
    """A checkpoint is damaged, or belongs to another model or data set."""


class ClusterError(MrmStreamError):
    """The processes that do the work, here or on other machines, cannot be reached, or were killed."""


class RecordError(MrmStreamError):
    """One record cannot be used; packing quarantines it and goes on."""


class TrainingError(MrmStreamError):
    """The run cannot go on: too many bad samples, or a loss that is not finite."""


class DamagedSamplesError(MrmStreamError):
    """Some samples of a batch cannot be decoded; the loader replaces them and goes on.

    Args:
        reasons: Slot in the batch, 0-based, to why it cannot be decoded.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(
            f"{len(reasons)} damaged samples in a batch",
            remedy="`mrm-stream verify DIR --decode` names them; `mrm-stream repair DIR --root SOURCE` replaces them.",
        )
        self.reasons = dict(reasons)
