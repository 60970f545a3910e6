"""What MIMIC-CXR-JPG and MIMIC-CXR share: tables, reports, and the records made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mrm_stream.errors import SourceError
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.tables import KEY_PATTERN, claim, find_optional_table, quoted, read_rows
from mrm_stream.storage import Place, is_remote

TABLE = "mimic-cxr-2.0.0-{}.csv"
RADIOLOGIST_TABLE = "mimic-cxr-2.1.0-test-set-labeled.csv"
REPORTS_ZIP = "mimic-cxr-reports.zip"

MIMIC_CONDITIONS = (
    "MIMIC-CXR is credentialed data: by PhysioNet's agreement you do not share it, do not try to identify anyone in "
    "it, and send it to no third party, online services included. Shards, tokenizer and report decoder are derived "
    "from it."
)

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

_RADIOLOGIST_NAMES = {"Lung Opacity": "Airspace Opacity"}
_LABEL_VALUES = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}

_LOOKED_FOR = 1_000
"""Reports that are looked for below a remote root, where each look-up is a request."""

_logger = logging.getLogger(__name__)


class Splits(NamedTuple):
    """What the split table says."""

    by_image: dict[str, str]
    """dicom_id to one of `SPLITS`."""
    test_studies: set[str]


class Reports:
    """Knows where each study's report is, in the zip or in the tree, and whether there are any."""

    def __init__(self, root: Place) -> None:
        self._root = root
        self._has_zip = (root / REPORTS_ZIP).is_file()
        self._found = self._has_zip
        # One string for each report, however many images share it.
        self._paths: dict[str, str] = {}

    def path_of(self, folder: str) -> str:
        """Return the `report_path` of the study in this folder; it is looked for until the first one is found."""
        path = self._paths.get(folder)
        if path is None:
            path = f"{REPORTS_ZIP}::{folder}.txt" if self._has_zip else f"{folder}.txt"
            if not self._found and not (is_remote(self._root) and len(self._paths) >= _LOOKED_FOR):
                self._found = (self._root / path).is_file()
            self._paths[folder] = path
        return path

    def check_found(self) -> None:
        """Say where reports come from, where none was found.

        Raises:
            SourceError: None of those that were asked for is there.
        """
        if not self._found:
            raise SourceError(
                "there are no reports under the root",
                where=self._root,
                remedy=f"MIMIC-CXR-JPG comes without them: fetch {REPORTS_ZIP} of MIMIC-CXR and put it at the root.",
            )


def study_folder(subject: str, study: str) -> str:
    """Return the folder of a study's images; its report is beside it.

    Example:
        >>> study_folder("10000032", "50414267")
        'files/p10/p10000032/s50414267'
    """
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def make_records(
    root: Place,
    path: Place,
    rows: Iterable[tuple[int, tuple[str, ...]]],
    suffix: str,
    splits: Splits | None,
    labels: Mapping[str, Mapping[str, int]],
) -> Iterator[Record]:
    """Yield a record for each row, in their order. No image is looked for.

    Args:
        root: Where the reports are.
        path: The table that the rows are from, for messages.
        rows: (line, (dicom_id, subject_id, study_id, view)).
        suffix: Of the images' names, with its dot.
        splits: None: every record is of the training split.
        labels: Study to its labels.

    Raises:
        SourceError: An id is not of the expected form, an image has no split or is listed twice; there are no reports
            under the root.
    """
    lines: dict[str, int] = {}
    # One string for each subject, study and view, however many images share it.
    shared: dict[str, str] = {}
    reports = Reports(root)
    for line, (dicom_id, subject, study, view) in rows:
        _check_ids(dicom_id, subject, study, path, line)
        claim(lines, dicom_id, line, path)
        if splits is not None and dicom_id not in splits.by_image:
            raise SourceError(
                f"image {dicom_id} is not in the split table",
                where=f"{path}, line {line}",
                remedy="Take both tables from the same release.",
            )
        folder = study_folder(subject, study)
        yield Record(
            key=dicom_id,
            image_path=f"{folder}/{dicom_id}{suffix}",
            report_path=reports.path_of(folder),
            subject=shared.setdefault(subject, subject),
            study=shared.setdefault(study, study),
            view=shared.setdefault(view, view),
            split="train" if splits is None else splits.by_image[dicom_id],
            labels=labels.get(study, {}),
        )
    if lines:
        reports.check_found()


