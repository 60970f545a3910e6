"""Of a mask that is made smaller nothing vanishes: its area, its components, and that there is a finding at all."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mrm_stream.packing.images.reduction import reduce_mask

SIZES = [((12, 18), (4, 6)), ((13, 17), (5, 7)), ((20, 9), (13, 9)), ((7, 7), (1, 1)), ((8, 8), (8, 3))]

Mask = NDArray[np.bool_]


def weights(length: int, parts: int) -> NDArray[Any]:
    """(parts, length): how much of each input row lies in each output row, by fractions."""
    zero = Fraction(0)
    borders = [Fraction(part * length, parts) for part in range(parts + 1)]
    return np.array(
        [
            [max(zero, min(Fraction(low + 1), end) - max(Fraction(low), start)) for low in range(length)]
            for start, end in pairwise(borders)
        ]
    )


def coverage(mask_HW: Mask, size: tuple[int, int]) -> NDArray[Any]:
    """The share of each output pixel that is inside, by fractions."""
    height, width = mask_HW.shape
    area = weights(height, size[0]) @ mask_HW.astype(int).astype(object) @ weights(width, size[1]).T
    return np.array(area / Fraction(height * width, size[0] * size[1]))


def components(mask_HW: Mask) -> list[Mask]:
    count, labels_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    return [labels_HW == number for number in range(1, count)]


def off_target(mask_HW: Mask, reduced_HW: Mask) -> float:
    """Pixels of the result that are too many, or (below 0) missing, for the same share of the image."""
    return float(np.count_nonzero(reduced_HW) - mask_HW.mean() * reduced_HW.size)


def random_masks(size: tuple[int, int]) -> list[Mask]:
    """From noise to a few smooth blobs, 30 of them."""
    draws = np.random.default_rng(size)
    masks = [draws.random(size) < share for share in (0.01, 0.05, 0.2, 0.5, 0.8, 0.99)]
    for blur in (1, 2, 3):
        for share in (0.03, 0.1, 0.3, 0.6) * 2:
            smooth = cv2.GaussianBlur(draws.random(size), (0, 0), blur)
            masks.append(smooth < np.quantile(smooth, share))
    return masks


def test_a_crescent_one_pixel_wide_survives() -> None:
    rows, columns = np.ogrid[:2048, :2048]
    radius = np.hypot(rows - 1000.2, columns - 1100.7)
    crescent_HW = (np.abs(radius - 700) < 0.5) & (columns < 700)
    reduced_HW, kept_by_rule = reduce_mask(crescent_HW, (224, 224))
    assert abs(off_target(crescent_HW, reduced_HW)) <= 0.5
    assert np.count_nonzero(reduced_HW) > 10
    assert kept_by_rule == 0
    for row, column in np.argwhere(reduced_HW):  # on the crescent, nowhere else
        top, left = row * 2048 // 224, column * 2048 // 224
        assert crescent_HW[top : top + 11, left : left + 11].any()


@pytest.mark.parametrize(("original_size", "size"), SIZES)
def test_area_and_components_of_random_masks_are_kept(original_size: tuple[int, int], size: tuple[int, int]) -> None:
    for mask_HW in random_masks(original_size):
        reduced_HW, kept_by_rule = reduce_mask(mask_HW, size)
        assert reduced_HW.any() == mask_HW.any()
        lost = 0
        for component_HW in components(mask_HW):
            lost += not reduced_HW[np.nonzero(coverage(component_HW, size))].any()
        assert lost == 0
        if kept_by_rule == 0:
            assert abs(off_target(mask_HW, reduced_HW)) <= 0.5
            share = coverage(mask_HW, size)
            if reduced_HW.any() and not reduced_HW.all():
                assert share[reduced_HW].min() >= share[~reduced_HW].max()
        else:
            # More than the area asks for only where nothing but such pixels is left.
            assert off_target(mask_HW, reduced_HW) <= 0.5 or np.count_nonzero(reduced_HW) <= kept_by_rule


def test_larger_masks_keep_their_area_to_half_a_pixel() -> None:
    for size in ((100, 75), (64, 64), (151, 90)):
        for mask_HW in random_masks((300, 280))[6:]:
            reduced_HW, kept_by_rule = reduce_mask(mask_HW, size)
            if np.count_nonzero(reduced_HW) > kept_by_rule:
                assert abs(off_target(mask_HW, reduced_HW)) <= 0.5


def test_specks_have_a_pixel_each_where_they_are() -> None:
    mask_HW = np.zeros((900, 900), bool)
    places = [(0, 0), (899, 899), (450, 10), (17, 880)]
    for row, column in places:
        mask_HW[row, column] = True
    mask_HW[300:600, 300:600] = True  # which alone has the area that there is room for
    reduced_HW, kept_by_rule = reduce_mask(mask_HW, (90, 90))
    assert kept_by_rule == 4
    assert all(reduced_HW[row // 10, column // 10] for row, column in places)
    assert np.count_nonzero(reduced_HW) == 900
    assert np.count_nonzero(reduced_HW[30:60, 30:60]) == 896


def test_a_component_has_the_pixel_that_it_covers_most() -> None:
    mask_HW = np.zeros((50, 70), bool)
    mask_HW[0:20, 0:20] = True
    mask_HW[29:31, 39:42] = True  # one of six pixels in the upper left, two right of it, and the same below
    reduced_HW, kept_by_rule = reduce_mask(mask_HW, (5, 7))
    assert kept_by_rule == 1
    assert reduced_HW[2, 4]
    assert np.count_nonzero(reduced_HW) == 4


@pytest.mark.parametrize(("original_size", "size"), [((13, 17), (5, 7)), ((17, 12), (7, 4)), ((11, 9), (11, 2))])
def test_a_speck_has_the_pixel_that_it_covers_most_wherever_it_lies(
    original_size: tuple[int, int], size: tuple[int, int]
) -> None:
    rows, columns = map(weights, original_size, size)
    for row, column in np.ndindex(original_size):
        mask_HW = np.zeros(original_size, bool)
        mask_HW[row, column] = True
        reduced_HW, _ = reduce_mask(mask_HW, size)
        # Of equals the first.
        assert np.argwhere(reduced_HW).tolist() == [[int(rows[:, row].argmax()), int(columns[:, column].argmax())]]


def test_equals_at_the_threshold_lie_evenly() -> None:
    line_HW = np.zeros((400, 400), bool)
    line_HW[100] = True
    reduced_HW, _ = reduce_mask(line_HW, (100, 100))
    np.testing.assert_array_equal(np.flatnonzero(reduced_HW[25]), np.arange(0, 100, 4))
    assert np.count_nonzero(reduced_HW) == 25


def test_what_is_empty_or_full_stays_so_and_a_size_that_is_kept_changes_nothing() -> None:
    for value in (False, True):
        reduced_HW, kept_by_rule = reduce_mask(np.full((50, 40), value), (7, 9))
        assert (reduced_HW.shape, kept_by_rule) == ((7, 9), 0)
        assert (reduced_HW == value).all()
    for mask_HW in random_masks((31, 17)):
        np.testing.assert_array_equal(reduce_mask(mask_HW, (31, 17))[0], mask_HW)


def test_the_same_whatever_the_number_of_threads() -> None:
    masks, threads = random_masks((700, 500)), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = [reduce_mask(mask_HW, (224, 160)) for mask_HW in masks]
        cv2.setNumThreads(4)
        for mask_HW, (expected_HW, kept_by_rule) in zip(masks, alone, strict=True):
            reduced_HW, again = reduce_mask(mask_HW, (224, 160))
            np.testing.assert_array_equal(reduced_HW, expected_HW)
            assert again == kept_by_rule
    finally:
        cv2.setNumThreads(threads)
