"""Lists MIMIC-CXR-JPG, 2.0.0 or 2.1.0 (both keep "2.0.0" in the names of their tables).

    root/mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz   (or unpacked, .csv)
    root/files/p10/p10000032/s50414267/<dicom_id>.jpg
    root/mimic-cxr-reports.zip, or root/files/p10/p10000032/s50414267.txt

MIMIC-CXR-JPG comes without reports: they are published with MIMIC-CXR, and must be put under the same root. Where both
forms are there, the zip is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mrm_stream.errors import SourceError
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.tables import KEY_PATTERN, claim, find_table, read_rows

TABLE = "mimic-cxr-2.0.0-{}.csv"
REPORTS_ZIP = "mimic-cxr-reports.zip"

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The label columns of the CheXpert table."""

_LABEL_VALUES = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}


def list_mimic(root: Path) -> Iterator[Record]:
    """Yield a record for each row of the metadata table, in its order; every view is listed.

    No image is looked for: 377,110 look-ups can take minutes on network storage.

    Raises:
        SourceError: A table is missing, damaged or of another form; an image has no split or is listed twice; there
            are no reports under the root.
    """
    splits = _read_splits(find_table(root, TABLE.format("split")))
    labels = _read_labels(find_table(root, TABLE.format("chexpert")))
    path = find_table(root, TABLE.format("metadata"))
    has_zip = (root / REPORTS_ZIP).is_file()
    has_reports = has_zip
    lines: dict[str, int] = {}
    # One string for each subject, study and report, however many images share it.
    shared: dict[str, str] = {}
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for line, (dicom_id, subject, study, view) in read_rows(path, columns):
        _check_ids(dicom_id, subject, study, path, line)
        claim(lines, dicom_id, line, path)
        if dicom_id not in splits:
            raise SourceError(
                f"image {dicom_id} is not in the split table",
                where=f"{path}, line {line}",
                remedy="Take both tables from the same release.",
            )
        folder = f"files/p{subject[:2]}/p{subject}/s{study}"
        report = f"{REPORTS_ZIP}::{folder}.txt" if has_zip else f"{folder}.txt"
        has_reports = has_reports or (root / report).is_file()
        yield Record(
            key=dicom_id,
            image_path=f"{folder}/{dicom_id}.jpg",
            report_path=shared.setdefault(report, report),
            subject=shared.setdefault(subject, subject),
            study=shared.setdefault(study, study),
            view=shared.setdefault(view, view),
            split=splits[dicom_id],
            labels=labels.get(study, {}),
        )
    if not has_reports:
        raise SourceError(
            "there are no reports under the root",
            where=root,
            remedy=f"MIMIC-CXR-JPG comes without them: fetch {REPORTS_ZIP} of MIMIC-CXR and put it at the root.",
        )


def _read_splits(path: Path) -> dict[str, str]:
    """Return dicom_id to split."""
    known = {split: split for split in SPLITS}
    lines: dict[str, int] = {}
    splits = {}
    for line, (dicom_id, split) in read_rows(path, ("dicom_id", "split")):
        claim(lines, dicom_id, line, path)
        if split not in known:
            raise SourceError(
                f"unknown split {split[:80]!r}", where=f"{path}, line {line}", remedy=f"Expected {', '.join(SPLITS)}."
            )
        splits[dicom_id] = known[split]
    return splits


def _read_labels(path: Path) -> dict[str, Mapping[str, int]]:
    """Return study to its labels; studies with the same ones share a mapping. Blank cells are left out."""
    lines: dict[str, int] = {}
    mappings: dict[tuple[str, ...], Mapping[str, int]] = {}
    labels = {}
    for line, (study, *cells) in read_rows(path, ("study_id", *FINDINGS)):
        claim(lines, study, line, path)
        values = tuple(cells)
        if values not in mappings:
            mappings[values] = {
                finding: _label_value(value, finding, path, line)
                for finding, value in zip(FINDINGS, values, strict=True)
                if value
            }
        labels[study] = mappings[values]
    return labels


def _label_value(value: str, finding: str, path: Path, line: int) -> int:
    if value not in _LABEL_VALUES:
        raise SourceError(
            f"label {value[:80]!r} of {finding}",
            where=f"{path}, line {line}",
            remedy="Expected 1.0, 0.0, -1.0 or none.",
        )
    return _LABEL_VALUES[value]


def _check_ids(dicom_id: str, subject: str, study: str, path: Path, line: int) -> None:
    """The ids become parts of paths, and the dicom_id the record's key."""
    numbers = subject.isascii() and subject.isdigit() and study.isascii() and study.isdigit()
    if not (numbers and KEY_PATTERN.fullmatch(dicom_id)):
        raise SourceError(
            "dicom_id, subject_id or study_id is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _ in dicom_id, and digits in the others.",
        )
