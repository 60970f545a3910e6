"""Which part of a radiograph is cut out, and whether it is mirrored: a pure function of the sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrm_stream.randomness import Purpose, uniform

_TRIES = 10
"""Draws of area and ratio before the fallback, as in torchvision."""


@dataclass(frozen=True, slots=True)
class Crops:
    """One crop for each sample of a batch, in pixels of the stored image, inside which it lies; all of shape (B,)."""

    top: NDArray[np.int32]
    """First row."""
    left: NDArray[np.int32]
    """First column."""
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    flip: NDArray[np.bool_]
    """Whether to mirror left and right, after the resize."""

    def __len__(self) -> int:
        return len(self.top)

    def fit(self, sizes_B2: NDArray[np.int32]) -> bool:
        """Return whether every crop lies inside its image; `sizes_B2`, (B, 2), holds height and width."""
        corner_B2 = np.stack([self.top, self.left], axis=1)
        extent_B2 = np.stack([self.height, self.width], axis=1)
        if corner_B2.shape != sizes_B2.shape:
            return False
        return bool((corner_B2 >= 0).all() and (extent_B2 > 0).all() and (corner_B2 + extent_B2 <= sizes_B2).all())


def random_crops(
    sizes_B2: NDArray[np.int32],
    epochs_B: ArrayLike,
    indexes_B: ArrayLike,
    *,
    seed: int,
    area: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Crops:
    """Return a crop of random area, ratio and position for each sample.

    The distribution is that of torchvision's RandomResizedCrop: an area is drawn uniformly and a ratio log-uniformly,
    up to ten times, until the crop fits; where none does, the largest central crop whose ratio is allowed.

    Args:
        sizes_B2: Height and width of the stored images in pixels, shape (B, 2).
        epochs_B: Epoch that each sample is drawn for, shape (B,) or a scalar.
        indexes_B: Index of each sample in its split, shape (B,).
        seed: Of the run.
        area: Fraction of the image's area that a crop covers, least and most.
        ratio: Width / height of a crop, least and most.
        flip: Probability that a sample is mirrored.

    Returns:
        Crops that depend on (seed, epoch, index) and the image's size alone, whoever asks and in whatever batch.

    Example:
        >>> crops = random_crops(np.array([[1024, 1250]], np.int32), [0], [7], seed=1)
        >>> bool(0.19 < crops.height[0] * crops.width[0] / (1024 * 1250) <= 1)
        True
    """
    height_B1, width_B1 = np.split(sizes_B2.astype(np.float64), 2, axis=1)
    # All ten tries are drawn at once and the first that fits is chosen: no loop over samples, and each sample's tries
    # have draws of their own, however many fail.
    draws = uniform(seed, epochs_B, indexes_B, Purpose.CROP, 4 * _TRIES).astype(np.float64)
    area_draw, ratio_draw, top_draw, left_draw = np.moveaxis(draws.reshape(-1, _TRIES, 4), -1, 0)
    pixels = height_B1 * width_B1 * (area[0] + (area[1] - area[0]) * area_draw)
    # On a log scale, as 3/4 and 4/3 are equally far from a square.
    log_low, log_high = np.log(ratio)
    ratios = np.exp(log_low + (log_high - log_low) * ratio_draw)
    # Rounded half to even, as Python's round() does.
    widths, heights = np.rint(np.sqrt(pixels * ratios)), np.rint(np.sqrt(pixels / ratios))
    fits = (widths > 0) & (widths <= width_B1) & (heights > 0) & (heights <= height_B1)
    # A draw is less than 1, so that the last position is `height - heights` and the crop never leaves the image.
    tops, lefts = np.floor(top_draw * (height_B1 - heights + 1)), np.floor(left_draw * (width_B1 - widths + 1))
    tried = np.stack([tops, lefts, heights, widths], axis=-1)
    first = tried[np.arange(len(tried)), fits.argmax(axis=1)]
    crop_B4 = np.where(fits.any(axis=1, keepdims=True), first, _largest_central(height_B1[:, 0], width_B1[:, 0], ratio))
    return _crops(crop_B4, uniform(seed, epochs_B, indexes_B, Purpose.FLIP, 1)[:, 0] < flip)


def central_crops(sizes_B2: NDArray[np.int32]) -> Crops:
    """Return the central square of each image, as large as fits and not mirrored; `sizes_B2`, (B, 2), as above.

    That is the field of torchvision's Resize (short side) and CenterCrop to the same size, but for a shift of at most
    half an output pixel, where these round.

    Example:
        >>> crops = central_crops(np.array([[100, 160]], np.int32))
        >>> crops.top.tolist(), crops.left.tolist(), crops.height.tolist(), crops.width.tolist()
        ([0], [30], [100], [100])
    """
    side_B1 = sizes_B2.min(axis=1, keepdims=True)
    crop_B4 = np.concatenate([(sizes_B2 - side_B1) // 2, side_B1, side_B1], axis=1)
    return _crops(crop_B4, np.zeros(len(sizes_B2), np.bool_))


def _largest_central(
    height_B: NDArray[np.float64], width_B: NDArray[np.float64], ratio: tuple[float, float]
) -> NDArray[np.float64]:
    """Return (top, left, height, width), shape (B, 4): the central crop of a ratio as near the image's as allowed."""
    heights = np.where(width_B < height_B * ratio[0], np.rint(width_B / ratio[0]), height_B)
    widths = np.where(width_B > height_B * ratio[1], np.rint(height_B * ratio[1]), width_B)
    heights, widths = np.clip(heights, 1, height_B), np.clip(widths, 1, width_B)
    return np.stack([(height_B - heights) // 2, (width_B - widths) // 2, heights, widths], axis=1)


def _crops(crop_B4: NDArray[np.float64] | NDArray[np.int32], flip_B: NDArray[np.bool_]) -> Crops:
    # Contiguous rows, which DALI reads without a copy.
    top, left, height, width = np.ascontiguousarray(crop_B4.T.astype(np.int32))
    return Crops(top, left, height, width, flip_B)
