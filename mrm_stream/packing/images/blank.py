"""Images with nothing on them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from mrm_stream.packing.images.checks import ImageError, stray_pixels

BLANK_LEVELS = 20
"""Neighbouring grey levels, of 256. The 4,400 real radiographs at hand have 75 or more."""


def check_not_blank(grey: NDArray[np.uint8], tell: Callable[[], str]) -> None:
    """Refuse an image that is constant, or nearly so: a window that misses the data, a picture in alpha alone.

    It is blank where all of its pixels but one in a thousand lie within `BLANK_LEVELS` neighbouring grey levels.

    Args:
        grey: All pixels of the picture, of any shape.
        tell: Says of what values the grey was made, and how; asked where it is blank.

    Raises:
        ImageError: It is blank.
    """
    if not grey.size:
        raise ImageError("image-blank", "the image is blank: all of it is padding")
    # OpenCV's takes 0.5 ms for a packed image, numpy's 2.5. Its counts are float32: those above 2**24 are rounded.
    counts = cv2.calcHist([grey.reshape(1, -1)], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    if np.convolve(counts, np.ones(BLANK_LEVELS)).max() >= grey.size - stray_pixels(grey.size):
        raise ImageError(
            "image-blank",
            f"the image is blank: its pixels lie within {BLANK_LEVELS} grey levels, around {_middle(counts)}; {tell()}",
        )


def _middle(counts: NDArray[np.float64]) -> int:
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
