"""The size of a JPEG from its header, and cheap checks that it is of the kind that our shards hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrm_stream.errors import DamagedSamplesError

MAX_PIXELS = 80_000_000
"""Four times the largest radiograph seen (4,280 x 3,520); a header of a few bytes may claim 65,535 x 65,535."""

_MAX_SEGMENTS = 64
"""Header segments that are read; an encoder writes 4 to 10."""
_BASELINE = 0xC0
_OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def jpeg_sizes(jpegs: Sequence[bytes | memoryview]) -> NDArray[np.int32]:
    """Return the height and width of each JPEG, shape (B, 2), without decoding.

    Found here: what is no JPEG, is cut short (no end marker), has a damaged header, claims more than `MAX_PIXELS`, or
    is not 8-bit baseline in grey or YCbCr. Not found here: damage inside the compressed data.

    Raises:
        DamagedSamplesError: Some are refused; each reason says why.

    Source:
        ITU-T T.81 (1992), annex B. 2 microseconds a JPEG.
    """
    sizes_B2 = np.empty((len(jpegs), 2), np.int32)
    reasons = {}
    for slot, jpeg in enumerate(jpegs):
        try:
            sizes_B2[slot] = _size(jpeg)
        except ValueError as error:
            reasons[slot] = str(error)
    if reasons:
        raise DamagedSamplesError(reasons)
    return sizes_B2


def _size(jpeg: bytes | memoryview) -> tuple[int, int]:
    if len(jpeg) < 4 or jpeg[:2] != b"\xff\xd8":
        raise ValueError("does not begin like a JPEG")
    if jpeg[-2:] != b"\xff\xd9":
        raise ValueError("JPEG is cut short: it has no end marker")
    position = 2
    try:
        for _ in range(_MAX_SEGMENTS):
            prefix, kind, length = struct.unpack_from(">BBH", jpeg, position)
            if prefix != 0xFF or length < 2:
                raise ValueError(f"JPEG header is damaged at byte {position}")
            if kind == _BASELINE:
                return _frame_size(*struct.unpack_from(">BHHB", jpeg, position + 4))
            if kind in _OTHER_FRAMES:
                raise ValueError(f"JPEG is not baseline (marker {kind:#04x})")
            if kind == _START_OF_SCAN:
                break
            position += 2 + length
    except struct.error:
        raise ValueError("JPEG header is cut short") from None
    raise ValueError("JPEG header does not tell a size")


def _frame_size(bits: int, height: int, width: int, components: int) -> tuple[int, int]:
    if bits != 8 or components not in (1, 3):
        raise ValueError(f"JPEG has {components} components of {bits} bits, not 1 or 3 of 8")
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"JPEG claims {width} x {height} pixels")
    return height, width
