from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrm_stream.decode.crops import Crops, central_crops, random_crops
from mrm_stream.randomness import Purpose, uniform

RATIO = (3 / 4, 4 / 3)


def as_rows(crops: Crops) -> list[tuple[int, ...]]:
    return [
        tuple(int(value) for value in row)
        for row in zip(crops.top, crops.left, crops.height, crops.width, crops.flip, strict=True)
    ]


def sizes(*rows: tuple[int, int]) -> NDArray[np.int32]:
    return np.array(rows, np.int32)


def one_by_one(
    size: tuple[int, int], draws: Sequence[float], area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """The law of RandomResizedCrop.get_params written as a loop over plain numbers, with the draws given."""
    height, width = size
    for i in range(10):
        area_draw, ratio_draw, top_draw, left_draw = draws[4 * i : 4 * i + 4]
        pixels = height * width * (area[0] + (area[1] - area[0]) * area_draw)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(top_draw * (height - h + 1)), math.floor(left_draw * (width - w + 1)), h, w
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@given(
    st.lists(st.tuples(st.integers(8, 2000), st.integers(8, 2000)), min_size=1, max_size=8),
    st.integers(0, 2**63 - 1),
    st.integers(0, 1000),
)
def test_crops_follow_the_law_draw_for_draw_and_stay_inside(rows: list[tuple[int, int]], seed: int, epoch: int) -> None:
    indexes = np.arange(len(rows)) * 1009
    crops = random_crops(sizes(*rows), epoch, indexes, seed=seed)
    assert crops.fit(sizes(*rows))
    draws = uniform(seed, epoch, indexes, Purpose.CROP, 40).astype(float)
    expected = [one_by_one(size, list(row), (0.2, 1.0), RATIO) for size, row in zip(rows, draws, strict=True)]
    assert [row[:4] for row in as_rows(crops)] == expected


@pytest.mark.parametrize("size", [(1024, 1250), (1024, 1024)])
def test_areas_ratios_places_and_flips_are_spread_as_torchvisions(size: tuple[int, int]) -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty((1, *size))
    theirs = np.array([RandomResizedCrop.get_params(image, (0.2, 1.0), RATIO) for _ in range(8000)])
    count = 8000
    crops = random_crops(np.tile(sizes(size), (count, 1)), 0, np.arange(count), seed=3)
    ours = np.stack([crops.top, crops.left, crops.height, crops.width], axis=1)

    def features(crop: NDArray[np.int64]) -> NDArray[np.float64]:
        top, left, height, width = crop.T.astype(float)
        return np.stack([height * width / math.prod(size), np.log(width / height), top / size[0], left / size[1]])

    for mine, other in zip(features(ours.astype(np.int64)), features(theirs), strict=True):
        # Kolmogorov-Smirnov at a false alarm in a thousand: 1.95 * sqrt(2 / n).
        grid = np.sort(np.concatenate([mine, other]))
        cdf = [np.searchsorted(np.sort(x), grid, side="right") / count for x in (mine, other)]
        assert np.abs(cdf[0] - cdf[1]).max() < 1.95 * math.sqrt(2 / count)
    assert abs(crops.flip.mean() - 0.5) < 0.03


def test_a_crop_belongs_to_its_sample_whatever_the_batch() -> None:
    shapes = sizes((1024, 1200), (600, 512), (900, 900), (512, 777))
    epochs, indexes = [0, 0, 1, 5], [10, 11, 10, 12]
    whole = as_rows(random_crops(shapes, epochs, indexes, seed=9))
    order = [2, 0, 3, 1]
    shuffled = random_crops(shapes[order], np.array(epochs)[order], np.array(indexes)[order], seed=9)
    assert as_rows(shuffled) == [whole[i] for i in order]
    alone = [
        as_rows(random_crops(shapes[i : i + 1], epochs[i : i + 1], indexes[i : i + 1], seed=9))[0] for i in range(4)
    ]
    assert alone == whole


def test_seed_epoch_and_index_each_change_the_crop() -> None:
    shape = sizes((1024, 1250))
    crops = {
        as_rows(random_crops(shape, epoch, [index], seed=seed))[0][:4]
        for seed in range(3)
        for epoch in range(3)
        for index in range(3)
    }
    assert len(crops) == 27


def test_where_no_crop_fits_the_largest_central_one_is_taken() -> None:
    # 8 times as wide as high: no crop of 90 % of the area has a ratio of at most 4/3.
    crops = random_crops(sizes((100, 800), (800, 100)), 0, [0, 1], seed=0, area=(0.9, 1.0), flip=0.0)
    assert [row[:4] for row in as_rows(crops)] == [(0, 333, 100, 133), (333, 0, 133, 100)]


def test_flips_are_as_frequent_as_asked() -> None:
    shapes = np.tile(sizes((64, 64)), (1000, 1))
    for chance in (0.0, 1.0):
        assert random_crops(shapes, 0, np.arange(1000), seed=0, flip=chance).flip.mean() == chance
    assert abs(random_crops(shapes, 0, np.arange(1000), seed=0, flip=0.2).flip.mean() - 0.2) < 0.05


def test_central_crops_are_square_and_central() -> None:
    crops = central_crops(sizes((101, 160), (300, 100), (64, 64)))
    assert as_rows(crops) == [(0, 29, 101, 101, 0), (100, 0, 100, 100, 0), (0, 0, 64, 64, 0)]


def test_a_crop_that_leaves_its_image_does_not_fit() -> None:
    inside = central_crops(sizes((100, 160)))
    assert inside.fit(sizes((100, 160)))
    assert not inside.fit(sizes((100, 129)))
    assert not inside.fit(sizes((99, 160)))
    assert not inside.fit(sizes((100, 160), (100, 160)))
