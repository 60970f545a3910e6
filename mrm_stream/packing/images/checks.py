"""Why an image cannot be packed, and the size that none may exceed."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mrm_stream.errors import RecordError

MAX_SIDE = 20_000
MAX_PIXELS = 80_000_000
OF_8_BITS = "of 0 to 255"
"""The range of values that are grey levels already."""


class ImageError(RecordError):
    """One image cannot be packed.

    Args:
        code: The reason as quarantine.jsonl counts it, such as `image-truncated`.
        what: The reason in words.
    """

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return ImageError, (self.code, self.what)


def check_size(height: int, width: int) -> None:
    """Refuse an image by its header, before its pixels are decoded or memory is taken for them.

    Raises:
        ImageError: The image is larger than any radiograph, or has no pixels.
    """
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ImageError("image-too-large", f"{width} x {height} pixels are more than a radiograph has")
    if min(height, width) < 1:
        raise ImageError("image-damaged", "the image has no pixels")


def told_values(values: NDArray[Any], how: str) -> str:
    """Return in words the least and the greatest of a picture's values, (...), and how they become grey."""
    return f"its values are {values.min():,.6g} to {values.max():,.6g}, {how}"


def stray_pixels(pixels: int) -> int:
    """Return how many of an image's pixels are ignored when its range is chosen: dead pixels, letters burnt in.

    Example:
        >>> stray_pixels(7_774_464), stray_pixels(500)
        (7774, 1)
    """
    return max(pixels // 1000, 1)
