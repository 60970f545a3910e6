"""MIMIC-CXR-JPG's tables, written row by row under passing names and published at the end."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from mrm_stream.sources.mimic_tables import FINDINGS
from mrm_stream.sources.phantom.draws import Draws, Level
from mrm_stream.sources.phantom.listing import Entry

_METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
_HEADERS: dict[str, tuple[str, ...]] = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "chexpert": ("subject_id", "study_id", *FINDINGS),
    "metadata": _METADATA,
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one record adds to the tables."""

    image_path: str
    split: tuple[object, ...]
    metadata: tuple[object, ...]
    labels: tuple[object, ...] | None
    """Only the first image of a study has them, as the table lists studies."""


def table_row(
    seed: int, entry: Entry, *, portable: bool, shape: tuple[int, ...], labels: Mapping[str, int] | None
) -> Row:
    """Return a record's rows.

    Args:
        seed: Of the data set.
        entry: The record.
        portable: AP at the bedside instead of PA.
        shape: Height and width of the image.
        labels: What the report says, for the first image of a study.
    """
    draws = Draws(seed, Level.DATES, entry.subject)
    year, day = int(draws.between(2110, 2200)) + entry.visit, int(draws.between(1, 29))
    time = f"{int(draws.between(0, 24)):02d}{int(draws.between(0, 60)):02d}{draws.between(0.0, 59.9):06.3f}"
    metadata = (
        entry.dicom_id,
        entry.subject_id,
        entry.study_id,
        "CHEST (PORTABLE AP)" if portable else "CHEST (PA)",
        "AP" if portable else "PA",
        *shape,
        f"{year}{1 + entry.study % 12:02d}{day:02d}",
        time,
        "CHEST (PORTABLE AP)" if portable else "CHEST (SINGLE VIEW)",
        "antero-posterior" if portable else "postero-anterior",
        "Recumbent" if portable else "Erect",
    )
    study_labels: tuple[object, ...] | None = None
    if labels is not None:
        values = (float(labels[label]) if label in labels else "" for label in FINDINGS)
        study_labels = (entry.subject_id, entry.study_id, *values)
    return Row(
        entry.image_path, (entry.dicom_id, entry.study_id, entry.subject_id, entry.split), metadata, study_labels
    )


class Tables:
    """The tables of one set; a context that closes its files.

    Args:
        out: The set's root.
    """

    def __init__(self, out: Path) -> None:
        # The metadata, which a reader asks for first, are published last.
        names = {"names": "IMAGE_FILENAMES"} | {kind: f"mimic-cxr-2.0.0-{kind}.csv.gz" for kind in _HEADERS}
        self._paths = {kind: out / name for kind, name in names.items()}
        self._stack = ExitStack()
        self._files = {
            kind: self._stack.enter_context(_unfinished(path).open("wb")) for kind, path in self._paths.items()
        }
        self._texts = {kind: io.TextIOWrapper(self._pack(kind), encoding="ascii", newline="") for kind in self._files}
        self._csv = {kind: csv.writer(self._texts[kind], lineterminator="\n") for kind in _HEADERS}
        for kind, header in _HEADERS.items():
            self._csv[kind].writerow(header)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pack(self, kind: str) -> BinaryIO:
        file = self._files[kind]
        if kind == "names":
            return file
        # No name and no time in the header, so that the same rows give the same bytes.
        return cast(BinaryIO, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))

    def add(self, rows: Iterable[Row]) -> None:
        """Append the rows of some records."""
        for row in rows:
            self._texts["names"].write(f"{row.image_path}\n")
            self._csv["split"].writerow(row.split)
            self._csv["metadata"].writerow(row.metadata)
            if row.labels is not None:
                self._csv["chexpert"].writerow(row.labels)

    def publish(self) -> None:
        """Give the tables, now whole, their names."""
        for kind, path in self._paths.items():
            self._texts[kind].flush()
            self._texts[kind].detach().close()
            if not self._files[kind].closed:  # gzip leaves its file open
                self._files[kind].flush()
                os.fsync(self._files[kind].fileno())
            _unfinished(path).replace(path)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")
