"""How large the packed image is, and the reduction to it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def target_size(original_size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (height, width) with the lesser at most `short_side`, in the same proportion.

    Example:
        >>> target_size((3056, 2544), 1024), target_size((600, 500), 1024)
        ((1230, 1024), (600, 500))
    """
    least = min(original_size)
    if least <= short_side:
        return original_size
    height, width = ((side * short_side + least // 2) // least for side in original_size)
    return height, width


def shrink(pixels_HW: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image at (height, width), no larger than it is; in fixed point, the same on every machine.

    What scaled decoding leaves to do, a quarter at most, is done without a low-pass: 0.9 ms for MIMIC's size v 10.
    Against a bicubic reduction of the image decoded in full (40 real radiographs, reduced by 2.5) grey levels then
    differ by 0.66 on average (46.5 dB), v 0.54 (48.2 dB) with Pillow's bicubic instead.
    """
    if height_width(pixels_HW) == size:
        return pixels_HW
    if all(4 * new >= 3 * old for new, old in zip(size, height_width(pixels_HW), strict=True)):
        # OpenCV's other interpolations are in floating point, or not the same with every CPU's instructions.
        return np.asarray(cv2.resize(pixels_HW, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)
    return np.asarray(Image.fromarray(pixels_HW).resize(size[::-1], Image.Resampling.BICUBIC))


def height_width(pixels_HW: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the two sides of an image, in pixels."""
    return pixels_HW.shape[0], pixels_HW.shape[1]
