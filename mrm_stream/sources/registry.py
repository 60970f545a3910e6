"""The sources by name, and the checks that hold for all of them."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mrm_stream.errors import RecordError, SourceError, StorageError
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import KEY_PATTERN, is_plain, quoted
from mrm_stream.storage.access import is_file, is_folder
from mrm_stream.storage.links import resolve_below
from mrm_stream.storage.paths import AnyPath

# Name to the module in this folder that describes it, as its `SOURCE`.
SOURCES = {
    "mimic": "mimic",
    "mimic-dicom": "mimic_dicom",
    "chexpert-plus": "chexpert_plus",
    "openi": "openi",
    "padchest": "padchest",
    "training-csv": "training_csv",
    "nih": "nih",
    "chexpert": "chexpert",
    "rsna": "rsna",
    "siim": "siim",
    "covid": "covid",
    "vindr": "vindr",
}

_LOOKED_FOR = 1_000
"""Images that are looked for below a remote root, where each look-up is a request; links that are looked at."""

_logger = logging.getLogger(__name__)


def find_source(name: str) -> Source:
    """Return a source by its name.

    Raises:
        SourceError: There is none of this name.
    """
    if name not in SOURCES:
        nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise SourceError(
            f"unknown source {name!r}", remedy=f"Did you mean {nearest!r}? There are {', '.join(SOURCES)}."
        )
    source = importlib.import_module(f"mrm_stream.sources.{SOURCES[name]}").SOURCE
    assert isinstance(source, Source)
    return source


def list_records(name: str, root: AnyPath, lists: AnyPath | None = None) -> list[Record]:
    """Return the records of a data set, in its own order.

    Args:
        name: One of `SOURCES`.
        root: Directory laid out as the source expects.
        lists: Folder of the reference code's list files, which then say what is in which split; None: the data set's
            own splits.

    Raises:
        SourceError: The source is unknown, or the reference code has no lists for it; a directory is not laid out as
            expected; it lists nothing, or has none of the images listed; a key is not valid or appears twice; a
            subject is in two splits of the data set's own; links lead out of the root (see `mrm_stream.storage.links`).
    """
    source = find_source(name)
    check_folders(root, lists)
    if lists is None:
        records = list(source.list_records(root))
    elif source.list_by_files is None:
        raise SourceError(
            f"the reference code has no list files for {name}", where=lists, remedy="Pack it by its own splits."
        )
    else:
        records = list(source.list_by_files(root, lists))
    if not records:
        raise SourceError("no images are listed", where=root, remedy=f"Check that this is a {name} directory.")
    _check_keys(records, root)
    _check_splits(records, root, may_overlap=lists is not None)
    _check_images(records, root)
    _check_links(records, root)
    return records


def check_folders(root: AnyPath, lists: AnyPath | None) -> None:
    """Raise SourceError where there is no folder at the root, or none of lists where they are wanted."""
    for directory in (root,) if lists is None else (root, lists):
        if not is_folder(directory):
            raise SourceError("there is no such directory", where=directory, remedy="Check the path that you gave.")


def _check_images(records: Sequence[Record], root: AnyPath) -> None:
    """Stops at the first image that is there, as a rule at once."""
    denied: StorageError | None = None
    for record in records if isinstance(root, Path) else islice(records, _LOOKED_FOR):
        try:
            if is_file(root / record.image_path):
                return
        except StorageError as error:
            if not isinstance(root, Path):  # asked again and again already
                raise
            denied = denied or error
    if denied is not None:
        raise denied
    raise SourceError(
        f"no images under the root: none of the {len(records):,} listed exists",
        where=root,
        remedy=f"The first one should be {quoted(records[0].image_path)} below the root.",
    )


def _check_links(records: Sequence[Record], root: AnyPath) -> None:
    """Raise SourceError where no image, or no report, or no mask, can be read as each leads out of the root.

    Stops at the first that does not, as a rule at once. A tree of links would else be quarantined as a whole.
    """
    if not isinstance(root, Path):
        return
    for attribute in ("image_path", "report_path", "mask_path"):
        refused: RecordError | None = None
        paths = (path for record in records if (path := getattr(record, attribute)) is not None)
        for path in islice(paths, _LOOKED_FOR):
            try:
                archive, _, member = path.partition("::")
                resolve_below(root, archive)
                with suppress(OSError, ValueError):  # a zip's member may be unpacked beside it, and need not be
                    resolve_below(root, member)
            except RecordError as error:
                refused = refused or error
            except (OSError, ValueError):
                continue
            else:
                break
        else:
            if refused is not None:
                raise SourceError(refused.what, where=refused.where, remedy=refused.remedy)


def _check_keys(records: Sequence[Record], root: AnyPath) -> None:
    paths: dict[str, str] = {}
    for record in records:
        if not KEY_PATTERN.fullmatch(record.key):
            raise SourceError(
                f"key {quoted(record.key)} is not valid",
                where=root / record.image_path if is_plain(record.image_path) else root,
                remedy="A key has 1 to 80 ASCII letters, digits, - and _.",
            )
        if record.key in paths:
            raise SourceError(
                f"key appears twice: {record.key!r} of {quoted(paths[record.key])} and of {quoted(record.image_path)}",
                where=root,
                remedy="Remove or rename one of them.",
            )
        paths[record.key] = record.image_path


def _check_splits(records: Sequence[Record], root: AnyPath, *, may_overlap: bool) -> None:
    """Views of one person in two splits would let the test see what the training saw."""
    split_of: dict[str, str] = {}
    overlapping: set[str] = set()
    for record in records:
        if record.split not in SPLITS:
            raise SourceError(
                f"unknown split {quoted(record.split)}", where=root, remedy=f"There are {', '.join(SPLITS)}."
            )
        if record.subject and split_of.setdefault(record.subject, record.split) != record.split:
            if not may_overlap:
                raise SourceError(
                    f"subject {quoted(record.subject)} is in two splits: {split_of[record.subject]} and {record.split}",
                    where=root,
                    remedy="Splits are by subject: correct the split table.",
                )
            overlapping.add(record.subject)
    if overlapping:
        # Published lists are packed as published: scores on them are only comparable so.
        _logger.warning("%d of %d subjects are in two splits of these lists", len(overlapping), len(split_of))
