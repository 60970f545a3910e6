"""Lists CheXpert Plus (Chambon et al., 2024), its PNG release.

    root/df_chexpert_plus_240401.csv                         (or compressed, .csv.gz)
    root/PNG/train/patient42142/study5/view1_frontal.png     (or PNG/PNG/..., as PNG.zip unpacks into a folder PNG)

The table's `path_to_image` names CheXpert's JPEG files (`train/patient42142/study5/view1_frontal.jpg`). The PNG release
keeps folders and names, and has `.png` where the table says `.jpg`: so the suffix is exchanged here. The report is the
column `report` as a whole; its sections are within it. `valid` is our `validate`; there is no test split. Labels are
published apart, as output of CheXbert, and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import number_id, text_id
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_table, keys_from_paths, quoted, read_rows
from mrm_stream.storage.access import is_folder
from mrm_stream.storage.paths import AnyPath

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = (
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "report",
    "split",
)
CHEXPERT_PLUS_CONDITIONS = (
    "CheXpert Plus is under Stanford's research use agreement: no sharing, no attempt to identify anyone in it, no "
    "commercial use."
)

_SPLITS = {"train": "train", "valid": "validate"}
# No dot but the suffix's: such a path cannot lead out of the root.
_IMAGE_PATH = re.compile(r"((?:[\w-]+/)+[\w-]+)\.(?:jpg|png)", re.ASCII)


def list_chexpert_plus(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each row of the table, in its order; every view is listed, and no image looked for.

    A record without a report is listed; packing quarantines it.

    Raises:
        SourceError: The table is missing, damaged or lacks a column; it lists an image twice, has a path that is no
            image's below the root, an id that is blank, or another split.
    """
    path = find_table(root, TABLE)
    folder = "PNG/PNG" if is_folder(root / "PNG/PNG") else "PNG"
    lines: dict[str, int] = {}
    rows = []
    # One string for each patient, study and report, however many images share it.
    shared: dict[str, str] = {}
    for line, (image_path, side, direction, patient, order, report, split) in read_rows(path, COLUMNS):
        where = f"{path}, line {line}"
        match = _IMAGE_PATH.fullmatch(image_path)
        if match is None:
            raise SourceError(
                f"path_to_image is {quoted(image_path)}",
                where=where,
                remedy="Expected a path below the root, such as train/patient42142/study5/view1_frontal.jpg.",
            )
        if not (patient.strip() and order.strip()):
            raise SourceError(
                "deid_patient_id or patient_report_date_order is blank",
                where=where,
                remedy="Remove or correct the row.",
            )
        if split not in _SPLITS:
            raise SourceError(f"split is {quoted(split)}", where=where, remedy=f"Expected {' or '.join(_SPLITS)}.")
        claim(lines, f"{folder}/{match[1]}.png", line, path)
        patient, order = text_id(patient), number_id(order, "patient_report_date_order", path, line)
        study = f"{patient}-{order}"
        rows.append(
            (
                shared.setdefault(patient, patient),
                shared.setdefault(study, study),
                _view(side, direction),
                _SPLITS[split],
                shared.setdefault(report, report) if report.strip() else None,
            )
        )
    for key, image_path, row in zip(keys_from_paths(list(lines)), lines, rows, strict=True):
        patient, study, view, split, text = row
        yield Record(
            key=key, image_path=image_path, report_text=text, subject=patient, study=study, view=view, split=split
        )


def _view(side: str, direction: str) -> str:
    """Return AP or PA of a frontal image where it is one of them, else Frontal or Lateral.

    The direction of a lateral image is the detector's side (LL, RL), and a few frontal ones have that by mistake.

    Example:
        >>> _view("Frontal", "AP"), _view("Frontal", "LL"), _view("Lateral", "")
        ('AP', 'Frontal', 'Lateral')
    """
    return direction if side == "Frontal" and direction in ("AP", "PA") else side


SOURCE = Source(list_chexpert_plus, conditions=CHEXPERT_PLUS_CONDITIONS)
