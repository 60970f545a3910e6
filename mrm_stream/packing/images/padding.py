"""Which values of a DICOM are padding: pixels that only fill up the rectangle (DICOM PS3.3, C.7.5.1.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PADDING_KEYWORDS = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_ELEMENT_BITS = 16


def padding_values(header: Dataset, values: NDArray[np.int64], *, signed: bool) -> NDArray[np.bool_]:
    """Return for each word that a pixel can be whether it is padding, (words,): one value, or all from it to the limit.

    The standard has the elements written with the sign of the pixels; they are read whichever sign they are written
    with. A word whose unused high bits make it the padding is padding as well: its value without them is another one.

    Args:
        header: Of the DICOM; it has the elements, or none.
        values: What the words mean, before any look-up: 256 or 65,536 integers, shape (words,).
        signed: Whether they have a sign.

    Raises:
        ValueError, TypeError: An element is no number.
    """
    value, limit = (_first_number(header.get(keyword)) for keyword in PADDING_KEYWORDS)
    if value is None:  # a limit alone limits nothing
        return np.zeros(values.size, np.bool_)
    ends = np.array([value, value if limit is None else limit])
    word_bits = values.size.bit_length() - 1
    words = _meaning(np.arange(values.size), word_bits, signed)
    is_padding = _is_between(values, _meaning(ends, _ELEMENT_BITS, signed))
    # One byte has none of the padding values that need two.
    half = 1 << (word_bits - 1)
    if ((ends + half) % (1 << _ELEMENT_BITS) < 3 * half).all():
        is_padding |= _is_between(words, _meaning(ends, word_bits, signed))
    return is_padding


def _first_number(value: Any) -> int | None:
    """Return the number that an element holds, whatever its VR; None where it holds none."""
    if isinstance(value, bytes):  # of unknown VR
        return int.from_bytes(value[:2], "little") if value else None
    if value is not None and not isinstance(value, str | float | int):
        value = next(iter(value), None)
    return None if value is None or value == "" else int(value)


def _meaning(numbers: NDArray[np.int64], bits: int, signed: bool) -> NDArray[np.int64]:
    """Return what the low bits of numbers mean."""
    low = -(1 << (bits - 1)) if signed else 0
    return (numbers - low) % (1 << bits) + low


def _is_between(numbers: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((numbers >= ends.min()) & (numbers <= ends.max()))
