"""Which subject, study and view record number i of a set is, and what its files are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mrm_stream.randomness import Purpose, uniform, words
from mrm_stream.sources.phantom.draws import Level

IDS = 10_000_000
"""Numbers that ids are drawn from: MIMIC's have eight digits, the first of which is fixed."""
_STRIDE = 3_141_593
"""Prime to `IDS`, so that stepping through them by it meets each once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a record stands in the set."""

    index: int
    subject: int
    study: int
    """Counts over the whole set."""
    visit: int
    """Counts over the subject's studies."""
    view: int
    """Counts over the study's images."""
    subject_id: int
    study_id: int
    dicom_id: str

    @property
    def study_path(self) -> str:
        """Below `files/` or `masks/`."""
        return f"p{self.subject_id // 1_000_000}/p{self.subject_id}/s{self.study_id}"

    @property
    def image_path(self) -> str:
        """Below the root, as in IMAGE_FILENAMES."""
        return f"files/{self.study_path}/{self.dicom_id}.jpg"

    @property
    def split(self) -> str:
        """By subject, 90/5/5; the first 20 records hold subjects of each split, as no subject has more than six."""
        return {1: "validate", 2: "test"}.get(self.subject % 20, "train")


def list_entries(seed: int, count: int) -> Iterator[Entry]:
    """Yield the first `count` records of a set: a subject has one to three studies, a study one or two images."""
    return islice(_all_entries(seed), count)


def _all_entries(seed: int) -> Iterator[Entry]:
    first_subject, first_study = (int(word) for word in words(seed, int(Level.NAMES), 0, Purpose.PHANTOM, 2))
    index, study, subject, block = 0, 0, 0, 4096
    while True:
        draws = uniform(seed, int(Level.COUNTS), np.arange(subject, subject + block), Purpose.PHANTOM, 4)
        for visits, *views in draws.tolist():
            subject_id = 10_000_000 + (first_subject + subject * _STRIDE) % IDS
            for visit in range(1 + (visits > 0.55) + (visits > 0.85)):
                study_id = 50_000_000 + (first_study + study * _STRIDE) % IDS
                for view in range(1 + (views[visit] > 0.75)):
                    yield Entry(index, subject, study, visit, view, subject_id, study_id, _dicom_id(seed, index))
                    index += 1
                study += 1
            subject += 1


def _dicom_id(seed: int, index: int) -> str:
    return "-".join(f"{int(word):08x}" for word in words(seed, int(Level.NAMES), index + 1, Purpose.PHANTOM, 5))
