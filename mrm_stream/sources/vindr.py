"""Lists VinDr-CXR 1.0.0, as PhysioNet has it.

    root/{train,test}/<image_id>.dicom    (or .png, .jpg: a copy)
    root/annotations/image_labels_{train,test}.csv    image_id, (train: rad_id,) a column of 0 and 1 for each finding
    root/annotations/annotations_{train,test}.csv     image_id, (train: rad_id,) class_name, x_min, y_min, x_max, y_max
    root/{train,test}_meta.csv                        image_id, dim0, dim1: heights and widths of the DICOMs, optional

Boxes are in pixels of the DICOMs. A smaller copy needs the tables of their sizes, as published copies bring them: the
boxes are then scaled. Without them the images are taken to be as large as the DICOMs are.

Three readers labelled each training image, and their majority is the label; five agreed on one row for each test image.
Boxes are as drawn, each reader's own: those of a finding may lie over each other, and there are boxes of findings that
the majority did not see. The data set names no patients, so records have no subject; its own two splits are kept.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from mrm_stream.errors import SourceError
from mrm_stream.records import Box, Record
from mrm_stream.sources.joins import Join, text_id
from mrm_stream.sources.rsna import read_coordinates
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import KEY_PATTERN, claim, find_optional_table, find_table, quoted, read_rows
from mrm_stream.storage.files import names_in
from mrm_stream.storage.paths import AnyPath

FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
"""The label columns, as the training table spells them."""

VINDR_CONDITIONS = (
    "VinDr-CXR is credentialed data: by PhysioNet's agreement you do not share it, do not try to identify anyone in "
    "it, and send it to no third party, online services included."
)

# The test table's spelling, of the one column whose name differs.
_OTHER_SPELLING = {"Other diseases": "Other disease"}
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")
_LABEL_VALUES = {"1": 1, "0": 0, "1.0": 1, "0.0": 0}
_FINDING = re.compile(r"[A-Za-z][A-Za-z /()-]{0,79}")
_CORNERS = ("x_min", "y_min", "x_max", "y_max")

_logger = logging.getLogger(__name__)


def list_vindr(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each labelled image: the training split's, then the test's, in the order of their tables.

    Raises:
        SourceError: A table is missing, damaged or of another form; a reader labelled an image twice; a box is no such
            thing, or of an image without labels; a table of sizes lacks an image; a folder has no images.
    """
    for split in ("train", "test"):
        has_readers = split == "train"
        label_table = find_table(root, f"annotations/image_labels_{split}.csv")
        labels = _read_labels(label_table, has_readers)
        known = Join(labels, label_table, "images")
        boxes = _read_boxes(find_table(root, f"annotations/annotations_{split}.csv"), known)
        sizes = _read_sizes(find_optional_table(root, f"{split}_meta.csv"), labels)
        suffix = _find_suffix(root / split)
        for image_id, image_labels in labels.items():
            yield Record(
                key=image_id,
                image_path=f"{split}/{image_id}{suffix}",
                split=split,
                labels=image_labels,
                boxes=tuple(boxes.get(image_id, ())),
                annotated_size=sizes.get(image_id),
            )


def _read_labels(path: AnyPath, has_readers: bool) -> dict[str, dict[str, int]]:
    """Return image_id to what more than half of its readers said."""
    spelled = [_spelling(path, finding) for finding in FINDINGS]
    columns = ("image_id", *(("rad_id",) if has_readers else ()), *spelled)
    lines: dict[str, int] = {}
    votes: dict[str, list[int]] = {}
    readers: dict[str, int] = {}
    for line, (id_cell, *cells) in read_rows(path, columns):
        image_id = _image_id(id_cell, path, line)
        reader = cells.pop(0) if has_readers else ""
        claim(lines, f"{image_id}:{reader}" if has_readers else image_id, line, path)
        values = [_label_value(cell, finding, path, line) for cell, finding in zip(cells, FINDINGS, strict=True)]
        before = votes.get(image_id, [0] * len(values))
        votes[image_id] = [count + value for count, value in zip(before, values, strict=True)]
        readers[image_id] = readers.get(image_id, 0) + 1
    return {
        image_id: {finding: int(2 * count > readers[image_id]) for finding, count in zip(FINDINGS, counts, strict=True)}
        for image_id, counts in votes.items()
    }


