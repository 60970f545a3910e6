"""Lists the RSNA Pneumonia Detection Challenge (2018), as Kaggle has it.

    root/stage_2_train_images/<patientId>.dcm
    root/stage_2_train_labels.csv           patientId, x, y, width, height, Target; a row for each box
    root/stage_2_detailed_class_info.csv    patientId, class; its rows are repeated as often

The labels of the test images were never published, so these are not listed, and every record is of the training split
unless the reference code's lists say otherwise. A `patientId` names one image: the images come from NIH ChestX-ray14,
where many patients have several, so a split of these ids is not one by patient and records have no subject. For the
same reason a model that was trained on ChestX-ray14 may have seen them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from mrm_stream.errors import SourceError
from mrm_stream.records import Box, Record
from mrm_stream.sources.list_files import read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import KEY_PATTERN, quoted, read_rows
from mrm_stream.storage import Place

IMAGES = "stage_2_train_images"
LABELS_TABLE = "stage_2_train_labels.csv"
CLASSES_TABLE = "stage_2_detailed_class_info.csv"

TARGET = "Pneumonia"
"""The label that the challenge is about, and the finding of its boxes."""

SIZE = (1024, 1024)
"""Height and width of every image of the challenge, in which its boxes are drawn: a smaller copy's are scaled."""

CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
"""Each image is of one of these; each is a label of its own."""

RSNA_CONDITIONS = (
    "The RSNA Pneumonia data may be used for research, education and other ends by RSNA's terms, which ask for "
    "attribution to RSNA and to the NIH Clinical Center, where the images come from."
)

_CORNERS = ("x", "y", "width", "height")

_logger = logging.getLogger(__name__)


def list_rsna(root: Place) -> Iterator[Record]:
    """Yield a record for each patientId of the labels' table, in the order in which they appear there first.

    Raises:
        SourceError: A table is missing, damaged or of another form; rows of an image contradict each other.
    """
    yield from _read_records(root).values()


def list_rsna_by_files(root: Place, lists: Place) -> Iterator[Record]:
    """Yield a record for each image on the reference code's lists, in their order, with their split and label.

    A list's label that is not the table's is taken as published, and the number of those is logged.

    Raises:
        SourceError: A list or table is missing, damaged or of another form; a listed image is not in the table.
    """
    records = _read_records(root)
    differing = 0
    for listed in read_lists(lists, values=1):
        path = PurePosixPath(listed.path)
        record = records.get(path.stem)
        if record is None or record.image_path != str(path):
            raise SourceError(
                f"the listed image {quoted(listed.path)} is not in {LABELS_TABLE}",
                where=lists,
                remedy=f"Expected {IMAGES}/<patientId>.dcm of the same stage as the table.",
            )
        (target,) = listed.values
        differing += target != record.labels[TARGET]
        yield replace(record, split=listed.split, labels={**record.labels, TARGET: target}, lists=listed.lists)
    if differing:
        _logger.warning("%s: %d labels differ from %s; the lists' are taken", lists, differing, LABELS_TABLE)


def read_coordinates(cells: Sequence[str], columns: Sequence[str], path: Place, line: int) -> list[float]:
    """Return the cells of a box as finite numbers, in pixels.

    Raises:
        SourceError: One of them is no number; the message names its column.
    """
    numbers = []
    for cell, column in zip(cells, columns, strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SourceError(
                f"{column} of a box is no number: {quoted(cell)}", where=f"{path}, line {line}", remedy="Mend the row."
            )
        numbers.append(number)
    return numbers


def _read_records(root: Place) -> dict[str, Record]:
    """Return patientId to its record, of the training split."""
    path = root / LABELS_TABLE
    classes = _read_classes(root / CLASSES_TABLE)
    boxes: dict[str, list[Box]] = {}
    targets: dict[str, int] = {}
    for line, (patient, *cells, target) in read_rows(path, ("patientId", *_CORNERS, "Target")):
        where = f"{path}, line {line}"
        _check_id(patient, path, line)
        if target not in ("0", "1"):
            raise SourceError(f"Target is {quoted(target)}", where=where, remedy="Expected 0 or 1.")
        box = _read_box(cells, path, line)
        if (box is not None) != (target == "1"):
            raise SourceError(
                "Target and box contradict each other",
                where=where,
                remedy="A row of Target 1 has a box, one of Target 0 has none: take the table as published.",
            )
        if targets.setdefault(patient, int(target)) != int(target):
            raise SourceError(
                f"patientId {patient} has rows of Target 0 and of Target 1", where=where, remedy="Mend the table."
            )
        if patient not in classes:
            raise SourceError(
                f"patientId {patient} is not in {CLASSES_TABLE}",
                where=where,
                remedy="Take both tables from the same stage of the challenge.",
            )
        boxes.setdefault(patient, []).extend([box] if box else [])
    return {
        patient: Record(
            key=patient,
            image_path=f"{IMAGES}/{patient}.dcm",
            labels={TARGET: target} | {name: int(name == classes[patient]) for name in CLASSES},
            boxes=tuple(boxes[patient]),
            annotated_size=SIZE,
        )
        for patient, target in targets.items()
    }


def _read_classes(path: Place) -> dict[str, str]:
    """Return patientId to its class."""
    known = {name: name for name in CLASSES}
    classes: dict[str, str] = {}
    for line, (patient, name) in read_rows(path, ("patientId", "class")):
        where = f"{path}, line {line}"
        _check_id(patient, path, line)
        if name not in known:
            raise SourceError(f"unknown class {quoted(name)}", where=where, remedy=f"Expected {', '.join(CLASSES)}.")
        if classes.setdefault(patient, known[name]) != name:
            raise SourceError(f"patientId {patient} has two classes", where=where, remedy="Mend the table.")
    return classes


def _read_box(cells: Sequence[str], path: Place, line: int) -> Box | None:
    """Return the row's box, or None where its cells are blank."""
    if not any(cells):
        return None
    left, top, width, height = read_coordinates(cells, _CORNERS, path, line)
    if left < 0 or top < 0 or width <= 0 or height <= 0:
        raise SourceError(
            "a box is empty or lies outside the image",
            where=f"{path}, line {line}",
            remedy="Expected x and y of 0 or more, width and height above 0.",
        )
    return Box(TARGET, left, top, width, height)


def _check_id(patient: str, path: Place, line: int) -> None:
    """The id becomes a part of a path, and the record's key."""
    if not KEY_PATTERN.fullmatch(patient):
        raise SourceError(
            "patientId is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _.",
        )


SOURCE = Source(list_rsna, list_by_files=list_rsna_by_files, has_reports=False, conditions=RSNA_CONDITIONS)
