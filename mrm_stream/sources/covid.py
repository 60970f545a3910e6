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
from collections.abc import Iterator
from dataclasses import dataclass, field

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.blank_reports import says_something
from mrm_stream.sources.list_files import ListedImage, read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, keys_from_paths, read_rows
from mrm_stream.storage import Place

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


def list_covid(root: Place) -> Iterator[Record]:
    """Yield a record for each radiograph that is on the disk and has notes that say something, in the table's order.

    Others are left out, and their numbers logged: copies of this collection are often subsets, and a fifth of its
    radiographs come without notes. That is how it is, not damage.

    Raises:
        SourceError: The table is missing or damaged, lacks a column, or lists an image twice or none.
    """
    rows = _read_table(root)
    absent = silent = 0
    for key, (image_path, row) in zip(keys_from_paths(list(rows)), rows.items(), strict=True):
        if not (root / image_path).is_file():
            absent += 1
        elif row.notes is None:
            silent += 1
        else:
            yield _record(key, image_path, row, labels=_labels(row.finding))
    if silent:
        _logger.info("%s: %d radiographs without notes are left out", root / TABLE, silent)
    if absent:
        _logger.warning("%s: %d of the %d radiographs listed are not on the disk", root / TABLE, absent, len(rows))


def list_covid_by_files(root: Place, folder: Place) -> Iterator[Record]:
    """Yield a record for each image on the lists of a folder that is on the disk; split and label are the lists'.

    The label is `COVID-19` on lists called `iscovid_...`, `Viral` on those called `isviral_...`; other findings are
    left out. Of images that the table lacks, as earlier releases named some otherwise, neither patient nor report is
    known. They and those that the disk lacks are counted, and the numbers logged. Many records have no report.

    Raises:
        SourceError: The table or a list is missing or damaged; an image is listed twice; a list has another name.
    """
    rows = _read_table(root)
    images = {f"{IMAGES}/{image.path}": image for image in read_lists(folder, values=1)}
    # Over both, so that a key is the same whichever lists are read, and as good as ever the one of `list_covid`.
    unknown = [path for path in images if path not in rows]
    paths = [*rows, *unknown]
    keys = dict(zip(paths, keys_from_paths(paths), strict=True))
    absent = 0
    for image_path, image in images.items():
        finding = _listed_finding(image, folder)
        if not (root / image_path).is_file():
            absent += 1
            continue
        row = rows.get(image_path, _Row())
        labels = {finding: image.values[0]}
        yield _record(keys[image_path], image_path, row, labels=labels, split=image.split, lists=image.lists)
    if unknown:
        _logger.warning("%s: %d of %d listed images are not in %s", folder, len(unknown), len(images), TABLE)
    if absent:
        _logger.warning("%s: %d of %d listed images are not on the disk", folder, absent, len(images))


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


def _read_table(root: Place) -> dict[str, _Row]:
    """Return path to row of each radiograph."""
    path = root / TABLE
    lines: dict[str, int] = {}
    rows = {}
    for line, (patient, offset, finding, view, modality, folder, filename, notes) in read_rows(path, COLUMNS):
        if modality != "X-ray":
            continue
        if not filename:
            raise SourceError("filename is blank", where=f"{path}, line {line}", remedy="Remove or mend the row.")
        claim(lines, f"{folder}/{filename}", line, path)
        rows[f"{folder}/{filename}"] = _Row(
            patient=patient,
            study=f"{patient}-{offset}" if offset else patient,
            finding=finding,
            view="" if view == "?" else view,
            notes=notes if says_something(notes) else None,
        )
    return rows


def _listed_finding(image: ListedImage, folder: Place) -> str:
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
