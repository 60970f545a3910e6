"""Tells by a file's first bytes what it truly is: its name may be wrong, after a browser or a person renamed it."""

from __future__ import annotations

from typing import NamedTuple

GZIP = b"\x1f\x8b"

SNIFFED = 64
"""Bytes at the start of a file that are enough to tell."""


class Format(NamedTuple):
    """What a file is, instead of what it should be."""

    name: str
    remedy: str


_WORKBOOK = Format("an Excel workbook or another zip", "Unpack it, or save the workbook as CSV: UTF-8, with commas.")
_UTF16 = Format("UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW.")
_PAGE = Format("a web page, as sites send to those who are not logged in", "Fetch the file itself, logged in.")
_FORMATS = {
    GZIP: Format("packed with gzip", "Unpack it."),
    b"PK\x03\x04": _WORKBOOK,
    b"\xd0\xcf\x11\xe0": _WORKBOOK,
    b"\xfd7zXZ\0": Format("packed with xz", "Unpack it."),
    b"BZh": Format("packed with bzip2", "Unpack it."),
    b"\x28\xb5\x2f\xfd": Format("packed with zstd", "Unpack it."),
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"version https://git-lfs": Format(
        "a pointer of Git LFS, and not the file it stands for", "Fetch the file itself: git lfs pull."
    ),
}


def format_of(start: bytes) -> Format | None:
    r"""Return what a file is whose first `SNIFFED` bytes these are; None: nothing that would be told.

    Example:
        >>> format_of(b"PK\x03\x04...").name, format_of(b"subject_id,study_id")
        ('an Excel workbook or another zip', None)
    """
    text = start.lstrip().lower()
    for magic, told in _FORMATS.items():
        if start.startswith(magic) or (magic.startswith(b"<") and text.startswith(magic)):
            return told
    return None
