"""A mask made smaller, of which nothing vanishes: the area stays, and every connected component."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def reduce_mask(inside_HW: NDArray[np.bool_], size: tuple[int, int]) -> tuple[NDArray[np.bool_], int]:
    """Return a smaller mask, and how many components have a pixel in it only because none may vanish.

    Half of a pixel's area as threshold would lose whatever is thin: a crescent of one pixel in width covers a ninth of
    the pixels that it crosses at a ninth of the size, and is gone. So the threshold is the mask's own: the pixels that
    are covered most are inside, as many as have the area that there was, to half a pixel. Among equals at the
    threshold, pixels that lie evenly in reading order are taken. A component (8 neighbours) none of whose pixels is
    inside then gets the one that it covers most, and the others make room for it where they can.

    Args:
        inside_HW: The mask, (H, W).
        size: (height, width) of the result, neither larger than it was.
    """
    (height, width), (rows, columns) = inside_HW.shape, size
    assert 0 < rows <= height
    assert 0 < columns <= width
    if (height, width) == size or not inside_HW.any():
        return inside_HW if (height, width) == size else np.zeros(size, np.bool_), 0
    # Areas in 1 / (rows * columns) of an input pixel, in which all borders are whole numbers.
    area = _sum_down(_sum_down(inside_HW, rows).T, columns).T.ravel()
    wanted = (2 * int(area.sum()) + height * width) // (2 * height * width)
    count, labels_HW = cv2.connectedComponents(inside_HW.view(np.uint8), connectivity=8)
    given = np.zeros(rows * columns, np.bool_)
    kept_by_rule = 0
    while True:
        reduced_HW = (given | _most_covered(np.where(given, 0, area), wanted - np.count_nonzero(given))).reshape(size)
        is_lost = np.ones(count, np.bool_)
        is_lost[labels_HW[_touched(reduced_HW, (height, width))]] = False
        is_lost[0] = False  # what is outside
        if not is_lost.any():
            return reduced_HW, kept_by_rule
        # These take room from the others, of which some may be lost by that: seen in the next turn.
        kept_by_rule += int(np.count_nonzero(is_lost))
        given[_best_pixels(np.where(is_lost[labels_HW], labels_HW, 0), size)] = True


def _sum_down(values_HW: NDArray[np.bool_] | NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the sums over `rows` bands of equal height, in 1 / rows of an input row, shape (rows, W)."""
    height = values_HW.shape[0]
    borders = np.arange(rows + 1) * height
    whole, rest_R1 = borders // rows, (borders % rows)[:, None]
    # Each band from the row that its upper border cuts, down to the one that its lower border cuts, less what of these
    # two lies above the borders.
    sums = np.add.reduceat(values_HW, whole[:-1], axis=0, dtype=np.int64) * rows
    cut = np.concatenate([values_HW, values_HW[-1:]])[whole] * rest_R1
    return np.asarray(sums - cut[:-1] + cut[1:])


def _most_covered(area: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
    """Return which are the `number` largest of these areas, none of them 0."""
    number = min(number, int(np.count_nonzero(area)))
    if number <= 0:
        return np.zeros(area.shape, np.bool_)
    threshold = np.partition(area, -number)[-number]
    chosen = area > threshold
    equal = np.flatnonzero(area == threshold)
    missing = number - np.count_nonzero(chosen)
    chosen[equal[np.arange(missing) * equal.size // missing]] = True
    return np.asarray(chosen)


def _bands(length: int, parts: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each of `length` input rows, the first and last band that it lies in, and 1/parts of it in the first.

    A band is no less than a row: there are two at most.
    """
    starts = np.arange(length) * parts
    first, last = starts // length, (starts + parts - 1) // length
    return first, last, np.minimum((first + 1) * length - starts, parts)


def _touched(reduced_HW: NDArray[np.bool_], original_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which input pixels lie, with a part of theirs, in an output pixel that is inside."""
    (top, bottom, _), (left, right, _) = (
        _bands(length, parts) for length, parts in zip(original_size, reduced_HW.shape, strict=True)
    )
    down_HW = reduced_HW[top] | reduced_HW[bottom]
    return np.asarray(down_HW[:, left] | down_HW[:, right])


def _best_pixels(labels_HW: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return, for each component, the output pixel (number in reading order) that it covers most; else the first."""
    pixels = size[0] * size[1]
    ys, xs = np.nonzero(labels_HW)
    (top, bottom, upper), (left, right, lefter) = (
        tuple(values[pixels_of_axis] for values in _bands(length, parts))
        for pixels_of_axis, length, parts in zip((ys, xs), labels_HW.shape, size, strict=True)
    )
    # Each input pixel's four parts, as areas in the output pixels that they fall into; parts of no area do no harm.
    parts = [
        (row * size[1] + column, high * wide)
        for row, high in ((top, upper), (bottom, size[0] - upper))
        for column, wide in ((left, lefter), (right, size[1] - lefter))
    ]
    keys = np.concatenate([labels_HW[ys, xs].astype(np.int64) * pixels + output for output, _ in parts])
    pairs, inverse = np.unique(keys, return_inverse=True)
    areas = np.zeros(pairs.size, np.int64)
    np.add.at(areas, inverse, np.concatenate([area for _, area in parts]))
    labels, outputs = pairs // pixels, pairs % pixels
    order = np.lexsort((outputs, -areas, labels))
    return np.asarray(outputs[order[np.unique(labels[order], return_index=True)[1]]])
