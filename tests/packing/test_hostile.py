"""Sources made to harm: each is quarantined or refused, in bounded memory and time, and nothing outside is touched."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.formats.manifest import read_manifest
from mrm_stream.packing.verify import verify
from tests.packing.hostile_images import (
    dicom,
    dicom_that_unpacks,
    jpeg,
    jpeg_of_many_scans,
    jpeg_of_size,
    png,
    repeated,
    zeros,
)
from tests.packing.torture import REPOSITORY

# Packs each source given, by 2 GB more memory than the libraries take, and says what became of it as a line of JSON.
# Each in a process of its own, forked from one that has loaded the libraries: neither memory nor an end carries over.
JOB = """
import json, os, resource, signal, sys, time
from pathlib import Path
from mrm_stream.errors import MrmStreamError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import Supervision, pack
import mrm_stream.packing.images.dicom
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10
def become_of(source, root, out):
    limit = status("VmSize") + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, started, error = status("VmHWM"), time.monotonic(), None
    try:
        options = PackOptions(samples_per_shard=50, short_side=48, vocabulary=300)
        pack(source, Path(root), Path(out), options=options, supervision=Supervision(max_bad=1.0))
    except MrmStreamError as caught:
        error = [type(caught).__name__, str(caught)]
    except BaseException as caught:
        error = ["?" + type(caught).__name__, str(caught)]
    return {"error": error, "seconds": time.monotonic() - started, "bytes": status("VmHWM") - before}
for line in sys.stdin:
    started, child = time.monotonic(), os.fork()
    if child == 0:
        signal.alarm(int(sys.argv[1]))
        print(json.dumps(become_of(*json.loads(line))), flush=True)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if end != 0:
        ended = {"error": ["?ended", f"with {end}"], "seconds": time.monotonic() - started, "bytes": 0}
        print(json.dumps(ended), flush=True)
"""
SECONDS = 30.0
"""For one source, of a loaded machine."""
BYTES = 1 << 30

Outcome = dict[str, Any]
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc"),
]


def pack_all(sources: list[tuple[str, Path, Path]], prelude: str = "") -> list[Outcome]:
    """Return what became of each source; the prelude is run after the libraries are loaded."""
    given = "".join(json.dumps([kind, str(root), str(out)]) + "\n" for kind, root, out in sources)
    done = subprocess.run(
        [sys.executable, "-c", JOB.replace("def become_of", f"{prelude}\ndef become_of"), str(round(SECONDS))],
        input=given,
        capture_output=True,
        text=True,
        timeout=(SECONDS + 5) * len(sources),
        cwd=REPOSITORY,
    )
    outcomes: list[Outcome] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(sources), done.stderr[-2000:]
    return outcomes


def check_bounds(outcome: Outcome) -> None:
    assert outcome["seconds"] < SECONDS
    assert outcome["bytes"] < BYTES
    assert "Made-up" not in str(outcome["error"])


# ---- the job itself ----


# By the source's name: takes memory, or ends the process.
FAULTS = """
pack_truly = pack
def pack(source, root, out, **choices):
    if root.name == "greedy":
        held = bytearray(3 << 29)
    if root.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    pack_truly(source, root, out, **choices)
