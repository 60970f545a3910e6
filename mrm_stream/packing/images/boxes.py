"""Boxes as they were drawn -> boxes of the packed image, in its pixels; none that lies outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mrm_stream.packing.images.checks import ImageError
from mrm_stream.records import Box

TOLERANCE = 1.0
"""Pixels that a box may reach beyond the image: readers' tools round, and count from 0 or from 1."""

_LEAST = 0.01
"""Pixels to which coordinates are rounded; a box has no less in height and width."""


def place_boxes(boxes: Sequence[Box], *, drawn_on: tuple[int, int], size: tuple[int, int]) -> list[Box]:
    """Return the boxes in pixels of the packed image; what reaches a pixel or less beyond its edge is cut off.

    Args:
        boxes: As they were drawn.
        drawn_on: (height, width) in pixels of the image that they were drawn on.
        size: (height, width) in pixels of the packed image.

    Raises:
        ImageError: A box is empty or not finite, or reaches farther beyond the image.
    """
    return [_place(box, drawn_on, size) for box in boxes]


def box_from_json(value: Any) -> Box:
    """Return a box of a sample's JSON; ValueError or TypeError where it is none."""
    finding, *numbers = value
    if not isinstance(finding, str):
        raise TypeError("not a finding")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("not a box")
    left, top, width, height = numbers
    return Box(finding, left, top, width, height)


def is_inside(box: Box, size: tuple[int, int]) -> bool:
    """Return whether a box has an area and lies in an image of (height, width), but for `TOLERANCE`."""
    height, width = (side + TOLERANCE for side in size)
    starts_inside = min(box.left, box.top) >= -TOLERANCE
    ends_inside = box.left + box.width <= width and box.top + box.height <= height
    return starts_inside and ends_inside and box.width > 0 and box.height > 0


def _place(box: Box, drawn_on: tuple[int, int], size: tuple[int, int]) -> Box:
    _, left, top, width, height = box
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise ImageError("box-damaged", "a box is empty, or has a coordinate that is not finite")
    if not is_inside(box, drawn_on):
        spans = f"x {left:g} to {left + width:g}, y {top:g} to {top + height:g}"
        raise ImageError(
            "box-outside-image",
            f"a box spans {spans}, the image it was drawn on is {drawn_on[1]} x {drawn_on[0]} pixels: take the images "
            "at the size at which they were annotated, or a table of those sizes where the source reads one",
        )
    left, right = _scale(left, left + width, drawn_on[1], size[1])
    top, bottom = _scale(top, top + height, drawn_on[0], size[0])
    return Box(box.finding, left, top, round(right - left, 2), round(bottom - top, 2))


def _scale(start: float, end: float, drawn_on: int, size: int) -> tuple[float, float]:
    """Return where a side starts and ends in the packed image, within it and not empty."""
    start, end = (min(max(value, 0.0), drawn_on) * size / drawn_on for value in (start, end))
    start = min(round(start, 2), size - _LEAST)
    return start, max(round(end, 2), start + _LEAST)
