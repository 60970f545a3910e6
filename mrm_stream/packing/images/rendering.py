"""What the values of a DICOM are as 8-bit grey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrm_stream.formats.options import Rendering
from mrm_stream.packing.images.checks import ImageError, told_values
from mrm_stream.packing.images.histogram import histogram

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels as a DICOM stores them, whatever their bits mean."""


@dataclass(frozen=True, slots=True)
class DicomPixels:
    """The pixels of a DICOM, and what is needed to tell what they mean."""

    stored_HW: Stored
    values: NDArray[np.int64]
    """What the words that a pixel can be mean, before any look-up: 256 or 65,536 integers, shape (words,)."""
    is_padding: NDArray[np.bool_]
    """Which of the words are padding, shape (words,)."""
    header: Dataset
    """Of the file; it has the look-up tables and the display window."""

    def counts(self) -> NDArray[np.int64]:
        """Return how many pixels are each word, (words,); none are padding."""
        return histogram(self.stored_HW) * ~self.is_padding


def grey_levels(pixels: DicomPixels, rendering: Rendering) -> NDArray[np.uint8]:
    """Return the grey of each word that a pixel can be, (words,): an image then costs one look-up a pixel.

    Raises:
        ImageError: A table or a window is damaged, or is of a kind that is not known.
    """
    grey = _equalized(pixels) if rendering == "equalized" else _shown(pixels)
    return np.where(pixels.is_padding, np.uint8(0), grey)


def tell_values(pixels: DicomPixels, rendering: Rendering) -> str:
    """Return the least and the greatest value of a picture, padding apart, and over which range they become grey."""
    header, used = pixels.header, pixels.counts() > 0
    if rendering == "equalized":
        return told_values(pixels.values[used], "equalized")
    center, width, function = _window(header)
    if header.get("VOILUTSequence"):
        how = "shown by the file's look-up table"
    elif _is_window(width, function):
        how = f"shown by the file's window, of width {width:,.6g} around {center:,.6g}"
    else:
        how = "shown from the least to the greatest, as the file has no window"
    return told_values(_wide(pixels)[used], how)


def _shown(pixels: DicomPixels) -> NDArray[np.uint8]:
    """Return the grey of each word as the file has it shown, of padding as if it were none."""
    header, wide = pixels.header, _wide(pixels)
    inverted = _is_inverted(header)
    center, width, function = _window(header)
    if header.get("VOILUTSequence"):
        levels, greatest = _look_up(header.VOILUTSequence[0], np.rint(wide).astype(np.int64))
        levels = greatest - levels if inverted else levels
        return ((levels * 255 + greatest // 2) // greatest).astype(np.uint8)
    if _is_window(width, function):
        return _windowed(wide, center, width, function, inverted=inverted)
    used = wide[pixels.counts() > 0]
    low, high = (used.min(), used.max()) if used.size else (0.0, 0.0)
    return _ramp(wide, low, high - low, inverted=inverted)


def _wide(pixels: DicomPixels) -> NDArray[np.float64]:
    """Return what each word means after the modality's look-up or rescaling."""
    header = pixels.header
    slope, intercept = _rescaling(header)
    if header.get("ModalityLUTSequence"):
        return _look_up(header.ModalityLUTSequence[0], pixels.values)[0].astype(np.float64)
    return np.asarray(pixels.values * slope + intercept, np.float64)


def _rescaling(header: Dataset) -> tuple[float, float]:
    """Return slope and intercept."""
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0:
        raise ImageError("image-damaged", "the DICOM's rescaling makes all values one")
    return slope, intercept


def _is_inverted(header: Dataset) -> bool:
    return bool(header.PhotometricInterpretation == "MONOCHROME1")


def _window(header: Dataset) -> tuple[float, float, str]:
    """Return centre, width and function of the first window; a width of 0 where there is none."""
    center, width = _number(header, "WindowCenter", 0.0), _number(header, "WindowWidth", 0.0)
    return center, width, str(header.get("VOILUTFunction") or "LINEAR").strip()


def _is_window(width: float, function: str) -> bool:
    return width >= 1 or (width > 0 and function != "LINEAR")


def _number(header: Dataset, keyword: str, default: float) -> float:
    """Return the first value of an element, or the default where it has none."""
    value = header.get(keyword)
    if value is not None and not isinstance(value, str | float | int):
        value = next(iter(value), None)
    number = default if value is None or value == "" else float(value)
    if not math.isfinite(number):
        raise ImageError("image-damaged", f"the DICOM's {keyword} is not finite")
    return number


def _equalized(pixels: DicomPixels) -> NDArray[np.uint8]:
    # Of the rescaling only its direction matters here; what is damaged is refused all the same.
    slope, _ = _rescaling(pixels.header)
    values = -pixels.values if (slope < 0) != _is_inverted(pixels.header) else pixels.values
    counts = pixels.counts()
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
