"""Lists MIMIC-CXR as DICOM, 2.0.0 or 2.1.0.

    root/cxr-record-list.csv.gz, cxr-study-list.csv.gz      (or unpacked, .csv)
    root/files/p10/p10000032/s50414267/<dicom_id>.dcm
    root/mimic-cxr-reports.zip, or root/files/p10/p10000032/s50414267.txt

Split, views and labels are published with MIMIC-CXR-JPG: put its `mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz`
(and 2.1.0's radiologists' labels) at the same root. Without the split table every record is of the training split;
without the metadata no view is known; without the labels there are none. Each is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import Join, text_id
from mrm_stream.sources.mimic_tables import (
    MIMIC_CONDITIONS,
    TABLE,
    make_records,
    read_ids,
    read_labels,
    read_splits,
    read_study,
    read_subject,
    study_folder,
)
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_optional_table, find_table, quoted, read_rows
from mrm_stream.storage.paths import AnyPath

_logger = logging.getLogger(__name__)


def list_mimic_dicom(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row of the record list, in its order; every view is listed, and no image looked for.

    Raises:
        SourceError: A list is missing, damaged or of another form; an image has no split, is listed twice, is of a
            study that the study list lacks, or has another path than the layout gives it; there are no reports under
            the root.
    """
    path = find_table(root, "cxr-record-list.csv")
    studies = _read_studies(find_table(root, "cxr-study-list.csv"))
    split_table = _find_of_jpg(root, "split", "every record is of the training split")
    splits = read_splits(split_table) if split_table is not None else None
    view_table = _find_of_jpg(root, "metadata", "no view is known")
    views = _read_views(view_table) if view_table is not None else None
    label_table = _find_of_jpg(root, "chexpert", "no record has labels")
    labels = read_labels(root, label_table, splits) if label_table is not None else None
    yield from make_records(root, path, _read_records(path, studies, views), ".dcm", splits, labels)
    studies.check(path.name)
    if views is not None:
        views.check(path.name)


def _find_of_jpg(root: AnyPath, name: str, otherwise: str) -> AnyPath | None:
    """Return a table of MIMIC-CXR-JPG; where it is not there, log what follows from it."""
    table = TABLE.format(name)
    path = find_optional_table(root, table)
    if path is None:
        _logger.warning("%s: there is no %s of MIMIC-CXR-JPG: %s", root, f"{table}.gz", otherwise)
    return path


def _read_records(path: AnyPath, studies: Join[str], views: Join[str] | None) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line, (dicom_id, subject, study, view)) of the record list."""
    for line, (*ids, image_path) in read_rows(path, ("dicom_id", "subject_id", "study_id", "path")):
        dicom_id, subject, study = read_ids(path, line, *ids)
        where = f"{path}, line {line}"
        _check_path(image_path, f"{study_folder(subject, study)}/{dicom_id}.dcm", where)
        if studies.need(study, where) != subject:
            raise SourceError(
                f"study {quoted(study)} is another subject's in the study list",
                where=where,
                remedy="Take both lists from the same release.",
            )
        view = views.get(dicom_id) if views is not None else None
        yield line, (dicom_id, subject, study, view or "")


def _read_studies(path: AnyPath) -> Join[str]:
    """Return study to subject."""
    lines: dict[str, int] = {}
    # One string for each subject, however many studies.
    shared: dict[str, str] = {}
    studies = {}
    for line, (subject_cell, study_cell, report_path) in read_rows(path, ("subject_id", "study_id", "path")):
        subject, study = read_subject(subject_cell, path, line), read_study(study_cell, path, line)
        claim(lines, study, line, path)
        _check_path(report_path, f"{study_folder(subject, study)}.txt", f"{path}, line {line}")
        studies[study] = shared.setdefault(subject, subject)
    return Join(studies, path, "studies")


def _read_views(path: AnyPath) -> Join[str]:
    """Return dicom_id to view."""
    lines: dict[str, int] = {}
    shared: dict[str, str] = {}
    views = {}
    for line, (cell, view) in read_rows(path, ("dicom_id", "ViewPosition")):
        dicom_id = text_id(cell)
        claim(lines, dicom_id, line, path)
        views[dicom_id] = shared.setdefault(view, view)
    return Join(views, path, "images")


def _check_path(found: str, expected: str, where: str) -> None:
    """Reports are found by the layout alone, and a path that leads elsewhere is none of this data set."""
    if found != expected:
        raise SourceError(
            f"the path is {quoted(found)}, and not {quoted(expected)}",
            where=where,
            remedy="Take the list as PhysioNet published it, and the files in the folders that it gives.",
        )


SOURCE = Source(list_mimic_dicom, conditions=MIMIC_CONDITIONS)