"""


def test_what_one_source_does_to_its_process_is_not_told_of_the_next(tmp_path: Path) -> None:
    names = ("greedy", "second", "killed", "fourth")
    for name in names:
        table(tmp_path / name, HEADER + ROW)
    greedy, second, killed, fourth = pack_all(
        [("training-csv", tmp_path / name, tmp_path / f"set-{name}") for name in names], FAULTS
    )
    assert greedy["error"] is None
    assert greedy["bytes"] > BYTES
    assert killed["error"] == ["?ended", "with -9"]
    for outcome in (second, fourth):
        assert outcome["error"] is None
        check_bounds(outcome)


# ---- one set with every hostile record among good ones ----


# Name of the image -> its content, and the reason that it must be quarantined for; None: it is good.
IMAGES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "good.jpg": (jpeg, None),
    "new\nline.jpg": (jpeg, None),
    "Ünïcödé 肺 \U0001fac1.jpg": (jpeg, None),
    "-rf *; $(touch x) `x` %s {0}.jpg": (jpeg, None),
    f"{'long' * 60}.jpg": (jpeg, None),
    "jpeg-65500.jpg": (lambda: jpeg_of_size(65_500, 65_500), "image-too-large"),
    "jpeg-no-pixels.jpg": (lambda: jpeg_of_size(0, 50), "image-damaged"),
    "jpeg-scans.jpg": (lambda: jpeg_of_many_scans(5_000), "image-damaged"),
    "png-100000.png": (lambda: png(100_000, 100_000, zeros(1 << 20)), "image-too-large"),
    "png-2-31.png": (lambda: png(2**31 - 1, 2**31 - 1, b""), "image-too-large"),
    "png-bomb.png": (lambda: png(20_000, 4_001, zeros(1 << 30)), "image-too-large"),
    # What it says it is, is black; the gigabyte after that is never unpacked.
    "png-more-than-it-says.png": (lambda: png(50, 60, zeros(1 << 30)), "image-blank"),
    "png-text-bomb.png": (
        lambda: png(50, 60, zeros(1 << 20), (b"zTXt", b"Comment\0\0" + zeros(1 << 30))),
        "image-damaged",
    ),
    "png-profile-bomb.png": (lambda: png(50, 60, zeros(1 << 20), (b"iCCP", b"profile\0\0" + zeros(1 << 30))), "?"),
    "dicom-65535.dcm": (lambda: dicom(65_535, 65_535), "image-too-large"),
    "dicom-deflated.dcm": (dicom_that_unpacks, "?"),
    "empty.jpg": (lambda: b"", "image-empty"),
}


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A source of layout training-csv, with good and hostile records, and a secret beside it."""
    folder = tmp_path_factory.mktemp("trap")
    secret = folder / "secret.jpg"
    secret.write_bytes(jpeg())
    root = folder / "source"
    images = root / "images"
    images.mkdir(parents=True)
    for name, (make, _) in IMAGES.items():
        (images / name).write_bytes(make())
    (images / "link-out.jpg").symlink_to(secret)
    (images / "folder-out").symlink_to(folder)
    (images / "loop-a.jpg").symlink_to(images / "loop-b.jpg")
    (images / "loop-b.jpg").symlink_to(images / "loop-a.jpg")
    (images / "endless.jpg").symlink_to("/dev/zero")
    (images / "link-in.jpg").symlink_to("good.jpg")
    os.mkfifo(images / "pipe.jpg")
    (images / "folder.jpg").mkdir()
    yield root
    assert sorted(path.name for path in folder.iterdir()) == ["secret.jpg", "source"]
    assert secret.read_bytes() == jpeg()


# Paths as the table has them -> the reason.
PATHS: dict[str, str | None] = {
    "../secret.jpg": "path-leads-out-of-the-root",
    "images/../../secret.jpg": "path-leads-out-of-the-root",
    "images/link-out.jpg": "a-link-leads-out-of-the-root",
    "images/folder-out/secret.jpg": "a-link-leads-out-of-the-root",
    "images/loop-a.jpg": "image-cannot-be-read",
    "images/endless.jpg": "a-link-leads-out-of-the-root",
    "images/pipe.jpg": "image-not-a-regular-file",
    "images/folder.jpg": "image-cannot-be-read",
    "images/nul\0.jpg": "image-cannot-be-read",
    "images/link-in.jpg": None,
    f"images/{'x' * 5000}.jpg": "image-cannot-be-read",
    "images/good.jpg/more.jpg": "image-missing",
}
REPORTS: dict[str, tuple[str, str | None]] = {
    "nul": ("Made-up report\0with NUL.", "report-holds-nul-characters"),
    "empty": (" \n\t", "report-empty"),
    "long": ("Made-up words " * 70_000, "report-more-than-65-535-tokens"),
    "one word": ("x" * 900_000, None),
    "markup": ("Made-up [PAD] [MASK] %s {0} \x1b[31m </script> \u202e report.", None),
    "marks": ("e" + "\u0301" * 100_000, None),
}


