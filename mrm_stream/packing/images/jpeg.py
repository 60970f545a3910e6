"""JPEGs to grey pixels, by libjpeg-turbo, straight from the DCT at a smaller scale where that saves work."""

from __future__ import annotations

import re
import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mrm_stream.packing.images.checks import MAX_SIDE, ImageError, check_size
from mrm_stream.packing.images.sizes import target_size

MAX_SCANS = 100
"""Of a progressive JPEG. Each costs a pass over the image; real ones have about ten."""
_JPEG_MAGIC = b"\xff\xd8\xff"
_START_OF_SCAN = b"\xff\xda"
_FRAME_MARKERS = (0xC0, 0xC1, 0xC3, 0xF7)
"""Of the headers of baseline, extended and lossless JPEG, and of JPEG-LS."""


def is_jpeg(data: bytes) -> bool:
    """Return whether the file begins as a JPEG does."""
    return data.startswith(_JPEG_MAGIC)


def decode_jpeg(data: bytes, short_side: int = MAX_SIDE) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Return the original (height, width), and the grey image at least as large as its target.

    Args:
        data: A JPEG file, of 8 bits a sample.
        short_side: Height or width in pixels, whichever is less, that the image may be shrunk to where that saves work.

    Raises:
        ImageError: The JPEG is damaged, cut short, too large, or made of inks.
        MemoryError: The machine is short of it: the image is not to blame.
    """
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise ImageError("image-damaged", "the JPEG's header cannot be read") from error
    check_size(height, width)
    if colour in ("CMYK", "YCCK"):
        # Whether such inks are stored inverted differs from writer to writer: a guess may give a negative.
        raise ImageError("image-colour-space", f"{colour} JPEGs cannot be read truthfully")
    if not _has_one_scan(data) and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise ImageError("image-damaged", "the JPEG has too many scans")
    target_height, target_width = target_size((height, width), short_side)
    try:
        # At half scale straight from the DCT, for MIMIC's size: there is less to resize, and it low-passes.
        grey_HW1 = simplejpeg.decode_jpeg(data, "GRAY", min_height=target_height, min_width=target_width, strict=True)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise ImageError("image-truncated", "the JPEG is cut short") from error
        if re.search("memory (allocation|\\(case)", str(error).lower()):  # what libjpeg-turbo says; sizes are checked
            raise MemoryError from None
        raise ImageError("image-damaged", f"the JPEG is damaged ({error})") from error
    return (height, width), grey_HW1[..., 0]


def _has_one_scan(data: bytes) -> bool:
    """Return whether the header says that one scan holds all: a baseline JPEG whose first scan has every component.

    Nearly all have: to search 1.5 MB of pixels for the marker of another one takes a millisecond.
    """
    at, components = 2, None
    while at + 10 <= len(data):
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if marker == _START_OF_SCAN[1]:
            return data[at + 4] == components
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in (0xC0, 0xC1):
                return False
            components = data[at + 9]
        if data[at] != 0xFF or length < 2:
            return False
        at += 2 + length
    return False


def stream_format(stream: bytes) -> tuple[int, int, int, int]:
    """Return bits, height, width and components of a JPEG, JPEG-LS or JPEG 2000 stream, by its header alone.

    Raises:
        ImageError: The stream is of another kind (progressive JPEG among them), or its header is damaged.
    """
    wavelets = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, bare or in a file's wrapping.
    if not is_jpeg(stream) and 0 <= wavelets < len(stream) - 43:
        right, bottom, left, top, *_, components, depth = struct.unpack_from(">8IHB", stream, wavelets + 8)
        # The highest bit of the depth tells that values have a sign.
        return (depth & 0x7F) + 1, bottom - top, right - left, components
    at = 2
    while is_jpeg(stream) and at + 10 <= len(stream):
        fill, marker, length, bits, height, width, components = struct.unpack_from(">BBHBHHB", stream, at)
        if marker in _FRAME_MARKERS:
            return bits, height, width, components
        if fill != 0xFF or length < 2 or stream[at + 1 : at + 2] == _START_OF_SCAN[1:]:
            break
        at += 2 + length
    raise ImageError("image-damaged", "the header of compressed pixels cannot be read")