def read_splits(path: Place) -> Splits:
    """Return the split of each image, and the studies of the test split.

    Raises:
        SourceError: The table is damaged, names another split, or lists an image twice.
    """
    known = {split: split for split in SPLITS}
    lines: dict[str, int] = {}
    by_image = {}
    test_studies = set()
    for line, (dicom_id, study, split) in read_rows(path, ("dicom_id", "study_id", "split")):
        claim(lines, dicom_id, line, path)
        if split not in known:
            raise SourceError(
                f"unknown split {quoted(split)}", where=f"{path}, line {line}", remedy=f"Expected {', '.join(SPLITS)}."
            )
        by_image[dicom_id] = known[split]
        if split == "test":
            test_studies.add(study)
    return Splits(by_image, test_studies)


def read_labels(root: Place, path: Place, test_studies: set[str]) -> dict[str, Mapping[str, int]]:
    """Return study to its labels: the CheXpert labeler's, but the radiologists' for test studies that they labelled.

    Release 2.1.0 brought their table (687 studies), which the labeler's own scores are measured on. What it says of
    studies outside the test split, should there be any, is not taken: labels of one split are of one kind.

    Args:
        root: Where the radiologists' table is, or is not.
        path: The CheXpert table.
        test_studies: The studies of the test split.

    Raises:
        SourceError: A table is damaged, lacks a column, lists a study twice or holds another value.
    """
    labels = _read_label_table(path, dict(zip(FINDINGS, FINDINGS, strict=True)))
    radiologists = find_optional_table(root, RADIOLOGIST_TABLE)
    if radiologists is not None:
        columns = {finding: _RADIOLOGIST_NAMES.get(finding, finding) for finding in FINDINGS}
        if not _has_column(radiologists, "No Finding"):
            # Copies are found with and without it: radiologists mark what they see.
            del columns["No Finding"]
        theirs = _read_label_table(radiologists, columns)
        replaced = {study: values for study, values in theirs.items() if study in test_studies}
        labels |= replaced
        _logger.info("%s: radiologists' labels for %d studies of the test split", radiologists, len(replaced))
    return labels


def _read_label_table(path: Place, columns: Mapping[str, str]) -> dict[str, Mapping[str, int]]:
    """Return study to its labels; studies with the same ones share a mapping. Blank cells are left out.

    `columns` maps a finding to its column.
    """
    lines: dict[str, int] = {}
    mappings: dict[tuple[str, ...], Mapping[str, int]] = {}
    labels = {}
    for line, (study, *cells) in read_rows(path, ("study_id", *columns.values())):
        claim(lines, study, line, path)
        values = tuple(cells)
        if values not in mappings:
            mappings[values] = {
                finding: _label_value(value, finding, path, line)
                for finding, value in zip(columns, values, strict=True)
                if value
            }
        labels[study] = mappings[values]
    return labels


def _has_column(path: Place, column: str) -> bool:
    try:
        next(read_rows(path, (column,)), None)
    except SourceError:
        return False  # whatever else is wrong with the table shows when it is read
    return True


def _label_value(value: str, finding: str, path: Place, line: int) -> int:
    if value not in _LABEL_VALUES:
        raise SourceError(
            f"label {quoted(value)} of {finding}",
            where=f"{path}, line {line}",
            remedy="Expected 1.0, 0.0, -1.0 or none.",
        )
    return _LABEL_VALUES[value]


def _check_ids(dicom_id: str, subject: str, study: str, path: Place, line: int) -> None:
    """The ids become parts of paths, and the dicom_id the record's key."""
    numbers = subject.isascii() and subject.isdigit() and study.isascii() and study.isdigit()
    if not (numbers and KEY_PATTERN.fullmatch(dicom_id)):
        raise SourceError(
            "dicom_id, subject_id or study_id is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _ in dicom_id, and digits in the others.",
        )