def test_hostile_records_are_quarantined_and_the_others_packed(trap: Path, tmp_path: Path) -> None:
    rows = [(f"images/{name}", f"Made-up report {number}.") for number, name in enumerate(IMAGES)]
    expected = {f"images/{name}": reason for name, (_, reason) in IMAGES.items()}
    rows += [(path, "Made-up report.") for path in PATHS]
    rows.append((str(trap.parent / "secret.jpg"), "Made-up report."))
    expected |= PATHS | {rows[-1][0]: "path-leads-out-of-the-root"}
    for number, (report, reason) in enumerate(REPORTS.values()):
        (trap / f"images/report-{number}.jpg").write_bytes(jpeg())
        rows.append((f"images/report-{number}.jpg", report))
        expected[rows[-1][0]] = reason
    with (trap / "training.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "report_content"), *rows])
    out = tmp_path / "set"
    [outcome] = pack_all([("training-csv", trap, out)])
    assert outcome["error"] is None
    check_bounds(outcome)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["image_path"]: line["reason"] for line in lines}
    # "?": which reason is for the decoder's version to say.
    wrong = {path: reasons.get(path) for path, reason in expected.items() if reasons.get(path) != reason}
    assert {path: reason for path, reason in wrong.items() if expected[path] != "?" or reason is None} == {}
    assert "Made-up" not in (out / "quarantine.jsonl").read_text()
    assert read_manifest(out).samples("train") == len(expected) - len(lines) > 8
    assert verify(out, decode=True) == []


# ---- sets that are hostile as a whole ----


def table(root: Path, content: bytes, name: str = "training.csv") -> None:
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.jpg").write_bytes(jpeg())
    (root / name).write_bytes(content)


HEADER = b"image_path,report_content\n"
ROW = b"images/a.jpg,Made-up report.\n"


def mimic(root: Path, *, zip_of: Callable[[Path], None] | None = None, report: bytes | None = None) -> None:
    """One record in MIMIC's layout."""
    folder = root / "files/p10/p10000001/s50000001"
    folder.mkdir(parents=True)
    (folder / "aaa.jpg").write_bytes(jpeg())
    start = "mimic-cxr-2.0.0"
    ids = "aaa,10000001,50000001"
    (root / f"{start}-metadata.csv").write_text(f"dicom_id,subject_id,study_id,ViewPosition\n{ids},PA\n")
    (root / f"{start}-split.csv").write_text(f"dicom_id,subject_id,study_id,split\n{ids},train\n")
    from mrm_stream.sources.mimic_tables import FINDINGS

    empty = "," * len(FINDINGS)
    (root / f"{start}-chexpert.csv").write_text(f"subject_id,study_id,{','.join(FINDINGS)}\n10000001,50000001{empty}\n")
    if zip_of is not None:
        zip_of(root / "mimic-cxr-reports.zip")
    if report is not None:
        folder.with_suffix(".txt").write_bytes(report)


MEMBER = "files/p10/p10000001/s50000001.txt"


def bomb(path: Path) -> None:
    """10 GB of zeros."""
    size = 10 << 30
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, repeated(zlib.compressobj(9, zlib.DEFLATED, -15), size))
        # What was stored is deflated already: the directory at the end, which is not yet written, says so.
        archive.filelist[0].compress_type, archive.filelist[0].file_size = zipfile.ZIP_DEFLATED, size


def climbing(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../../escaped.txt", "/escaped.txt", f"../{MEMBER}", MEMBER):
            archive.writestr(name, "Made-up report of nothing.")


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(1000))


def gzip_bomb(root: Path, block: bytes, blocks: int) -> None:
    mimic(root, report=b"Made-up report.")
    (root / "mimic-cxr-2.0.0-metadata.csv").unlink()
    # Any number of compressed files after each other are one.
    content = gzip.compress(b"dicom_id,subject_id,study_id,ViewPosition\n") + gzip.compress(block) * blocks
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(content)


def linked_table(root: Path) -> None:
    table(root, b"")
    (root / "training.csv").unlink()
    (root / "training.csv").symlink_to("/dev/zero")


