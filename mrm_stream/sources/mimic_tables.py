"""What MIMIC-CXR-JPG and MIMIC-CXR share: tables, reports, and the records made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mrm_stream.errors import SourceError, StorageError
from mrm_stream.records import SPLITS, Record
from mrm_stream.sources.joins import Join, number_id, text_id
from mrm_stream.sources.reading import members_of_zip
from mrm_stream.sources.tables import KEY_PATTERN, claim, find_optional_table, quoted, read_rows
from mrm_stream.storage.access import is_file
from mrm_stream.storage.paths import AnyPath, is_remote

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
_MANY_TESTS = 50
"""Test studies of which the radiologists' table, with every fifth of the published ones, cannot lack all by chance."""

_logger = logging.getLogger(__name__)


class Splits(NamedTuple):
    """What the split table says."""

    table: AnyPath
    by_image: Join[str]
    """dicom_id to one of `SPLITS`."""
    test_studies: Mapping[str, bool]
    """Those of the test split: each to True."""


class Labels(NamedTuple):
    """What the label tables say, by study."""

    labeler: Join[Mapping[str, int]]
    """The CheXpert labeler's."""
    radiologists: Mapping[str, Mapping[str, int]]
    """Of those test studies that they labelled."""

    def of(self, study: str) -> Mapping[str, int]:
        """Return a study's labels: the radiologists' where they are there."""
        labels = self.labeler.get(study)  # looked up in any case, to be counted
        return self.radiologists.get(study, {} if labels is None else labels)


class Reports:
    """Knows where each study's report is, in the zip or in the tree, and whether there are any."""

    def __init__(self, root: AnyPath) -> None:
        self._root = root
        self._zip: Join[bool] | None = None
        if is_file(root / REPORTS_ZIP):
            names = (name for name in members_of_zip(root, REPORTS_ZIP) if name.endswith(".txt"))
            self._zip = Join(dict.fromkeys(names, True), root / REPORTS_ZIP, "reports")
        self._found = False
        self._denied: StorageError | None = None
        # One string for each report, however many images share it.
        self._paths: dict[str, str] = {}

    def path_of(self, folder: str) -> str:
        """Return the `report_path` of the study in this folder.

        In the zip each is looked for; in the tree until the first one is found.
        """
        path = self._paths.get(folder)
        if path is None:
            path = f"{folder}.txt"
            if self._zip is not None:
                if is_remote(self._root) and not self._paths and is_file(self._root / path):
                    # As PhysioNet's own buckets have them; each comparison would be a request.
                    _logger.warning(
                        "%s: the reports are there twice; those of %s are read, and not compared with %s and the like",
                        self._root,
                        REPORTS_ZIP,
                        path,
                    )
                self._zip.get(path)
                path = f"{REPORTS_ZIP}::{path}"
            elif not self._found and not (is_remote(self._root) and len(self._paths) >= _LOOKED_FOR):
                self._look_for(self._root / path)
            self._paths[folder] = path
        return path

    def _look_for(self, path: AnyPath) -> None:
        try:
            self._found = is_file(path)
        except StorageError as error:
            if is_remote(self._root):  # asked again and again already
                raise
            self._denied = self._denied or error

    def check_found(self, of: str) -> None:
        """Say where reports come from, where none was found.

        Args:
            of: The table whose reports were asked for.

        Raises:
            SourceError: None of those that were asked for is there.
            StorageError: None was found, and one of them at least may not be looked for.
        """
        if self._zip is not None:
            self._zip.check(of)
        elif self._denied is not None and not self._found:
            raise self._denied
        elif not self._found:
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
    root: AnyPath,
    path: AnyPath,
    rows: Iterable[tuple[int, tuple[str, ...]]],
    suffix: str,
    splits: Splits | None,
    labels: Labels | None,
) -> Iterator[Record]:
    """Yield a record for each row, in their order. No image is looked for.

    Args:
        root: Where the reports are.
        path: The table that the rows are from, for messages.
        rows: (line, (dicom_id, subject_id, study_id, view)), as `read_ids` returns them.
        suffix: Of the images' names, with its dot.
        splits: None: every record is of the training split.
        labels: None: there are none.

    Raises:
        SourceError: An image has no split or is listed twice; no study has labels; there are no reports under the root.
    """
    lines: dict[str, int] = {}
    # One string for each subject, study and view, however many images share it.
    shared: dict[str, str] = {}
    reports = Reports(root)
    for line, (dicom_id, subject, study, view) in rows:
        claim(lines, dicom_id, line, path)
        folder = study_folder(subject, study)
        yield Record(
            key=dicom_id,
            image_path=f"{folder}/{dicom_id}{suffix}",
            report_path=reports.path_of(folder),
            subject=shared.setdefault(subject, subject),
            study=shared.setdefault(study, study),
            view=shared.setdefault(view, view),
            split="train" if splits is None else splits.by_image.need(dicom_id, f"{path}, line {line}"),
            labels={} if labels is None else labels.of(study),
        )
    if lines:
        reports.check_found(path.name)
    if splits is not None:
        splits.by_image.check(path.name)
    if labels is not None:
        labels.labeler.check(path.name)


