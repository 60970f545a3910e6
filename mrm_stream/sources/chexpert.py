"""Lists CheXpert (Irvin et al., 2019), as published or in the small version (`CheXpert-v1.0-small`).

    root/train.csv, root/valid.csv, root/test.csv (the last where it is there; or compressed, .csv.gz)
    root/train/patient00001/study1/view1_frontal.jpg

The root may also be the directory that holds `CheXpert-v1.0-small` or `CheXpert-v1.0`. The tables' paths begin with
the name of that folder, which is ignored: copies are often renamed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import Join
from mrm_stream.sources.list_files import read_lists
from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_optional_table, find_table, quoted, read_rows
from mrm_stream.storage.paths import AnyPath

CHEXPERT_CONDITIONS = (
    "By Stanford's research use agreement CheXpert is for personal, non-commercial research: you do not share it, and "
    "do not try to identify anyone in it."
)

LISTED_UNCERTAIN = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1}
"""The findings of the reference code's lists, in their order, and what an uncertain label of the table became there.

With a blank as 0, all 29,025 images of its validation, 1 % and 10 % lists agree with `train.csv`; a fork of its code
(ECAMP) spells the order out, and GLoRIA and MGCA have the same five and the same treatment of uncertain labels.
`list_chexpert_by_files` counts where lists and tables differ.
"""

FOLDERS = ("CheXpert-v1.0-small", "CheXpert-v1.0")

_SPLITS = {"train": "train", "valid": "validate", "test": "test"}
_COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", *FINDINGS)
_PATH = re.compile(
    r"(?:CheXpert[^/]*/)?((train|valid|test)/(patient[0-9]{1,8})/(study[0-9]{1,4})/[A-Za-z0-9_-]{1,40})(\.(?:jpg|png))"
)
_LABEL_VALUES = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    subject: str
    study: str
    view: str
    split: str
    labels: Mapping[str, int]


def list_chexpert(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row of the tables: training, then validation, then test; no image is looked for.

    A finding whose cell is blank gets no label; an uncertain one is -1. The view is AP, PA, ... where the table says
    so, else Frontal or Lateral.

    Raises:
        SourceError: A table is missing or damaged, lacks a column, or lists an image twice; a path or a label is not
            of the expected form.
    """
    folder, rows = _read_tables(root)
    for path, row in rows.items():
        yield _record(folder, path, row, row.split, row.labels)


def list_chexpert_by_files(root: AnyPath, lists: AnyPath) -> Iterator[Record]:
    """Yield a record for each image on the lists of a folder; split and the five labels are the lists'.

    The lists of the reference code take the official validation split as test split. They have no uncertain labels:
    `LISTED_UNCERTAIN` says what those of the tables became. Where a label is another on the lists, the lists' is taken,
    and the number of such images logged.

    Raises:
        SourceError: A table or a list is missing or damaged; an image is listed twice, or is in no table.
    """
    folder, rows = _read_tables(root)
    images = read_lists(lists, values=len(LISTED_UNCERTAIN))
    known = Join(rows, root / folder if folder else root, "images")
    shared: dict[tuple[int, ...], Mapping[str, int]] = {}
    other = 0
    seen: dict[str, str] = {}
    for image in images:
        match = _PATH.fullmatch(image.path)
        path = match[1] + match[5] if match else ""
        row = known.need(path or image.path, f"{lists}, {image.lists[0]}.txt")
        if seen.setdefault(path, image.path) != image.path:
            raise SourceError(
                f"one image is listed as {quoted(seen[path])} and as {quoted(image.path)}",
                where=lists,
                remedy="Take all lists from one release.",
            )
        labels = shared.setdefault(image.values, dict(zip(LISTED_UNCERTAIN, image.values, strict=True)))
        other += any(_listed_value(row, finding) != value for finding, value in labels.items())
        yield _record(folder, path, row, image.split, labels, image.lists)
    if other:
        _logger.warning("%s: %d of %d listed images have other labels in the tables", lists, other, len(images))
    known.check("the lists")


def _listed_value(row: _Row, finding: str) -> int:
    """Return what a label of the tables became on the reference code's lists."""
    value = row.labels.get(finding, 0)
    return LISTED_UNCERTAIN[finding] if value == -1 else value


def _record(
    folder: str, path: str, row: _Row, split: str, labels: Mapping[str, int], lists: tuple[str, ...] = ()
) -> Record:
    # The file's name is one of a few: `view1_frontal.jpg`. The path without the data set's folder is unique, and the
    # same in every copy.
    return Record(
        key=path.rpartition(".")[0].replace("/", "-"),
        image_path=f"{folder}{path}",
        subject=row.subject,
        study=row.study,
        view=row.view,
        split=split,
        labels=labels,
        lists=lists,
    )


def _find_folder(root: AnyPath) -> str:
    """Return what stands before a path of the tables: nothing, or the data set's folder and a slash."""
    if find_optional_table(root, "train.csv") is not None:
        return ""
    folders = [folder for folder in FOLDERS if find_optional_table(root, f"{folder}/train.csv") is not None]
    if len(folders) != 1:
        raise SourceError(
            f"there is no train.csv in it, nor in {' or '.join(FOLDERS)} below it"
            if not folders
            else f"there are both {' and '.join(folders)} in it",
            where=root,
            remedy="Give the directory that holds train.csv as root.",
        )
    return f"{folders[0]}/"


def _read_tables(root: AnyPath) -> tuple[str, dict[str, _Row]]:
    """Return the data set's folder, and path (below it) to row; rows with the same labels share a mapping."""
    folder = _find_folder(root)
    mappings: dict[tuple[str, ...], Mapping[str, int]] = {}
    shared: dict[str, str] = {}
    rows: dict[str, _Row] = {}
    for name in _SPLITS:
        table = (find_optional_table if name == "test" else find_table)(root, f"{folder}{name}.csv")
        if table is None:
            continue
        lines: dict[str, int] = {}
        for line, (cell, side, projection, *values) in read_rows(table, _COLUMNS):
            match = _PATH.fullmatch(cell)
            if match is None or match[2] != name:
                raise SourceError(
                    f"Path is not of the expected form: {quoted(cell)}",
                    where=f"{table}, line {line}",
                    remedy=f"Expected a path like {FOLDERS[0]}/{name}/patient00001/study1/view1_frontal.jpg.",
                )
            path = match[1] + match[5]
            claim(lines, path, line, table)
            cells = tuple(values)
            if cells not in mappings:
                mappings[cells] = _labels(cells, f"{table}, line {line}")
            subject, study, view = match[3], f"{match[3]}-{match[4]}", projection or side
            rows[path] = _Row(
                subject=shared.setdefault(subject, subject),
                study=shared.setdefault(study, study),
                view=shared.setdefault(view, view),
                split=_SPLITS[name],
                labels=mappings[cells],
            )
    return folder, rows


def _labels(cells: tuple[str, ...], where: str) -> Mapping[str, int]:
    labels = {}
    for finding, cell in zip(FINDINGS, cells, strict=True):
        if cell and cell not in _LABEL_VALUES:
            raise SourceError(
                f"label {quoted(cell)} of {finding}", where=where, remedy="Expected 1.0, 0.0, -1.0 or none."
            )
        if cell:
            labels[finding] = _LABEL_VALUES[cell]
    return labels


SOURCE = Source(list_chexpert, list_by_files=list_chexpert_by_files, has_reports=False, conditions=CHEXPERT_CONDITIONS)
