"""Lists NIH ChestX-ray14 (Wang et al., 2017): 112,120 frontal radiographs, 14 findings that were mined from reports.

    root/Data_Entry_2017_v2020.csv   (or Data_Entry_2017.csv, as Kaggle has it; or compressed, .csv.gz)
    root/train_val_list.txt, root/test_list.txt
    root/images/*.png, or root/images_001/images/*.png to images_012, or root/*.png

The official split has a training and a test part only: a validation part must be cut from the training part by
patient, or list files be used. Those of the reference code keep patients apart, too, but are another split: scores on
the two cannot be compared.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mrm_stream.errors import SourceError
from mrm_stream.records import Record
from mrm_stream.sources.joins import Join, number_id, text_id
from mrm_stream.sources.list_files import read_list, read_lists
from mrm_stream.sources.source import Source
from mrm_stream.sources.tables import claim, find_optional_table, quoted, read_rows
from mrm_stream.storage.access import is_folder
from mrm_stream.storage.files import names_in
from mrm_stream.storage.links import checked
from mrm_stream.storage.paths import AnyPath

NIH_CONDITIONS = (
    "ChestX-ray14 may be used freely if you link to its download site, cite Wang et al. (CVPR 2017) and acknowledge "
    "the NIH Clinical Center as the provider."
)

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""In the order of the publication, which is also that of the reference code's lists.

Its NIH_ChestX-ray/train.py names them so (`CLASS_NAMES`), and each column of its three lists agrees with this finding
in the NIH's table, but for 181 of 112,120 images: the lists are of an earlier release of the labels than
`Data_Entry_2017_v2020.csv`. `list_nih_by_files` counts where lists and table differ.
"""

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")

_OFFICIAL_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_NO_FINDING = "No Finding"
# The stem becomes the key, the name a part of a path.
_NAME = re.compile(r"[0-9]{8}_[0-9]{3}\.png")
_FOLDER = re.compile(r"images(_[0-9]{3})?")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    labels: Mapping[str, int]
    subject: str
    view: str


def list_nih(root: AnyPath) -> Iterator[Record]:
    """Yield a record for each image on the disk, in the table's order and the official split.

    All 14 findings are 1 or 0; "No Finding" is no label of its own, but a 0 for each. The folders are listed once;
    images that they lack are skipped, and their number logged.

    Raises:
        SourceError: The table or an official list is missing or damaged; an image is listed twice, or is on both
            lists or neither; a finding is unknown; there are no images.
    """
    path, rows = _read_table(root)
    splits = _read_official_split(root)
    paths = _find_images(root)
    for name, row in rows.items():
        split = splits.need(name, str(path))
        image_path = paths.get(name)
        if image_path is not None:
            yield _record(name, image_path, row, split, row.labels)
    splits.check(path.name)
    paths.check(path.name)


def list_nih_by_files(root: AnyPath, folder: AnyPath) -> Iterator[Record]:
    """Yield a record for each image on the lists of a folder that is on the disk; split and labels are the lists'.

    Where the table's labels are others (the two may be of different releases), the lists' are taken, and the number of
    such images logged.

    Raises:
        SourceError: The table or a list is missing or damaged; an image is listed twice, or is not in the table; there
            are no images.
    """
    path, rows = _read_table(root)
    paths = _find_images(root)
    images = read_lists(folder, values=len(FINDINGS))
    shared: dict[tuple[int, ...], Mapping[str, int]] = {}
    other = 0
    known = Join(rows, path, "images")
    for image in images:
        row = known.need(image.path, f"{folder}, {image.lists[0]}.txt")
        labels = shared.setdefault(image.values, dict(zip(FINDINGS, image.values, strict=True)))
        other += labels != row.labels
        image_path = paths.get(image.path)
        if image_path is not None:
            yield _record(image.path, image_path, row, image.split, labels, image.lists)
    if other:
        _logger.warning("%s: %d of %d listed images have other labels in %s", folder, other, len(images), path.name)
    known.check("the lists")
    paths.check("the lists")


