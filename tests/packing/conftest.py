"""A small made-up data set in the reference code's layout, good and bad records, for the tests of packing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_FINDINGS = ("no acute process.", "small left effusion.", "mild cardiomegaly.", "opacity in the right lower lobe.")


def _texture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _make_set(root: Path, good: int, *, truncated: int = 0, missing: int = 0, silent: int = 0) -> Path:
    (root / "images").mkdir(parents=True)
    rows: list[tuple[str, str]] = []
    kinds = ["good"] * good + ["truncated"] * truncated + ["missing"] * missing + ["silent"] * silent
    for number, kind in enumerate(kinds):
        path = f"images/{kind}-{number:03d}.jpg"
        pixels_HW1 = _texture(96 + number % 7, 120 - number % 5, number)[..., None]
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HW1), 95, "GRAY", "Gray")
        if kind != "missing":
            (root / path).write_bytes(jpeg[: len(jpeg) // 2] if kind == "truncated" else jpeg)
        report = f"Made-up study {number}: {_FINDINGS[number % 4]} Compared with study {number * 7 % 11}."
        rows.append((path, "" if kind == "silent" else report))
    with (root / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "report_content"), *rows])
    return root


@pytest.fixture(scope="session")
def texture() -> Callable[[int, int, int], NDArray[np.uint8]]:
    """(height, width, seed) -> a smooth grey image, shape (height, width)."""
    return _texture


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    """(root, good, truncated=, missing=, silent=) -> root of a new data set of layout training-csv."""
    return _make_set


@pytest.fixture(scope="session")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good records, and one each with an image cut short, without its image, and with an empty report."""
    return _make_set(tmp_path_factory.mktemp("mixed") / "set", 40, truncated=1, missing=1, silent=1)
