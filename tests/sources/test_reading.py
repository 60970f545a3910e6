from __future__ import annotations

import contextlib
import errno
import gzip
import multiprocessing
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.errors import MrmStreamError, RecordError, SourceError, StorageError
from mrm_stream.records import REPORT_LIMIT, Record
from mrm_stream.sources import reading
from mrm_stream.sources.reading import read_image, read_report


def _image(path: str) -> Record:
    return Record(key="k", image_path=path)


def _report(path: str) -> Record:
    return Record(key="k", image_path="k.jpg", report_path=path)


def _inline(text: str) -> Record:
    return Record(key="k", image_path="k.jpg", report_text=text)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_image_bytes_come_back_as_they_are(tmp_path: Path) -> None:
    _write(tmp_path / "files" / "a.jpg", b"\xff\xd8 any bytes")
    assert read_image(tmp_path, _image("files/a.jpg")) == b"\xff\xd8 any bytes"


def test_the_root_may_be_a_link_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "real" / "a.jpg", b"image")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert read_image(tmp_path / "root", _image("a.jpg")) == b"image"
    monkeypatch.chdir(tmp_path)
    assert read_image(Path("root"), _image("a.jpg")) == b"image"


def test_a_link_that_stays_below_the_root_is_followed(tmp_path: Path) -> None:
    _write(tmp_path / "files" / "a.jpg", b"image")
    (tmp_path / "b.jpg").symlink_to("files/a.jpg")
    assert read_image(tmp_path, _image("b.jpg")) == b"image"


@pytest.mark.parametrize("way", ["dots", "absolute", "link", "linked folder", "beside"])
def test_no_path_leaves_the_root(tmp_path: Path, way: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = _write(tmp_path / "secret" / "s.txt", b"secret")
    _write(tmp_path / "root-of-another" / "s.txt", b"secret")
    (root / "link.txt").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    path = {
        "dots": "../secret/s.txt",
        "absolute": str(secret),
        "link": "link.txt",
        "linked folder": "folder/s.txt",
        "beside": "../root-of-another/s.txt",
    }[way]
    for read, record in ((read_image, _image(path)), (read_report, _report(path))):
        with pytest.raises(RecordError, match="leads out of the root"):
            read(root, record)


def test_a_zip_may_not_be_outside_the_root_either(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("a.txt", "secret")
    with pytest.raises(RecordError, match="leads out of the root"):
        read_report(tmp_path / "root", _report("../r.zip::a.txt"))


def test_what_is_no_file_with_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    _write(tmp_path / "empty", b"")
    _write(tmp_path / "large", b"x" * 101)
    _write(tmp_path / "just", b"x" * 100)
    monkeypatch.setattr(reading, "IMAGE_LIMIT", 100)
    faults = {
        "none": "is missing",
        "just/below-a-file": "is missing",
        "folder": "cannot be read",
        "pipe": "is not a regular file",
        "loop": "cannot be read",
        "nul\0": "cannot be read",
        "empty": "is empty",
        "large": "is too large",
    }
    for path, what in faults.items():
        with pytest.raises(RecordError, match=f"the image {what}"):
            read_image(tmp_path, _image(path))
    assert len(read_image(tmp_path, _image("just"))) == 100


def test_a_file_that_reports_no_size_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of /proc have size 0 and content: the bound must hold for what is read, not for what is announced."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc on this system")
    monkeypatch.setattr(reading, "IMAGE_LIMIT", 10)
    with pytest.raises(RecordError, match="too large"):
        read_image(Path("/proc/self"), _image("maps"))


@pytest.mark.parametrize("text", [" FINAL REPORT\n Clear.", "é ü 肺", "x" * REPORT_LIMIT])
def test_a_report_reads_the_same_from_a_file_a_zip_and_the_listing(tmp_path: Path, text: str) -> None:
    _write(tmp_path / "files" / "s1.txt", text.encode())
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/s1.txt", text)
    for record in (_report("files/s1.txt"), _report("r.zip::files/s1.txt"), _inline(text)):
        assert read_report(tmp_path, record) == text


def test_a_byte_order_mark_is_no_part_of_the_report(tmp_path: Path) -> None:
    _write(tmp_path / "s.txt", b"\xef\xbb\xbfClear.")
    assert read_report(tmp_path, _report("s.txt")) == "Clear."


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b" \n\t\xc2\xa0", "is empty"),
        (b"Clear.\xff", "not UTF-8"),
        (b"Clear.\0", "NUL"),
        (b"x" * (REPORT_LIMIT + 1), "too large"),
    ],
)
def test_unusable_reports_are_refused_wherever_they_come_from(tmp_path: Path, content: bytes, what: str) -> None:
    _write(tmp_path / "s.txt", content)
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s.txt", content)
    inline = _inline(content.decode(errors="surrogateescape"))
    for record in (_report("s.txt"), _report("r.zip::s.txt"), inline):
        with pytest.raises(RecordError, match=f"the report (is |holds )?{what}") as caught:
            read_report(tmp_path, record)
        assert "Clear" not in str(caught.value)


