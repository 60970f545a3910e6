"""Lists PadChest (Bustos et al., 2020).

    root/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv    (or another PADCHEST_*.csv; or compressed, .csv.gz)
    root/<ImageDir>/<ImageID>                                    (or all images at the root)

The reports are Spanish, and were lower-cased, stripped of punctuation and stemmed before they were published. View is
`Projection`: UNK is dropped, and AP_horizontal (lying) is written `AP horizontal`, as other sets write `AP
Supine`. Rows whose projection is EXCLUDE are no radiographs of a chest, and are not listed. The set has no split of its
own, so every record is of the training split.

`Labels` are taken by the set's own names, as present; `normal` becomes `No Finding`, and what is no finding (unchanged,
exclude, suboptimal study) is dropped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import number_id, text_id
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_table, keys_from_paths, quoted, read_rows
from mrm_stream.storage.access import is_folder
from mrm_stream.storage.files import names_in
from mrm_stream.storage.paths import AnyPath

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "Labels")
PADCHEST_CONDITIONS = (
    "PadChest is under BIMCV's research use agreement: no sharing, no attempt to identify anyone in it, no commercial "
    "use."
)

_TABLE_NAME = re.compile(r"PADCHEST_.*\.csv(?:\.gz)?")
# Neither can hold a slash nor be `..`: the path stays below the root.
_IMAGE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_IMAGE_DIR = re.compile(r"[A-Za-z0-9_-]{0,80}")  # blank: at the root
_NAME = r"""(?:'[^'\\]*'|"[^"\\]*")"""
_NAME_LIST = re.compile(rf"\[\s*(?:{_NAME}(?:\s*,\s*{_NAME})*)?\s*\]")

_VIEWS = {"UNK": "", "AP_horizontal": "AP horizontal"}
_LABEL_NAMES = {"normal": "No Finding"}
_NO_LABEL = {"", "exclude", "unchanged", "suboptimal study"}

_LOOKED_FOR = 1_000
"""Folders that are looked for; the set has 55."""

_logger = logging.getLogger(__name__)


def list_padchest(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row that is a chest radiograph, in the table's order; no image is looked for.

    A record without a report is listed; packing quarantines it.

    Raises:
        SourceError: The table is missing, damaged or lacks a column, or there are several; it lists an image twice,
            has a name that is none of a file or folder, an id that is blank, or labels that are no list.
    """
    path = _find_table(root)
    lines: dict[str, int] = {}
    rows = []
    # One string for each subject, study, folder, view and report, and one mapping for each list of labels.
    shared: dict[str, str] = {}
    labels: dict[str, Mapping[str, int]] = {}
    excluded = 0
    for line, (*ids, projection, report, cell) in read_rows(path, COLUMNS):
        if projection == "EXCLUDE":
            excluded += 1
            continue
        where = f"{path}, line {line}"
        image, folder = text_id(ids[0]), number_id(ids[1], "ImageDir", path, line)
        study, patient = (number_id(ids[i], COLUMNS[i], path, line) for i in (2, 3))
        if not (_IMAGE_ID.fullmatch(image) and _IMAGE_DIR.fullmatch(folder)):
            raise SourceError(
                "ImageID or ImageDir is blank, or no plain name of a file or folder",
                where=where,
                remedy="Expected letters, digits, - and _, and dots in ImageID.",
            )
        if not (study.strip() and patient.strip()):
            raise SourceError("StudyID or PatientID is blank", where=where, remedy="Remove or correct the row.")
        claim(lines, image, line, path)
        if cell not in labels:
            labels[cell] = _labels(cell, where)
        view = _VIEWS.get(projection, projection)
        rows.append(
            (
                shared.setdefault(folder, folder),
                shared.setdefault(patient, patient),
                shared.setdefault(study, study),
                shared.setdefault(view, view),
                shared.setdefault(report, report) if report.strip() else None,
                labels[cell],
            )
        )
    if excluded:
        _logger.info("%s: %d of %d rows are excluded by their projection", path, excluded, len(lines) + excluded)
    has_folders = _has_folders(root, (row[0] for row in rows))
    paths = [f"{row[0]}/{image}" if has_folders and row[0] else image for image, row in zip(lines, rows, strict=True)]
    # From the image's name alone: moving the images into folders or out of them changes no key.
    keys = keys_from_paths(list(lines))
    for key, image_path, (_, patient, study, view, text, values) in zip(keys, paths, rows, strict=True):
        yield Record(
            key=key, image_path=image_path, report_text=text, subject=patient, study=study, view=view, labels=values
        )


def _find_table(root: AnyPath) -> AnyPath:
    # Compressed or not, a table is one, if the two are equal.
    names = sorted({name.removesuffix(".gz") for name in names_in(root) if _TABLE_NAME.fullmatch(name)})
    if not names:
        raise SourceError(
            f"there is neither {TABLE}.gz nor {TABLE}, nor another PADCHEST_*.csv",
            where=root,
            remedy="Give the directory that holds this table as root.",
        )
    if len(names) > 1:
        raise SourceError(
            f"there are {len(names)} tables, {quoted(names[0])} and {quoted(names[1])} among them",
            where=root,
            remedy="Leave only the one to be packed at the root.",
        )
    return find_table(root, names[0])


def _has_folders(root: AnyPath, folders: Iterable[str]) -> bool:
    """Return whether images lie in their folders, as published, rather than all at the root."""
    distinct = dict.fromkeys(folder for folder in folders if folder)
    return any(is_folder(root / folder) for folder in islice(distinct, _LOOKED_FOR))


def _labels(cell: str, where: str) -> dict[str, int]:
    """Return the labels of a cell, which holds a list of strings as Python writes it, or nothing.

    Example:
        >>> _labels("['pleural effusion', ' unchanged', 'normal']", "a table, line 2")
        {'pleural effusion': 1, 'No Finding': 1}
    """
    if not cell.strip():
        return {}
    if not _NAME_LIST.fullmatch(cell.strip()):
        raise SourceError(
            "Labels is no list of names", where=where, remedy="Expected, for example: ['cardiomegaly', 'scoliosis']."
        )
    names = (name[1:-1].strip() for name in re.findall(_NAME, cell))
    return {_LABEL_NAMES.get(name, name): 1 for name in names if name not in _NO_LABEL}


SOURCE = Source(list_padchest, conditions=PADCHEST_CONDITIONS)
