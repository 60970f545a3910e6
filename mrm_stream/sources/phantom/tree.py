"""Writes phantom records as MIMIC-CXR-JPG lays out its files, in parallel, tables last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice, starmap
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mrm_stream.errors import SourceError
from mrm_stream.sources.phantom.chest import build_chest
from mrm_stream.sources.phantom.exposure import collimate, develop, draw_texture, print_grey, to_image
from mrm_stream.sources.phantom.findings import apply_findings
from mrm_stream.sources.phantom.listing import IDS, Entry, list_entries
from mrm_stream.sources.phantom.report import write_report
from mrm_stream.sources.phantom.subject import Study, draw_exposure, draw_study
from mrm_stream.sources.phantom.tables import Row, Tables, table_row
from mrm_stream.storage.access import is_folder, is_there
from mrm_stream.storage.files import names_in

_QUALITY = 95
_CHUNK = 16
_Job: TypeAlias = tuple[Path, list[Entry], int, int]


def render(seed: int, study: Study, index: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image number `index` of a set, taken of `study`: the 8-bit radiograph and its mask, both (height, width).

    See `findings` for the bits of the mask.
    """
    exposure = draw_exposure(seed, index, portable=study.portable, size=size)
    chest = build_chest(study, seed=seed, rotation=exposure.rotation)
    path_HW, covers = apply_findings(chest, study, draw_texture(seed, study.index))
    radiograph_HW = develop(print_grey(path_HW, exposure), exposure)
    mask_HW = np.zeros_like(radiograph_HW)
    for kind, cover_HW in covers.items():
        mask_HW |= cv2.threshold(to_image(cover_HW, exposure), 127, int(kind), cv2.THRESH_BINARY)[1]
    collimate(mask_HW, exposure)
    return radiograph_HW, mask_HW


def write_phantom_tree(
    out: Path,
    count: int,
    *,
    seed: int = 0,
    size: int = 1024,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a synthetic data set in MIMIC-CXR-JPG's layout.

    A record depends on the seed and its own number alone, so a larger set begins with the smaller one, byte for byte,
    whatever the number of workers (on one kind of machine: the last bit of an exponential may differ between two).
    Images, reports (`files/p10/p1.../s5....txt`) and masks (`masks/p10/.../<dicom_id>.png`, see `findings`) come
    first; the tables get their names last, and without them it is no data set.

    Args:
        out: Folder to write to; absent or empty.
        count: Records (images) to write.
        seed: Of all draws, 0 to 2**64 - 1.
        size: Short side of an image in pixels.
        workers: Processes; 1 stays in this one.
        progress: Called with the number of records just written.

    Raises:
        SourceError: A number is out of range, the folder is not empty, or it cannot be written to.
    """
    _check(out, count, seed, size)
    entries = list_entries(seed, count)
    jobs = ((out, chunk, seed, size) for chunk in iter(lambda: list(islice(entries, _CHUNK)), []))
    workers = min(workers, -(-count // _CHUNK))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Tables(out) as tables:
            for rows in starmap(_write_chunk, jobs) if workers <= 1 else _write_parallel(jobs, workers):
                tables.add(rows)
                if progress is not None:
                    progress(len(rows))
            tables.publish()
    except BrokenProcessPool as error:
        raise SourceError(
            "a worker was killed", where=out, remedy="Likely for want of memory: delete the folder, use fewer workers."
        ) from error
    except OSError as error:
        raise SourceError(
            f"cannot write the phantom set: {error.strerror or error}",
            where=error.filename or out,
            remedy="Free some space or choose another folder, delete what was written, and run again.",
        ) from error


def _check(out: Path, count: int, seed: int, size: int) -> None:
    if not 1 <= count <= IDS:
        raise SourceError(f"cannot write {count} records", remedy=f"Ask for 1 to {IDS:,}.")
    if not 0 <= seed < 2**64:
        raise SourceError(f"{seed} is no seed", remedy="Choose 0 to 2**64 - 1.")
    if not 64 <= size <= 8192:
        raise SourceError(f"a short side of {size} pixels is out of range", remedy="Choose 64 to 8,192.")
    if is_there(out) and (not is_folder(out) or names_in(out)):
        raise SourceError("is not an empty folder", where=out, remedy="Choose another folder, or delete this one.")


def _write_parallel(jobs: Iterator[_Job], workers: int) -> Iterator[list[Row]]:
    # Forking a process that has started threads (torch, OpenCV) can deadlock.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        # A few chunks ahead of the writers are enough, and keep the listing of a large set out of memory.
        pending = deque(pool.submit(_write_chunk, *job) for job in islice(jobs, 3 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(_write_chunk, *job) for job in islice(jobs, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_chunk(out: Path, entries: list[Entry], seed: int, size: int) -> list[Row]:
    """Write the files of some records and return their rows of the tables."""
    rows = []
    for entry in entries:
        study = draw_study(seed, entry.subject, entry.study)
        radiograph_HW, mask_HW = render(seed, study, entry.index, size)
        image_path = out / entry.image_path
        mask_path = out / "masks" / entry.study_path / f"{entry.dicom_id}.png"
        image_path.parent.mkdir(parents=True, exist_ok=True)
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        image_HW1 = radiograph_HW[:, :, None]
        jpeg = simplejpeg.encode_jpeg(image_HW1, quality=_QUALITY, colorspace="GRAY", colorsubsampling="Gray")
        image_path.write_bytes(jpeg)
        # Large flat areas need no filter: 1.7 ms instead of 8 at 1,024 pixels.
        flags = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
        mask_path.write_bytes(cv2.imencode(".png", mask_HW, flags)[1].tobytes())
        labels = None
        if entry.view == 0:
            report = write_report(seed, study, earlier=entry.visit)
            (out / "files" / f"{entry.study_path}.txt").write_text(report.text, encoding="utf-8", newline="\n")
            labels = report.labels
        rows.append(table_row(seed, entry, portable=study.portable, shape=radiograph_HW.shape, labels=labels))
    return rows
