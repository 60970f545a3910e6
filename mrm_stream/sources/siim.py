"""Lists the SIIM-ACR Pneumothorax Segmentation challenge (2019), as it was first published.

    root/dicom-images-train/<study>/<series>/<ImageId>.dcm
    root/train-rle.csv    `ImageId, EncodedPixels` (with the space): a row for each region drawn, -1 where there is none

The test images have no published masks and are not listed. The tables name no patients (only the DICOM headers do), so
no leak-free split can be made here: without the reference code's lists every record is of the training split. Its lists
let some 500 of the test images be in the training split too; they are packed as published, and such an image makes a
record in each split, of which the key tells them apart. The images come from NIH ChestX-ray14: a model that was trained
on that set may have seen them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import Join, text_id
from mrm_stream.sources.list_files import read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import find_table, quoted, read_rows
from mrm_stream.storage.access import is_folder
from mrm_stream.storage.files import names_below
from mrm_stream.storage.paths import AnyPath

IMAGES = "dicom-images-train"
TABLE = "train-rle.csv"
TARGET = "Pneumothorax"

SIZE = (1024, 1024)
"""Height and width of every image of the challenge, in which its masks are drawn: a smaller copy's are scaled."""

PIXELS = SIZE[0] * SIZE[1]
"""A run beyond them is refused."""

SIIM_CONDITIONS = (
    "The SIIM-ACR Pneumothorax data come under the rules of the Kaggle competition that you accepted for them; the "
    "images are the NIH Clinical Center's, which asks to be acknowledged."
)

# A DICOM UID: at most 64 characters, so that the key that is made of it has room for the name of a split.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
_NUMBER = re.compile(r"[0-9]{1,9}")
_EMPTY = "-1"

Run = tuple[int, int]
"""First pixel and the one after the last, numbered from 0, down the columns, left to right."""

_logger = logging.getLogger(__name__)


def list_siim(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each ImageId that has both a row and a DICOM, in the order of the table.

    The published files lack some of either: those are skipped, and their number logged.

    Raises:
        SourceError: The table is missing, damaged or of another form; a run is no such thing or leaves the image; the
            folder of the images is missing, or has two of one ImageId.
    """
    yield from _read_records(root).values()


def list_siim_by_files(root: AnyPath, lists: AnyPath) -> Iterator[Record]:
    """Yield a record for each image and split of the reference code's lists, in their order.

    The key is that of `list_siim` and the name of the split. Listed images without a row or DICOM are skipped, and
    their number logged.

    Raises:
        SourceError: As `list_siim`; a list is missing, damaged or of another form.
    """
    records = Join(_read_records(root), f"{root / IMAGES} and {TABLE}", "images", enough=1)
    for listed in read_lists(lists, values=0, may_repeat=True):
        record = records.get(listed.path)
        if record is not None:
            yield replace(record, key=f"{record.key}-{listed.split}", split=listed.split, lists=listed.lists)
    records.check("the lists")


def _read_records(root: AnyPath) -> dict[str, Record]:
    """Return ImageId to its record, of the training split."""
    path = find_table(root, TABLE)
    found_images = _find_images(root)
    images = Join(found_images, root / IMAGES, "images", enough=1)
    runs: dict[str, list[Run]] = {}
    for line, (id_cell, cell) in read_rows(path, ("ImageId", "EncodedPixels")):
        image_id = text_id(id_cell)
        if not _UID.fullmatch(image_id):
            raise SourceError(
                "ImageId is not of the expected form",
                where=f"{path}, line {line}",
                remedy="Expected numbers joined by dots, 64 characters at most.",
            )
        runs.setdefault(image_id, []).extend(read_relative_runs(cell, f"{path}, line {line}"))
    records = {}
    for image_id, found in runs.items():
        image = images.get(image_id)
        if image is not None:
            image_path, study = image
            mask_runs = united_runs(found)
            records[image_id] = Record(
                key=image_id.replace(".", "-"),
                image_path=image_path,
                study=study,
                labels={TARGET: int(bool(mask_runs))},
                mask_runs=mask_runs,
                annotated_size=SIZE,
            )
    images.check(path.name)
    without_row = len(found_images) - len(records)
    if without_row:
        _logger.warning("%s: %d of the %d DICOMs have no row", path, without_row, len(found_images))
    return records


def _find_images(root: AnyPath) -> dict[str, tuple[str, str]]:
    """Return ImageId to (path below the root, study), from one walk."""
    if not is_folder(root / IMAGES):
        raise SourceError(
            f"there is no folder {IMAGES}", where=root, remedy="Give the directory that holds it as root."
        )
    images: dict[str, tuple[str, str]] = {}
    # Sorted: what the first error names does not depend on the file system.
    for path in sorted(name for name in names_below(root, IMAGES) if name.endswith(".dcm")):
        _, *folders, name = path.split("/")
        image_id = name.removesuffix(".dcm")
        if image_id in images:
            raise SourceError(
                f"two DICOMs of one ImageId: {quoted(images[image_id][0])} and {quoted(path)}",
                where=root,
                remedy="Remove one of them.",
            )
        images[image_id] = (path, folders[0] if len(folders) == 2 else "")
    return images


def read_relative_runs(cell: str, where: str) -> list[Run]:
    """Return the runs of one cell of `EncodedPixels`; none for -1.

    The numbers are pairs. The first of a pair counts the pixels between the end of the run before it (at the start:
    pixel 0) and the run, the second those in the run. So the decoder published with the challenge (`mask_functions.py`)
    adds each number to a position that starts at 0, and fills what the second one passes over. It counts along the
    first axis of an array that is transposed against the image: down the columns, left to right.

    Args:
        cell: As the table has it.
        where: The file and line, for messages.

    Raises:
        SourceError: It is neither -1 nor pairs of numbers of 0 or more, or a run leaves the image.

    Example:
        >>> read_relative_runs("2 3 10 1", "line 2")
        [(2, 5), (15, 16)]
    """
    numbers = cell.split()
    if numbers == [_EMPTY]:
        return []
    if not numbers or len(numbers) % 2:
        raise SourceError(
            f"EncodedPixels has {len(numbers)} numbers",
            where=where,
            remedy="Expected pairs of start and length, or -1 alone where there is no pneumothorax.",
        )
    for number in numbers:
        if not _NUMBER.fullmatch(number):
            raise SourceError(
                f"EncodedPixels has {quoted(number)} among its numbers",
                where=where,
                remedy="Expected numbers of 0 or more, or -1 alone where there is no pneumothorax.",
            )
    runs = []
    end = 0
    for skipped, length in zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True):
        start = end + skipped
        end = start + length
        if end > PIXELS:
            raise SourceError(
                f"a run of EncodedPixels ends at pixel {end:,}, an image has {PIXELS:,}",
                where=where,
                remedy=f"Starts must be relative, as in the published {TABLE}.",
            )
        runs.append((start, end))
    return runs


def united_runs(runs: list[Run]) -> str:
    """Return the union of runs as `Record.mask_runs` has it: absolute, from 1, sorted, and no two of them touch.

    Example:
        >>> united_runs([(15, 16), (2, 5), (4, 8)])
        '3 6 16 1'
    """
    united: list[Run] = []
    for start, end in sorted(run for run in runs if run[0] < run[1]):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return " ".join(f"{start + 1} {end - start}" for start, end in united)


SOURCE = Source(
    list_siim, list_by_files=list_siim_by_files, has_reports=False, has_masks=True, conditions=SIIM_CONDITIONS
)