LINE = bytes(range(97, 107)) * 100_000
WHOLE: dict[str, tuple[str, Callable[[Path], None], str | None]] = {
    "a zip bomb of reports": ("mimic", lambda root: mimic(root, zip_of=bomb), "SourceError"),
    "zip members that climb": ("mimic", lambda root: mimic(root, zip_of=climbing), None),
    "a zip that is none": ("mimic", lambda root: mimic(root, zip_of=no_zip), "no readable zip"),
    "a report of 50 MB": ("mimic", lambda root: mimic(root, report=b"Made-up " * 6_500_000), "report-too-large"),
    "a report in latin-1": ("mimic", lambda root: mimic(root, report="Made-up Röntgen".encode("latin-1")), "not-utf-8"),
    "a report in UTF-16": ("mimic", lambda root: mimic(root, report="Made-up".encode("utf-16")), "not-utf-8"),
    "a gzip bomb of one line": ("mimic", lambda root: gzip_bomb(root, bytes(1 << 24), 640), "longer than"),
    "a gzip bomb of one row": (
        "mimic",
        lambda root: gzip_bomb(root, b"aaa,10000001,50000001,PA\n" * (1 << 19), 10),
        "twice",
    ),
    "a table of the machine": ("training-csv", linked_table, "not a regular file"),
    "a million columns": ("training-csv", lambda root: table(root, b"a," * 1_000_000 + b"\n" + ROW), "is missing"),
    "a million other columns": (
        "training-csv",
        lambda root: table(root, b",".join(b"%06x" % number for number in range(500_000)) + b"\n" + ROW),
        "is missing",
    ),
    "a row of a million cells": ("training-csv", lambda root: table(root, HEADER + b"," * 1_000_000), "cells"),
    "a line of 100 MB": (
        "training-csv",
        lambda root: table(root, HEADER + b"images/a.jpg," + LINE * 100),
        "longer than",
    ),
    "a cell of 50 MB": (
        "training-csv",
        lambda root: table(root, HEADER + b'images/a.jpg,"' + b"Made-up\n" * 6_500_000 + b'"\n'),
        "a cell is longer than",
    ),
    "a quote that never ends": (
        "training-csv",
        lambda root: table(root, HEADER + ROW + b'images/b.jpg,"x'),
        "is not closed",
    ),
    "a table in latin-1": (
        "training-csv",
        lambda root: table(root, HEADER + ROW + b"images/\xfc.jpg,x\n"),
        "not UTF-8",
    ),
    "a table in UTF-16": (
        "training-csv",
        lambda root: table(root, (HEADER + ROW).decode().encode("utf-16")),
        "it is UTF-16 text",
    ),
    "a table of NUL bytes": ("training-csv", lambda root: table(root, bytes(1 << 16)), "is missing"),
    "an image twice": ("training-csv", lambda root: table(root, HEADER + ROW + ROW), "twice"),
    "no images at all": ("training-csv", lambda root: table(root, HEADER + b"../x.jpg,Made-up.\n"), "no images"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Path]]:
    """What became of each of `WHOLE`."""
    folder = tmp_path_factory.mktemp("whole")
    sources = []
    for number, (source, make, _) in enumerate(WHOLE.values()):
        root = folder / f"source-{number}"
        root.mkdir()
        if source == "training-csv":
            root.rmdir()
        make(root)
        sources.append((source, root, folder / f"set-{number}"))
    started = time.monotonic()
    results = pack_all(sources)
    assert time.monotonic() - started < SECONDS * len(sources)
    return {name: (result, out) for name, result, (_, _, out) in zip(WHOLE, results, sources, strict=True)}


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_source_is_refused_or_read_without_harm(outcomes: dict[str, tuple[Outcome, Path]], name: str) -> None:
    expected, (outcome, out) = WHOLE[name][2], outcomes[name]
    check_bounds(outcome)
    if expected is None:
        assert outcome["error"] is None
        assert read_manifest(out).samples("train") == 1
        assert not list(out.parent.rglob("escaped*"))
        return
    assert outcome["error"] is not None
    kind, said = outcome["error"]
    assert kind in ("SourceError", "ShardError")
    assert expected in f"{kind}: {said}"
    assert not out.exists() or not list(out.iterdir())
