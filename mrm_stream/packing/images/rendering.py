"""What the values of a DICOM are as 8-bit grey."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.histogram import histogram

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Rendering = Literal["window", "equalized"]
"""How a DICOM becomes 8-bit grey; MONOCHROME1 is inverted either way.

window: as its maker meant it to be seen (DICOM PS3.3, C.11): modality LUT or rescaling, then the first VOI LUT or else
the first window. Where the file has neither, or a window that is none (narrower than 1), the least value becomes black
and the greatest white.

equalized: as the images of MIMIC-CXR-JPG were made: least to greatest stored value over 0 to 255, fractions dropped,
then the histogram equalized. It is OpenCV's `equalizeHist`, in integers: levels differ from its floats by 1 at most.
(What is inverted is so first of all, not after fractions are dropped: a picture and its negative come out the same.)

Padding is no part of the picture: it is neither the least nor the greatest value, is not counted, and becomes black.
"""

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels as a DICOM stores them, whatever their bits mean."""


def grey_levels(
    stored_HW: Stored,
    values: NDArray[np.int64],
    is_padding: NDArray[np.bool_],
    header: Dataset,
    rendering: Rendering,
) -> NDArray[np.uint8]:
    """Return the grey of each value that a pixel of a DICOM can have: an image then costs one look-up a pixel.

    Args:
        stored_HW: The pixels.
        values: What stored values mean, before any look-up: 256 or 65,536 integers.
        is_padding: Which of them are padding.
        header: Where the look-up tables and the window are.
        rendering: How values become grey.

    Raises:
        ImageError: A table or a window is damaged, or is of a kind that is not known.
    """
    grey = _grey_of_all(stored_HW, values, is_padding, header, rendering)
    return np.where(is_padding, np.uint8(0), grey)


def _grey_of_all(
    stored_HW: Stored,
    values: NDArray[np.int64],
    is_padding: NDArray[np.bool_],
    header: Dataset,
    rendering: Rendering,
) -> NDArray[np.uint8]:
    """Return the grey of each value, of padding as if it were none."""
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0:
        raise ImageError("image-damaged", "the DICOM's rescaling makes all values one")
    if rendering == "equalized":
        # Of the rescaling only its direction matters here.
        counts = histogram(stored_HW) * ~is_padding
        return _equalized(counts, -values if (slope < 0) != inverted else values)
    if header.get("ModalityLUTSequence"):
        wide = _look_up(header.ModalityLUTSequence[0], values)[0].astype(np.float64)
    else:
        wide = np.asarray(values * slope + intercept, np.float64)
    center, width = _number(header, "WindowCenter", 0.0), _number(header, "WindowWidth", 0.0)
    function = str(header.get("VOILUTFunction") or "LINEAR").strip()
    if header.get("VOILUTSequence"):
        levels, greatest = _look_up(header.VOILUTSequence[0], np.rint(wide).astype(np.int64))
        levels = greatest - levels if inverted else levels
        return ((levels * 255 + greatest // 2) // greatest).astype(np.uint8)
    if width >= 1 or (width > 0 and function != "LINEAR"):
        return _windowed(wide, center, width, function, inverted=inverted)
    used = wide[(histogram(stored_HW) > 0) & ~is_padding]
    low, high = (used.min(), used.max()) if used.size else (0.0, 0.0)
    return _ramp(wide, low, high - low, inverted=inverted)


def _number(header: Dataset, keyword: str, default: float) -> float:
    """Return the first value of an element, or the default where it has none."""
    value = header.get(keyword)
    if value is not None and not isinstance(value, str | float | int):
        value = next(iter(value), None)
    number = default if value is None or value == "" else float(value)
    if not math.isfinite(number):
        raise ImageError("image-damaged", f"the DICOM's {keyword} is not finite")
    return number


def _equalized(counts: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.uint8]:
    used = values[counts > 0]
    if not used.size:
        return np.zeros(values.size, np.uint8)
    low, span = int(used.min()), max(int(used.max() - used.min()), 1)
    grey = np.clip((values - low) * 255 // span, 0, 255)
    # The weights are floats, but whole, and far below 2**53.
    per_level = np.bincount(grey, weights=counts, minlength=256).astype(np.int64)
    first = int(per_level[per_level > 0][0])
    others = max(int(per_level.sum()) - first, 1)
    equal = (510 * (np.cumsum(per_level) - first) + others) // (2 * others)
    return np.clip(equal, 0, 255).astype(np.uint8)[grey]


def _look_up(table: Dataset, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return what a modality or VOI LUT makes of values, and the greatest value that it is meant to give."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries or 1 << 16
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16  # Read without the sign that it has where values have one.
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "u1" if len(data) <= entries + 1 else "<u2")
    levels = np.asarray(data, np.int64)
    if levels.size < entries or not 1 <= bits <= 16:
        raise ImageError("image-damaged", "a look-up table of the DICOM is cut short, or not of 1 to 16 bits")
    greatest = (1 << bits) - 1
    return np.minimum(levels, greatest)[np.clip(values - first, 0, entries - 1)], greatest


def _windowed(
    wide: NDArray[np.float64], center: float, width: float, function: str, *, inverted: bool
) -> NDArray[np.uint8]:
    if function == "LINEAR":
        return _ramp(wide, center - 0.5 - (width - 1) / 2, width - 1, inverted=inverted)
    if function == "LINEAR_EXACT":
        return _ramp(wide, center - width / 2, width, inverted=inverted)
    if function == "SIGMOID":
        distance = center - wide if inverted else wide - center
        return np.searchsorted(_sigmoid_steps(), distance * 4 / width, side="right").astype(np.uint8)
    raise ImageError("image-encoding-unknown", "the DICOM has a VOI LUT function that is not known")


def _ramp(wide: NDArray[np.float64], low: float, span: float, *, inverted: bool) -> NDArray[np.uint8]:
    """Return 0 up to `low`, 255 from `low + span`, and levels between, rounded half up; inverted, the other way round.

    Inverted before it is rounded: a negative in MONOCHROME1 gives the same grey as its positive in MONOCHROME2.
    """
    if span <= 0:
        return np.where((wide > low) != inverted, 255, 0).astype(np.uint8)
    distance = low + span - wide if inverted else wide - low
    return np.floor(np.clip(distance / span, 0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=1)
def _sigmoid_steps() -> NDArray[np.float64]:
    """Return where 255 / (1 + exp(-x)) rounds up to 1, 2, ... 255.

    By decimal logarithms, which are rounded correctly: an `exp` differs from one machine's library to another's.
    """
    return np.array([float((Decimal(2 * level - 1) / Decimal(511 - 2 * level)).ln()) for level in range(1, 256)])