def _spelling(path: AnyPath, finding: str) -> str:
    """Return the name of a finding's column in this table."""
    other = _OTHER_SPELLING.get(finding)
    if other is not None:
        # A table that cannot be read at all is reported when its rows are.
        with contextlib.suppress(SourceError):
            next(read_rows(path, (other,)), None)
            return other
    return finding


def _read_boxes(path: AnyPath, labels: Join[dict[str, int]]) -> dict[str, list[Box]]:
    """Return image_id to its boxes; rows whose four cells are blank say that there is none."""
    boxes: dict[str, list[Box]] = {}
    # One string for each finding, however many boxes share it.
    shared: dict[str, str] = {}
    for line, (id_cell, finding, *cells) in read_rows(path, ("image_id", "class_name", *_CORNERS)):
        image_id = _image_id(id_cell, path, line)
        labels.need(image_id, f"{path}, line {line}")
        if not _FINDING.fullmatch(finding):
            raise SourceError(
                "class_name is not of the expected form",
                where=f"{path}, line {line}",
                remedy="Expected the name of a finding, such as Lung Opacity.",
            )
        if any(cells):
            name = shared.setdefault(finding, finding)
            boxes.setdefault(image_id, []).append(_read_box(name, cells, path, line))
    labels.check(path.name)
    return boxes


def _read_box(finding: str, cells: Sequence[str], path: AnyPath, line: int) -> Box:
    left, top, right, bottom = read_coordinates(cells, _CORNERS, path, line)
    if right < left or bottom < top:
        raise SourceError(
            "a box ends before it begins",
            where=f"{path}, line {line}",
            remedy="Expected x_min <= x_max and y_min <= y_max.",
        )
    return Box(finding, left, top, right - left, bottom - top)


def _read_sizes(path: AnyPath | None, labels: dict[str, dict[str, int]]) -> dict[str, tuple[int, int]]:
    """Return image_id to (height, width) of its DICOM; none where there is no such table."""
    if path is None:
        return {}
    lines: dict[str, int] = {}
    sizes = {}
    for line, (id_cell, *cells) in read_rows(path, ("image_id", "dim0", "dim1")):
        image_id = text_id(id_cell)
        claim(lines, image_id, line, path)
        height, width = read_coordinates(cells, ("dim0", "dim1"), path, line)
        if not (height.is_integer() and width.is_integer() and min(height, width) >= 1):
            raise SourceError("dim0 or dim1 is no size", where=f"{path}, line {line}", remedy="Expected pixels.")
        sizes[image_id] = (int(height), int(width))
    known = Join(sizes, path, "images")
    for image_id in labels:
        known.need(image_id, f"the labels of {path.name.partition('_')[0]}")
    return sizes


def _label_value(cell: str, finding: str, path: AnyPath, line: int) -> int:
    if cell not in _LABEL_VALUES:
        raise SourceError(f"label {quoted(cell)} of {finding}", where=f"{path}, line {line}", remedy="Expected 0 or 1.")
    return _LABEL_VALUES[cell]


def _find_suffix(folder: AnyPath) -> str:
    """Return the images' suffix: the first of the known ones that a file in the folder has."""
    try:
        found = {PurePosixPath(name).suffix for name in names_in(folder)}
    except NotADirectoryError:
        found = set()
    present = [suffix for suffix in _SUFFIXES if suffix in found]
    if len(present) > 1:
        _logger.warning("%s: the %s files are read, and not the %s beside them", folder, *present[:2])
    if present:
        return present[0]
    raise SourceError("there are no images", where=folder, remedy=f"Expected <image_id>{', '.join(_SUFFIXES)}.")


def _image_id(cell: str, path: AnyPath, line: int) -> str:
    """Return the id, which becomes a part of a path, and the record's key; SourceError where it cannot."""
    image_id = text_id(cell)
    if not KEY_PATTERN.fullmatch(image_id):
        raise SourceError(
            "image_id is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _.",
        )
    return image_id


SOURCE = Source(list_vindr, has_reports=False, conditions=VINDR_CONDITIONS)
