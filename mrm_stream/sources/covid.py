"""Lists the COVID-19 Image Data Collection (Cohen et al., 2020).

root/metadata.csv, and the images in the folder and under the file name that it gives. The radiographs are listed
(modality X-ray); CT slices are not. The report is `clinical_notes`, as in the reference code's input file for this
collection; `other_notes` mostly credit the source. The collection has no split of its own, so every record is of the
training split.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.tables import claim, keys_from_paths, read_rows

COLUMNS = ("patientid", "offset", "finding", "view", "modality", "folder", "filename", "clinical_notes")

_NO_LABEL = {"", "todo", "unknown"}

_logger = logging.getLogger(__name__)


def list_covid(root: Path) -> Iterator[Record]:
    """Yield a record for each radiograph that is on the disk, in the table's order.

    Those that the table lists but the disk lacks are left out, and their number logged: copies of this collection are
    often subsets. A record without notes is listed; packing quarantines it.

    Raises:
        SourceError: The table is missing or damaged, lacks a column, or lists an image twice or none.
    """
    path = root / "metadata.csv"
    lines: dict[str, int] = {}
    rows = []
    for line, (patient, offset, finding, view, modality, folder, filename, notes) in read_rows(path, COLUMNS):
        if modality != "X-ray":
            continue
        if not filename:
            raise SourceError("filename is blank", where=f"{path}, line {line}", remedy="Remove or mend the row.")
        claim(lines, f"{folder}/{filename}", line, path)
        study = f"{patient}-{offset}" if offset else patient
        rows.append((patient, study, finding, view, notes))
    absent = 0
    for key, image_path, row in zip(keys_from_paths(list(lines)), lines, rows, strict=True):
        if not (root / image_path).is_file():
            absent += 1
            continue
        patient, study, finding, view, notes = row
        yield Record(
            key=key,
            image_path=image_path,
            report_text=notes if notes.strip() else None,
            subject=patient,
            study=study,
            view="" if view == "?" else view,
            labels=_labels(finding),
        )
    if absent:
        _logger.warning("%s: %d of the %d radiographs listed are not on the disk", path, absent, len(lines))


def _labels(finding: str) -> dict[str, int]:
    """Return each level of a finding's path as present.

    Later releases write `Pneumonia/Viral/COVID-19`, earlier ones `COVID-19, ARDS`.

    Example:
        >>> _labels("Pneumonia/Viral/COVID-19")
        {'Pneumonia': 1, 'Viral': 1, 'COVID-19': 1}
    """
    names = (name.strip() for name in re.split("[/,]", finding))
    return {name: 1 for name in names if name.lower() not in _NO_LABEL}