def read_ids(path: AnyPath, line: int, dicom_id: str, subject: str, study: str) -> tuple[str, str, str]:
    """Return the three ids, however a tool wrote them; they become parts of paths, and the dicom_id the record's key.

    Raises:
        SourceError: One is not of the expected form.
    """
    image = text_id(dicom_id)
    if not KEY_PATTERN.fullmatch(image):
        raise SourceError(
            "dicom_id is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _.",
        )
    return image, read_subject(subject, path, line), read_study(study, path, line)


def read_subject(cell: str, path: AnyPath, line: int) -> str:
    """Return a subject_id; SourceError where it is none."""
    return _digits(cell, "subject_id", "p", path, line)


def read_study(cell: str, path: AnyPath, line: int) -> str:
    """Return a study_id; SourceError where it is none."""
    return _digits(cell, "study_id", "s", path, line)


def _digits(cell: str, column: str, prefix: str, path: AnyPath, line: int) -> str:
    text = number_id(cell, column, path, line, prefix=prefix)
    if not (text.isascii() and text.isdigit()):
        raise SourceError(
            f"{column} is not of the expected form: {quoted(cell)}",
            where=f"{path}, line {line}",
            remedy="Expected digits.",
        )
    return text


def read_splits(path: AnyPath) -> Splits:
    """Return the split of each image, and the studies of the test split.

    Raises:
        SourceError: The table is damaged, names another split, or lists an image twice.
    """
    known = {split: split for split in SPLITS}
    lines: dict[str, int] = {}
    by_image = {}
    test_studies = {}
    for line, (cell, study, split) in read_rows(path, ("dicom_id", "study_id", "split")):
        dicom_id = text_id(cell)
        claim(lines, dicom_id, line, path)
        if split not in known:
            raise SourceError(
                f"unknown split {quoted(split)}", where=f"{path}, line {line}", remedy=f"Expected {', '.join(SPLITS)}."
            )
        by_image[dicom_id] = known[split]
        if split == "test":
            test_studies[read_study(study, path, line)] = True
    return Splits(path, Join(by_image, path, "images"), test_studies)


def read_labels(root: AnyPath, path: AnyPath, splits: Splits | None) -> Labels:
    """Return all labels: the CheXpert labeler's, but the radiologists' for test studies that they labelled.

    Release 2.1.0 brought their table (687 studies), which the labeler's own scores are measured on. What it says of
    studies outside the test split, should there be any, is not taken: labels of one split are of one kind.

    Args:
        root: Where the radiologists' table is, or is not.
        path: The CheXpert table.
        splits: Which studies are of the test split; None: not known, so that their labels are not used.

    Raises:
        SourceError: A table is damaged, lacks a column, lists a study twice or holds another value; the radiologists
            labelled none of many test studies.
    """
    labeler = _read_label_table(path, dict(zip(FINDINGS, FINDINGS, strict=True)))
    replaced: dict[str, Mapping[str, int]] = {}
    radiologists = find_optional_table(root, RADIOLOGIST_TABLE)
    if radiologists is not None and splits is not None and splits.test_studies:
        columns = {finding: _RADIOLOGIST_NAMES.get(finding, finding) for finding in FINDINGS}
        if not _has_column(radiologists, "No Finding"):
            # Copies are found with and without it: radiologists mark what they see.
            del columns["No Finding"]
        theirs = _read_label_table(radiologists, columns)
        tests = Join(theirs, radiologists, "test studies", enough=0)
        found = {study: tests.get(study) for study in splits.test_studies}
        replaced = {study: values for study, values in found.items() if values is not None}
        # They labelled every fifth: a subset of a few test studies may well have none of those.
        if replaced or len(found) >= _MANY_TESTS:
            tests.check(splits.table.name)
        else:
            _logger.warning("%s: it has none of the %d test studies of %s", radiologists, len(found), splits.table.name)
    elif radiologists is not None:
        _logger.warning("%s is not used: no study is known to be of the test split", radiologists)
    return Labels(Join(labeler, path, "studies"), replaced)


def _read_label_table(path: AnyPath, columns: Mapping[str, str]) -> dict[str, Mapping[str, int]]:
    """Return study to its labels; studies with the same ones share a mapping. Blank cells give no label.

    `columns` maps a finding to its column.
    """
    lines: dict[str, int] = {}
    mappings: dict[tuple[str, ...], Mapping[str, int]] = {}
    labels = {}
    for line, (cell, *cells) in read_rows(path, ("study_id", *columns.values())):
        study = read_study(cell, path, line)
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


def _has_column(path: AnyPath, column: str) -> bool:
    try:
        next(read_rows(path, (column,)), None)
    except SourceError:
        return False  # whatever else is wrong with the table shows when it is read
    return True


def _label_value(value: str, finding: str, path: AnyPath, line: int) -> int:
    if value not in _LABEL_VALUES:
        raise SourceError(
            f"label {quoted(value)} of {finding}",
            where=f"{path}, line {line}",
            remedy="Expected 1.0, 0.0, -1.0 or none.",
        )
    return _LABEL_VALUES[value]
