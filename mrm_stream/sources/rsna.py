"""Lists the RSNA Pneumonia Detection Challenge (2018), as Kaggle has it.

    root/stage_2_train_images/<patientId>.dcm, root/stage_2_test_images/<patientId>.dcm
    root/stage_2_train_labels.csv           patientId, x, y, width, height, Target; a row for each box
    root/stage_2_detailed_class_info.csv    patientId, class; its rows are repeated as often

Both tables may be compressed (.csv.gz). They do not have the test images, so these are not listed, and every record is
of the training split unless the reference code's lists say otherwise: its test list is of the 3,000 test images, and
gives each a label that was not published elsewhere; they have no class and no boxes.

A `patientId` names one image: the images come from NIH ChestX-ray14, where many patients have several, so a split of
these ids is not one by patient and records have no subject. For the same reason a model that was trained on
ChestX-ray14 may have seen them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mrm_stream.errors import SourceError
from mrm_stream.records import Box, Record
from mrm_stream.sources.joins import Join, text_id
from mrm_stream.sources.list_files import read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import KEY_PATTERN, find_table, quoted, read_rows
from mrm_stream.storage.paths import AnyPath

IMAGES = "stage_2_train_images"
TEST_IMAGES = "stage_2_test_images"
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
_TEST_IMAGE = re.compile(rf"{TEST_IMAGES}/({KEY_PATTERN.pattern})\.dcm")

_logger = logging.getLogger(__name__)


def list_rsna(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each patientId of the labels' table, in the order in which they appear there first.

    Raises:
        SourceError: A table is missing, damaged or of another form; rows of an image contradict each other.
    """
    yield from _read_records(root).values()


def list_rsna_by_files(root: AnyPath, lists: AnyPath) -> Iterator[Record]:
    """Yield a record for each image on the reference code's lists, in their order, with their split and label.

    A list's label that is not the table's is taken as published, and the number of those is logged.

    Raises:
        SourceError: A list or table is missing, damaged or of another form; a listed training image is not in the
            table.
    """
    records = {record.image_path: record for record in _read_records(root).values()}
    known = Join(records, root / LABELS_TABLE, "images")
    differing = 0
    for listed in read_lists(lists, values=1):
        (target,) = listed.values
        if match := _TEST_IMAGE.fullmatch(listed.path):
            labels = {TARGET: target}
            yield Record(match[1], listed.path, split=listed.split, labels=labels, lists=listed.lists)
            continue
        record = known.need(listed.path, f"{lists}, {listed.lists[0]}.txt")
        differing += target != record.labels[TARGET]
        yield replace(record, split=listed.split, labels={**record.labels, TARGET: target}, lists=listed.lists)
    if differing:
        _logger.warning("%s: %d labels differ from %s; the lists' are taken", lists, differing, LABELS_TABLE)
    known.check("the lists")


def read_coordinates(cells: Sequence[str], columns: Sequence[str], path: AnyPath, line: int) -> list[float]:
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
                f"{column} of a box is no number: {quoted(cell)}",
                where=f"{path}, line {line}",
                remedy="Correct the row.",
            )
        numbers.append(number)
    return numbers


def _read_records(root: AnyPath) -> dict[str, Record]:
    """Return patientId to its record, of the training split."""
    path = find_table(root, LABELS_TABLE)
    classes = _read_classes(find_table(root, CLASSES_TABLE))
    boxes: dict[str, list[Box]] = {}
    targets: dict[str, int] = {}
    class_of: dict[str, str] = {}
    for line, (cell, *cells, target) in read_rows(path, ("patientId", *_CORNERS, "Target")):
        where = f"{path}, line {line}"
        patient = text_id(cell)
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
                f"patientId {patient} has rows of Target 0 and of Target 1", where=where, remedy="Correct the table."
            )
        class_of[patient] = classes.need(patient, where)
        boxes.setdefault(patient, []).extend([box] if box else [])
    classes.check(path.name)
    return {
        patient: Record(
            key=patient,
            image_path=f"{IMAGES}/{patient}.dcm",
            labels={TARGET: target} | {name: int(name == class_of[patient]) for name in CLASSES},
            boxes=tuple(boxes[patient]),
            annotated_size=SIZE,
        )
        for patient, target in targets.items()
    }


def _read_classes(path: AnyPath) -> Join[str]:
    """Return patientId to its class."""
    known = {name: name for name in CLASSES}
    classes: dict[str, str] = {}
    for line, (cell, name) in read_rows(path, ("patientId", "class")):
        where = f"{path}, line {line}"
        patient = text_id(cell)
        _check_id(patient, path, line)
        if name not in known:
            raise SourceError(f"unknown class {quoted(name)}", where=where, remedy=f"Expected {', '.join(CLASSES)}.")
        if classes.setdefault(patient, known[name]) != name:
            raise SourceError(f"patientId {patient} has two classes", where=where, remedy="Correct the table.")
    return Join(classes, path, "images")


def _read_box(cells: Sequence[str], path: AnyPath, line: int) -> Box | None:
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


def _check_id(patient: str, path: AnyPath, line: int) -> None:
    """The id becomes a part of a path, and the record's key."""
    if not KEY_PATTERN.fullmatch(patient):
        raise SourceError(
            "patientId is not of the expected form",
            where=f"{path}, line {line}",
            remedy="Expected letters, digits, - and _.",
        )


SOURCE = Source(list_rsna, list_by_files=list_rsna_by_files, has_reports=False, conditions=RSNA_CONDITIONS)
