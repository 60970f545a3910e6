"""The sources by name, and the checks that hold for all of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mrm_stream.errors import SourceError
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.covid import list_covid
from mrm_stream.sources.mimic import list_mimic
from mrm_stream.sources.tables import KEY_PATTERN, quoted
from mrm_stream.sources.training_csv import list_training_csv

SOURCES: dict[str, Callable[[Path], Iterator[Record]]] = {
    "mimic": list_mimic,
    "training-csv": list_training_csv,
    "covid": list_covid,
}


def list_records(name: str, root: Path) -> list[Record]:
    """Return the records of a data set, in its own order.

    Args:
        name: One of `SOURCES`.
        root: Directory laid out as the source expects.

    Raises:
        SourceError: The source is unknown; the directory is not laid out as expected; it lists nothing, or has none of
            the images listed; a key is not valid or appears twice; a subject is in two splits.
    """
    if name not in SOURCES:
        nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise SourceError(
            f"unknown source {name!r}", remedy=f"Did you mean {nearest!r}? There are {', '.join(SOURCES)}."
        )
    if not root.is_dir():
        raise SourceError("there is no such directory", where=root, remedy="Check the root that you gave.")
    records = list(SOURCES[name](root))
    if not records:
        raise SourceError("no images are listed", where=root, remedy=f"Check that this is a {name} directory.")
    _check_keys(records, root)
    _check_splits(records, root)
    # Stops at the first image that is there, as a rule at once.
    if not any(os.path.isfile(os.path.join(root, record.image_path)) for record in records):  # noqa: PTH113, PTH118
        raise SourceError(
            f"no images under the root: none of the {len(records):,} listed exists",
            where=root,
            remedy=f"The first one should be {quoted(records[0].image_path)} below the root.",
        )
    return records


def _check_keys(records: Sequence[Record], root: Path) -> None:
    paths: dict[str, str] = {}
    for record in records:
        if not KEY_PATTERN.fullmatch(record.key):
            raise SourceError(
                f"key {record.key[:80]!r} is not valid",
                where=root / record.image_path,
                remedy="A key has 1 to 80 ASCII letters, digits, - and _.",
            )
        if record.key in paths:
            raise SourceError(
                f"key appears twice: {record.key!r} of {quoted(paths[record.key])} and of {quoted(record.image_path)}",
                where=root,
                remedy="Remove or rename one of them.",
            )
        paths[record.key] = record.image_path


def _check_splits(records: Sequence[Record], root: Path) -> None:
    """Views of one person in two splits would let the test see what the training saw."""
    split_of: dict[str, str] = {}
    for record in records:
        if record.split not in SPLITS:
            raise SourceError(
                f"unknown split {record.split[:80]!r}", where=root, remedy=f"There are {', '.join(SPLITS)}."
            )
        if record.subject and split_of.setdefault(record.subject, record.split) != record.split:
            raise SourceError(
                f"subject {record.subject[:80]!r} is in two splits: {split_of[record.subject]} and {record.split}",
                where=root,
                remedy="Splits are by subject: mend the split table.",
            )