def _record(
    name: str, path: str, row: _Row, split: str, labels: Mapping[str, int], lists: tuple[str, ...] = ()
) -> Record:
    return Record(
        key=name.removesuffix(".png"),
        image_path=path,
        subject=row.subject,
        view=row.view,
        split=split,
        labels=labels,
        lists=lists,
    )


def _read_table(root: AnyPath) -> tuple[AnyPath, dict[str, _Row]]:
    """Return the table's file, and what it says about each image; images with the same findings share a mapping."""
    found = [table for name in TABLES if (table := find_optional_table(root, name)) is not None]
    if not found:
        raise SourceError(
            f"there is neither {' nor '.join(TABLES)}", where=root, remedy="Put the table beside the images' folders."
        )
    path = found[0]
    if len(found) > 1:
        _logger.warning("%s is read, and not %s beside it", path, found[1].name)
    lines: dict[str, int] = {}
    mappings: dict[str, Mapping[str, int]] = {}
    shared: dict[str, str] = {}
    rows = {}
    for line, (cell, findings, patient_cell, view) in read_rows(path, _COLUMNS):
        name, patient = text_id(cell), number_id(patient_cell, "Patient ID", path, line)
        if not _NAME.fullmatch(name):
            raise SourceError(
                f"Image Index is not of the expected form: {quoted(name)}",
                where=f"{path}, line {line}",
                remedy="Expected a name like 00000001_000.png.",
            )
        claim(lines, name, line, path)
        if findings not in mappings:
            mappings[findings] = _labels(findings, f"{path}, line {line}")
        rows[name] = _Row(mappings[findings], shared.setdefault(patient, patient), shared.setdefault(view, view))
    return path, rows


def _labels(cell: str, where: str) -> Mapping[str, int]:
    """Return each finding as 1 where the cell names it, else 0.

    Example:
        >>> [finding for finding, value in _labels("Hernia|Edema", "").items() if value]
        ['Edema', 'Hernia']
    """
    present = set() if cell == _NO_FINDING else set(cell.split("|"))
    unknown = sorted(present.difference(FINDINGS))
    if unknown:
        raise SourceError(
            f"unknown finding {quoted(unknown[0])}",
            where=where,
            remedy=f"Expected {', '.join(FINDINGS)} or {_NO_FINDING}.",
        )
    return {finding: int(finding in present) for finding in FINDINGS}


def _read_official_split(root: AnyPath) -> Join[str]:
    """Return file name to split."""
    splits: dict[str, str] = {}
    for name, split in _OFFICIAL_LISTS.items():
        lines: dict[str, int] = {}
        for line, image, _ in read_list(checked(root, name), values=0):
            claim(lines, image, line, root / name)
            if splits.setdefault(image, split) != split:
                raise SourceError(
                    f"image {quoted(image)} is in the training list, too",
                    where=f"{root / name}, line {line}",
                    remedy="Fetch both lists of the same release.",
                )
    return Join(splits, " and ".join(str(root / name) for name in _OFFICIAL_LISTS), "images")


def _find_images(root: AnyPath) -> Join[str]:
    """Return file name to path below the root: a few listings instead of 112,120 look-ups."""
    paths: dict[str, str] = {}
    twice = {}
    folders = []
    for name in sorted(names_in(root)):
        if _NAME.fullmatch(name):
            paths[name] = name
        elif _FOLDER.fullmatch(name):
            folders.append(f"{name}/images" if is_folder(root / name / "images") else name)
    for folder in folders:
        for name in sorted(name for name in names_in(root / folder) if _NAME.fullmatch(name)):
            if name in paths:
                twice[name] = f"{folder}/{name}"
            else:
                paths[name] = f"{folder}/{name}"
    if twice:
        name, other = next(iter(twice.items()))
        _logger.warning("%s: %d images are there twice: %s is read, and not %s", root, len(twice), paths[name], other)
    if not paths:
        raise SourceError(
            "there are no images (PNG) under the root",
            where=root,
            remedy="Put them into images/, images_001/images/ and so on, or beside the table.",
        )
    return Join(paths, root, "images", enough=1)


SOURCE = Source(list_nih, list_by_files=list_nih_by_files, has_reports=False, conditions=NIH_CONDITIONS)
