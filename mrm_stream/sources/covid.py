"""Lists the COVID-19 Image Data Collection (Cohen et al., 2020).

root/metadata.csv, and the images in the folder and under the file name that it gives. The radiographs are listed
(modality X-ray); CT slices are not. The report is `clinical_notes`, as in the reference code's input file for this
collection; `other_notes` mostly credit the source. The collection has no split of its own, so every record is of the
training split, unless the reference code's lists say otherwise: five splits for each of two tasks, each in its folder
(`covid1/iscovid_train.txt`, `viral1/isviral_train.txt`, ...), which are to be packed one by one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import Join
from mrm_stream.sources.list_files import ListedImage, read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_table, keys_from_paths, read_rows
from mrm_stream.storage.files import names_in
from mrm_stream.storage.paths import AnyPath
from mrm_stream.text.blank_reports import says_something

COLUMNS = ("patientid", "offset", "finding", "view", "modality", "folder", "filename", "clinical_notes")

TABLE = "metadata.csv"
IMAGES = "images"
"""Folder of the radiographs, which the lists do not name."""

_LISTED_FINDINGS = {"iscovid": "COVID-19", "isviral": "Viral"}
_NO_LABEL = {"", "todo", "unknown"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    patient: str = ""
    study: str = ""
    finding: str = ""
    view: str = ""
    notes: str | None = field(default=None, repr=False)


def list_covid(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each radiograph that is on the disk and has notes that say something, in the table's order.

    Others are skipped, and their numbers logged: copies of this collection are often subsets, and a fifth of its
    radiographs come without notes. That is how it is, not damage.

    Raises:
        SourceError: The table is missing or damaged, lacks a column, or lists an image twice or none.
    """
    path, rows = _read_table(root)
    files = _find_files(root, rows)
    silent = 0
    for key, (image_path, row) in zip(keys_from_paths(list(rows)), rows.items(), strict=True):
        if files.get(image_path) is None:
            continue
        if row.notes is None:
            silent += 1
        else:
            yield _record(key, image_path, row, labels=_labels(row.finding))
    if silent:
        _logger.info("%s: %d radiographs without notes are skipped", path, silent)
    files.check(path.name)


def list_covid_by_files(root: AnyPath, folder: AnyPath) -> Iterator[Record]:
    """Yield a record for each image on the lists of a folder that is on the disk; split and label are the lists'.

    The label is `COVID-19` on lists called `iscovid_...`, `Viral` on those called `isviral_...`; other findings are
    dropped. Of images that the table lacks, as earlier releases named some otherwise, neither patient nor report is
    known. They and those that the disk lacks are counted, and the numbers logged. Many records have no report.

    Raises:
        SourceError: The table or a list is missing or damaged; an image is listed twice; a list has another name.
    """
    path, rows = _read_table(root)
    known = Join(rows, path, "images", enough=1)
    images = {f"{IMAGES}/{image.path}": image for image in read_lists(folder, values=1)}
    # Over both, so that a key is the same whichever lists are read, and as good as ever the one of `list_covid`.
    paths = list({**rows, **images})
    keys = dict(zip(paths, keys_from_paths(paths), strict=True))
    files = _find_files(root, images)
    for image_path, image in images.items():
        finding = _listed_finding(image, folder)
        row = known.get(image_path) or _Row()
        if files.get(image_path) is None:
            continue
        labels = {finding: image.values[0]}
        yield _record(keys[image_path], image_path, row, labels=labels, split=image.split, lists=image.lists)
    known.check("the lists")
    files.check("the lists")


def _record(
    key: str,
    image_path: str,
    row: _Row,
    *,
    labels: dict[str, int],
    split: str = "train",
    lists: tuple[str, ...] = (),
) -> Record:
    return Record(
        key=key,
        image_path=image_path,
        report_text=row.notes,
        subject=row.patient,
        study=row.study,
        view=row.view,
        split=split,
        labels=labels,
        lists=lists,
    )


def _find_files(root: AnyPath, paths: Iterable[str]) -> Join[bool]:
    """Return which files there are in the folders of these paths; one listing each."""
    folders = dict.fromkeys(path.rpartition("/")[0] for path in paths)
    found = {f"{folder}/{name}": True for folder in folders for name in sorted(names_in(root / folder))}
    return Join(found, " and ".join(str(root / folder) for folder in folders), "images", enough=1)


def _read_table(root: AnyPath) -> tuple[AnyPath, dict[str, _Row]]:
    """Return the table's file, and path to row of each radiograph."""
    path = find_table(root, TABLE)
    lines: dict[str, int] = {}
    rows = {}
    for line, (patient, offset, finding, view, modality, folder, filename, notes) in read_rows(path, COLUMNS):
        if modality != "X-ray":
            continue
        if not filename:
            raise SourceError("filename is blank", where=f"{path}, line {line}", remedy="Remove or correct the row.")
        claim(lines, f"{folder}/{filename}", line, path)
        rows[f"{folder}/{filename}"] = _Row(
            patient=patient,
            study=f"{patient}-{offset}" if offset else patient,
            finding=finding,
            view="" if view == "?" else view,
            notes=notes if says_something(notes) else None,
        )
    return path, rows


def _listed_finding(image: ListedImage, folder: AnyPath) -> str:
    tasks = {name.partition("_")[0] for name in image.lists}
    if len(tasks) != 1 or not tasks <= _LISTED_FINDINGS.keys():
        raise SourceError(
            f"the finding of {image.lists[-1]}.txt is not known, or another than that of {image.lists[0]}.txt",
            where=folder,
            remedy=f"All lists of a folder are called {' or all '.join(f'{task}_...' for task in _LISTED_FINDINGS)}.",
        )
    return _LISTED_FINDINGS[tasks.pop()]


def _labels(finding: str) -> dict[str, int]:
    """Return each level of a finding's path as present.

    Later releases write `Pneumonia/Viral/COVID-19`, earlier ones `COVID-19, ARDS`.

    Example:
        >>> _labels("Pneumonia/Viral/COVID-19")
        {'Pneumonia': 1, 'Viral': 1, 'COVID-19': 1}
    """
    names = (name.strip() for name in re.split("[/,]", finding))
    return {name: 1 for name in names if name.lower() not in _NO_LABEL}


SOURCE = Source(list_covid, list_by_files=list_covid_by_files)