def test_a_report_that_is_missing_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("s.txt", "Clear.")
    for record in (_image("a.jpg"), _report("none.txt"), _report("r.zip::none.txt")):
        with pytest.raises(RecordError, match="the report is missing"):
            read_report(tmp_path, record)


@pytest.mark.parametrize("content", [None, b"", b"this is no zip"])
def test_a_zip_that_is_none_concerns_the_whole_source(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        _write(tmp_path / "r.zip", content)
    with pytest.raises(SourceError, match="zip"):
        read_report(tmp_path, _report("r.zip::s.txt"))


def test_a_member_that_unpacks_without_end_is_bounded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s.txt", b"x" * (64 << 20))
    with pytest.raises(RecordError, match="too large"):
        read_report(tmp_path, _report("r.zip::s.txt"))


def test_a_damaged_zip_gives_an_error_or_the_report_and_nothing_else(tmp_path: Path) -> None:
    text = "Clear. " * 4
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)):
            archive.writestr(f"{number}", text, method)
    whole = (tmp_path / "whole.zip").read_bytes()
    cuts = [whole[:size] for size in range(0, len(whole), 3)]
    flips = [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in range(len(whole))]
    # A name that claims to be UTF-8 and is not: two places have to change together.
    misnamed = bytearray(whole)
    header = whole.index(b"PK\x01\x02")
    misnamed[header + 9] |= 8
    misnamed[header + 46] = 0xFF
    refused = 0
    for damaged in [*cuts, *flips, bytes(misnamed)]:
        path = _write(tmp_path / "damaged.zip", damaged)
        reading._open_zip.cache_clear()
        for number in range(3):
            try:
                assert read_report(tmp_path, _report(f"{path.name}::{number}")) == text
            except MrmStreamError:
                refused += 1
    assert refused > 3 * len(cuts)


def _read_all(root: Path, count: int, results: multiprocessing.SimpleQueue[int]) -> None:
    right = sum(read_report(root, _report(f"r.zip::{n}.txt")) == f"report {n}" for n in range(count))
    results.put(right)


def test_forked_processes_read_one_zip_without_disturbing_each_other(tmp_path: Path) -> None:
    count = 2000
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for n in range(count):
            archive.writestr(f"{n}.txt", f"report {n}")
    read_report(tmp_path, _report("r.zip::0.txt"))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_read_all, args=(tmp_path, count, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [results.get() for _ in workers] == [count, count]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_path_gets_past_the_errors(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp()
    for read, record in ((read_image, _image(path)), (read_report, _report(path))):
        with contextlib.suppress(RecordError, SourceError):
            read(root, record)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_could_unpack_to_anything_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "reports.zip", "w", method) as archive:
        archive.writestr("a.txt", "No acute process.")
    with pytest.raises(RecordError, match="packed in a way that is not read"):
        read_report(tmp_path, Record("a", "a.jpg", report_path="reports.zip::a.txt"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("at", ["open", "read"])
def test_what_fails_in_passing_is_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, at: str
) -> None:
    _write(tmp_path / "a.jpg", b"image")
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("s.txt", "Clear.")
    reading._open_zip.cache_clear()
    if at == "read":
        reading._open_zip(tmp_path / "r.zip", os.getpid())  # open, and then the disk fails

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("mrm_stream.sources.reading.os.open", fail)
        patch.setattr(zipfile.ZipFile, "open" if at == "read" else "__init__", fail)
        with pytest.raises(StorageError, match=r"a\.jpg cannot be read"):
            read_image(tmp_path, _image("a.jpg"))
        with pytest.raises(StorageError, match=r"r\.zip cannot be read"):
            read_report(tmp_path, _report("r.zip::s.txt"))
    assert read_report(tmp_path, _report("r.zip::s.txt")) == "Clear."


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_is_the_file_s_fault_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    _write(tmp_path / "a.jpg", b"image")

    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(reading, "_open_plainly", fail)
    with pytest.raises(RecordError, match="the image cannot be read"):
        read_image(tmp_path, _image("a.jpg"))


def test_a_cell_that_may_be_a_report_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a b", b"image")
    told = {path: reading.path_to_tell(tmp_path, path) for path in ("files/a", "a b", "no b", "é 1.PNG", "x\n.png")}
    assert {path for path, shown in told.items() if shown == path} == {"files/a", "a b", "é 1.PNG"}
    assert {shown for path, shown in told.items() if shown != path} == {"(not shown: it is no plain path)"}

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(reading, "resolve_below", fail)
    with pytest.raises(StorageError) as caught:
        read_image(tmp_path, _image("The lungs are clear"))
    assert "lungs" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><title>Login</title>", "this is no zip: it is a web page"),
        (gzip.compress(b"reports", mtime=0), "this is no zip: it is packed with gzip"),
        (b"PK\x03\x04 cut short", "this is no readable zip"),
        (b"reports", "this is no readable zip"),
    ],
)
def test_what_is_no_zip_is_told_as_what_it_is(tmp_path: Path, content: bytes, what: str) -> None:
    _write(tmp_path / "r.zip", content)
    with pytest.raises(SourceError, match=what):
        read_report(tmp_path, _report("r.zip::s.txt"))
