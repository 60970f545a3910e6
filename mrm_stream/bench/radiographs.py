"""Makes the images that packing is measured on: synthetic, but as large as MIMIC-CXR-JPG's, in pixels and in bytes."""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mrm_stream.bench.formats import HEIGHT, QUALITY, WIDTH
from mrm_stream.sources.phantom.chest import build_chest
from mrm_stream.sources.phantom.exposure import develop, draw_texture, print_grey
from mrm_stream.sources.phantom.findings import apply_findings
from mrm_stream.sources.phantom.report import write_report
from mrm_stream.sources.phantom.subject import draw_exposure, draw_study
from mrm_stream.text.tokenizer import train_tokenizer

_DISTINCT = 24
"""Chests that are rendered; the other images are these, shifted and mirrored: that takes a third of the time."""
_NOISE = 0.5
"""Times the phantom's own noise, which decides how many bytes a JPEG has: 0.25 makes 1.0 MB, 0.5 1.5, and 1.0 2.3."""
_VOCABULARY = 30_000


@dataclass(frozen=True, slots=True)
class BenchSet:
    """A data set of layout training-csv, and a tokenizer trained on its reports."""

    root: Path
    tokenizer: Path
    count: int
    mean_bytes: int
    """Of an image's file."""


def make_bench_set(folder: Path, count: int, *, width: int, seed: int = 0, workers: int = 1) -> BenchSet:
    """Write images, `training.csv` and `tokenizer.json`; then every image lies in the page cache.

    Each record has a report of its own. Reports tell nothing of the images, which only have to take as long to decode
    as real ones.

    Args:
        folder: New folder.
        count: Images to write.
        width: Of an image in pixels; the height follows from MIMIC's proportion.
        seed: Of the chests and the reports.
        workers: Processes that render.
    """
    (folder / "images").mkdir(parents=True)
    distinct = min(_DISTINCT, count)
    # Forking a process that has started threads (OpenCV's) can deadlock.
    with ProcessPoolExecutor(
        min(workers, distinct), mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(_write_variants, folder, number, count, width, seed) for number in range(distinct)]
        total = sum(future.result() for future in futures)
    reports = [write_report(seed, draw_study(seed, number, number), earlier=0).text for number in range(count)]
    with (folder / "training.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "report_content"))
        writer.writerows((image_path(number), report) for number, report in enumerate(reports))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(train_tokenizer(reports, _VOCABULARY).to_str(), encoding="utf-8")
    for number in range(count):
        (folder / image_path(number)).read_bytes()
    return BenchSet(folder, tokenizer, count, total // count)


def image_path(number: int) -> str:
    """Return where an image lies below the root."""
    return f"images/{number:06d}.jpg"


def _write_variants(folder: Path, chest: int, count: int, width: int, seed: int) -> int:
    """Write every image that is made of one chest, and return their bytes."""
    radiograph_HW = _render(seed, chest, width)
    total = 0
    for variant, number in enumerate(range(chest, count, _DISTINCT)):
        image_HW = np.roll(radiograph_HW, (37 * variant, 53 * variant), axis=(0, 1))
        if variant % 2:
            image_HW = image_HW[:, ::-1]
        grey_HW1 = np.ascontiguousarray(image_HW[..., None])
        jpeg = simplejpeg.encode_jpeg(grey_HW1, quality=QUALITY, colorspace="GRAY", colorsubsampling="Gray")
        total += (folder / image_path(number)).write_bytes(jpeg)
    return total


def _render(seed: int, chest: int, width: int) -> NDArray[np.uint8]:
    """Return a radiograph of this width in MIMIC's proportion, (height, width)."""
    study = draw_study(seed, chest, chest)
    drawn = draw_exposure(seed, chest, portable=study.portable, size=width)
    exposure = replace(drawn, width=width, height=round(width * HEIGHT / WIDTH), noise=_NOISE * drawn.noise)
    anatomy = build_chest(study, seed=seed, rotation=exposure.rotation)
    path_HW, _ = apply_findings(anatomy, study, draw_texture(seed, study.index))
    return develop(print_grey(path_HW, exposure), exposure)
