"""PNGs of 16 bits made up for the tests: Pillow writes no colour of them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels to grey, grey and alpha, RGB, RGBA."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(pixels: NDArray[Any], *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of these values, shape (H, W) or (H, W, channels), and of more chunks."""
    pixels_HWC = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = pixels_HWC.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # filter 0 of each row: none
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)
