"""Packing takes the memory of a few shards' records at work, not of the set; MIMIC-CXR is listed in seconds."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

pytestmark = pytest.mark.alone

MIMIC_IMAGES, MIMIC_STUDIES, MIMIC_SUBJECTS = 377_110, 227_827, 65_379

# Argument: root, out. Prints (records done, resident bytes) at each shard.
PACK = """
import json, os, sys
from pathlib import Path
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import Supervision, pack

seen = []
def look(done):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    seen.append((done.records, pages * os.sysconf("SC_PAGE_SIZE")))

options = PackOptions(samples_per_shard=50, short_side=64, vocabulary=300)
pack("training-csv", Path(sys.argv[1]), Path(sys.argv[2]), options=options, supervision=Supervision(progress=look))
print(json.dumps(seen))
"""

LEAK = """
from mrm_stream.packing import worker
kept, pack_record = [], worker._pack_record
def leak(*arguments):
    kept.append(bytes(20_000))
    return pack_record(*arguments)
worker._pack_record = leak
"""

# Argument: root. Prints records, seconds, and the most memory that was resident, in bytes.
PLAN = """
import json, resource, sys, time
from pathlib import Path
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.plan import plan_set

begun = time.monotonic()
plan = plan_set("mimic", Path(sys.argv[1]), PackOptions())
plan.fingerprint(None)
seconds = time.monotonic() - begun
print(json.dumps([plan.records, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def run(code: str, *arguments: Path) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def many_small(root: Path, records: int) -> Path:
    """A set of layout training-csv: few images under many names."""
    (root / "images").mkdir(parents=True)
    for number in range(8):
        pixels_HW1 = np.random.default_rng(number).integers(0, 256, (80, 72, 1), np.uint8)
        (root / f"original-{number}").write_bytes(simplejpeg.encode_jpeg(pixels_HW1, 90, "GRAY", "Gray"))
    rows = [(f"images/{number:06d}.jpg", f"Made-up study {number}: no acute process.") for number in range(records)]
    for number, (path, _) in enumerate(rows):
        os.link(root / f"original-{number % 8}", root / path)
    with (root / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "report_content"), *rows])
    return root


def growth(seen: list[tuple[int, int]]) -> float:
    """Bytes for each record more, once the first quarter is done: the slope of the best line."""
    records, resident = np.array(seen[len(seen) // 4 :], dtype=float).T
    return float(np.polyfit(records, resident, 1)[0])


def test_a_leak_is_found(tmp_path: Path) -> None:
    assert growth(run(LEAK + PACK, many_small(tmp_path / "source", 1_000), tmp_path / "set")) > 5_000


@pytest.mark.parametrize("records", [2_000, pytest.param(20_000, marks=pytest.mark.campaign)])
def test_memory_does_not_grow_with_the_records(tmp_path: Path, records: int) -> None:
    seen = run(PACK, many_small(tmp_path / "source", records), tmp_path / "set")
    assert seen[-1][0] == records
    slope = growth(seen)
    print(f"{records:,} records: {slope:,.0f} bytes/record, {seen[-1][1] / 1e6:,.0f} MB in the end")  # noqa: T201
    # What is kept of a record is its share of its shard's entry; an image of these, encoded, has 4 kB.
    assert slope < 500


def write_table(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    with gzip.open(path, "wt", compresslevel=1, newline="") as file:
        file.write(header + "\n")
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)


def mimic_tables(root: Path) -> Path:
    """Tables as large as MIMIC-CXR-JPG's, made up; one image, and a zip of one report."""
    root.mkdir()
    studies = [(10_000_000 + number % MIMIC_SUBJECTS, 50_000_000 + number) for number in range(MIMIC_STUDIES)]
    images = [
        (f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}-{number:08x}"[:41], *studies[number % MIMIC_STUDIES])
        for number in range(MIMIC_IMAGES)
    ]
    splits = ("train",) * 97 + ("validate",) + ("test",) * 2
    write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,ViewPosition",
        ((*image, ("PA", "AP", "LATERAL")[number % 3]) for number, image in enumerate(images)),
    )
    write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        ((dicom, study, subject, splits[subject % 100]) for dicom, subject, study in images),
    )
    findings = "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion"
    findings += ",Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
    values = ("", "", "", "1.0", "0.0", "-1.0")
    write_table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        f"subject_id,study_id,{findings}",
        ((subject, study, *(values[study * (3 + column) % 6] for column in range(14))) for subject, study in studies),
    )
    dicom, subject, study = images[0]
    folder = root / f"files/p{str(subject)[:2]}/p{subject}/s{study}"
    folder.mkdir(parents=True)
    (folder / f"{dicom}.jpg").write_bytes(b"an image")
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr(f"{folder.relative_to(root)}.txt", "made up")
    return root


@pytest.mark.campaign
def test_mimic_is_listed_and_planned_in_seconds(tmp_path: Path) -> None:
    records, seconds, resident = run(PLAN, mimic_tables(tmp_path / "mimic"))
    print(f"{records:,} records: {seconds:.1f} s, {resident / 1e6:,.0f} MB at most")  # noqa: T201
    assert records == MIMIC_IMAGES
    assert seconds < 30
    assert resident < 2 << 30
