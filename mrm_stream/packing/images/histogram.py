"""How many pixels have each value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def histogram(pixels_HW: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return how many pixels have each of the 256 or 65,536 values."""
    counts = np.zeros(1 << 8 * pixels_HW.itemsize, np.int64)
    for band in np.array_split(pixels_HW, 64):  # In bands that stay in the cache: 12 ms v 30 for MIMIC's size.
        counts += np.bincount(band.ravel(), minlength=counts.size)
    return counts
