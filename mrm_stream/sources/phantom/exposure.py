"""Attenuation to a printed radiograph: beam, scatter, window, pose, detector noise, marker and border."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from mrm_stream.randomness import Purpose, uniform
from mrm_stream.sources.phantom.draws import Draws, Level
from mrm_stream.sources.phantom.grid import GRID, LEFT_EDGE, PIXELS_PER_UNIT, TOP_EDGE, Plane
from mrm_stream.sources.phantom.subject import Exposure

_Scalar = TypeVar("_Scalar", bound=np.generic)
_TILE = 1024
_TONES = 1024
_CENTRE_Y = 1.04
"""Height of the chest's middle, chest units: it comes to lie in the middle of the image."""


@lru_cache(maxsize=2)
def _noise(level: Level, side: int) -> Plane:
    """Return normal noise of deviation 1, (side, side); one for all seeds, as each image takes it elsewhere."""
    numbers = uniform(0, int(level), 0, Purpose.PHANTOM, 2 * side * side).reshape(2, side, side)
    noise: Plane = np.sqrt(-2.0 * np.log(1.0 - numbers[0])) * np.cos(2.0 * np.pi * numbers[1])
    return noise


@lru_cache(maxsize=1)
def _base_texture() -> Plane:
    """Smooth noise without seams, (GRID, GRID): power falls with frequency, as in tissue."""
    noise = _noise(Level.TEXTURE, GRID)
    total = np.zeros((GRID, GRID), np.float32)
    for deviation in (4.0, 9.0, 20.0):
        margin = 80
        wrapped = cv2.copyMakeBorder(noise, margin, margin, margin, margin, cv2.BORDER_WRAP)
        smooth = cv2.GaussianBlur(wrapped, (0, 0), deviation)[margin:-margin, margin:-margin]
        total += smooth / smooth.std()
    total /= total.std()
    return total


def draw_texture(seed: int, study: int) -> Plane:
    """Return smooth noise of deviation 1 that belongs to a study, (GRID, GRID)."""
    draws = Draws(seed, Level.TEXTURE, study)
    rows, columns = int(draws.between(0, GRID)), int(draws.between(0, GRID))
    return np.roll(_base_texture(), (rows, columns), axis=(0, 1))


@lru_cache(maxsize=2)
def _grain(side: int) -> Plane:
    """Return noise of deviation 1, slightly blurred as by a detector; an image of `side` can be shifted in it."""
    noise: Plane = cv2.GaussianBlur(_noise(Level.GRAIN, _TILE), (0, 0), 0.55)
    noise /= noise.std()
    tiled: Plane = cv2.copyMakeBorder(noise, 0, side, 0, side, cv2.BORDER_WRAP)
    return tiled


def print_grey(path_HW: Plane, exposure: Exposure) -> Plane:
    """Return the radiograph on the chest's grid, grey from 0 (air) to 255 (bone), (GRID, GRID).

    Beer and Lambert's law gives the primary beam; scatter, which hides dense parts, is a broad blur of it. The
    logarithm is stretched between percentiles and then partly equalised, where MIMIC-CXR-JPG equalises wholly.
    """
    primary_HW = np.exp(-exposure.voltage * np.maximum(path_HW, 4.0))
    small = cv2.resize(primary_HW, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 6.0, borderType=cv2.BORDER_REPLICATE)
    primary_HW += exposure.scatter * cv2.resize(small, (GRID, GRID), interpolation=cv2.INTER_LINEAR)
    dark_HW = np.log(primary_HW)
    # Percentiles of the field that every exposure shows, on every fourth pixel.
    field = dark_HW[40:480:4, 100:460:4]
    low, high = (float(level) for level in np.percentile(field, (0.5, 99.5)))
    step_HW = (dark_HW - high) * np.float32((_TONES - 1) / (low - high))
    np.clip(step_HW, 0.0, _TONES - 1, out=step_HW)
    steps = step_HW.astype(np.int32)
    grey_HW: Plane = np.take(_tone_curve(steps[40:480:4, 100:460:4], exposure), steps)
    return grey_HW


def _tone_curve(field: NDArray[np.int32], exposure: Exposure) -> Plane:
    counts = np.bincount(field.ravel(), minlength=_TONES).astype(np.float64)
    ranks = np.cumsum(counts) / counts.sum()
    linear = np.arange(_TONES) / (_TONES - 1)
    mixed = 0.62 * linear + 0.38 * ranks
    grey = 0.5 + (mixed - 0.5) * exposure.contrast + exposure.brightness
    # Air beyond the body is black whatever the window.
    grey *= np.minimum(linear / 0.02, 1.0)
    curve: Plane = (np.clip(grey, 0.0, 1.0) * 245.0).astype(np.float32)
    return curve


def pose(exposure: Exposure) -> NDArray[np.float64]:
    """Return the affine matrix, (2, 3), from pixels of the grid to pixels of the image."""
    fit = min(exposure.width / 2.5, exposure.height / 2.72)
    scale = exposure.zoom * fit / PIXELS_PER_UNIT
    angle = np.deg2rad(exposure.turn)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([-LEFT_EDGE, _CENTRE_Y - TOP_EDGE]) * PIXELS_PER_UNIT - 0.5
    shift = fit * np.array([exposure.shift_x, exposure.shift_y])
    target = np.array([exposure.width, exposure.height]) / 2.0 - 0.5 + shift
    return np.column_stack([turn, target - turn @ middle])


def to_image(plane_HW: NDArray[_Scalar], exposure: Exposure) -> NDArray[_Scalar]:
    """Return a plane of the grid as it lies in the image, (height, width), same type."""
    matrix = pose(exposure)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.7:  # Otherwise fine structure would alias when the image is smaller than the grid.
        plane_HW = cv2.GaussianBlur(plane_HW, (0, 0), 0.45 / scale)
    size = (exposure.width, exposure.height)
    placed_HW: NDArray[_Scalar] = cv2.warpAffine(
        plane_HW, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return placed_HW


def collimate(image_HW: NDArray[np.uint8], exposure: Exposure) -> None:
    """Blacken, in place, what the collimator shields."""
    top, bottom, left, right = exposure.collimation
    height, width = image_HW.shape
    image_HW[: round(top * height)] = 0
    image_HW[height - round(bottom * height) :] = 0
    image_HW[:, : round(left * width)] = 0
    image_HW[:, width - round(right * width) :] = 0


def develop(grey_HW: Plane, exposure: Exposure) -> NDArray[np.uint8]:
    """Return the 8-bit radiograph, (height, width): grain, marker and border are added at full resolution."""
    smooth_HW: Plane = cv2.GaussianBlur(grey_HW, (0, 0), 0.6)
    image_HW = to_image(smooth_HW, exposure)
    _add_grain(image_HW, exposure)
    np.clip(image_HW, 0.0, 255.0, out=image_HW)
    radiograph_HW = image_HW.astype(np.uint8)
    _mark(radiograph_HW, exposure)
    collimate(radiograph_HW, exposure)
    return radiograph_HW


def _add_grain(image_HW: Plane, exposure: Exposure) -> None:
    """Fewer quanta reach the detector behind dense parts, which are bright: the noise grows with the grey level."""
    height, width = image_HW.shape
    row, column = exposure.index * 389 % _TILE, exposure.index * 631 % _TILE
    # Sides in steps, as each has a square of its own in the cache.
    side = -(-max(height, width) // 512) * 512
    grain_HW = _grain(side)[row : row + height, column : column + width]
    deviation_HW = image_HW * (exposure.noise / 180.0)
    deviation_HW += 0.25 * exposure.noise
    deviation_HW *= grain_HW
    image_HW += deviation_HW


def _mark(radiograph_HW: NDArray[np.uint8], exposure: Exposure) -> None:
    height, width = radiograph_HW.shape
    scale = min(height, width) / 640.0
    across, down = exposure.marker_at
    (text_width, _), _ = cv2.getTextSize(exposure.marker, cv2.FONT_HERSHEY_DUPLEX, scale, 1)
    x = across * width if exposure.marker[0] == "R" else (1.0 - across) * width - text_width
    thickness = max(1, round(1.6 * scale))
    at = (round(x), round(down * height))
    cv2.putText(radiograph_HW, exposure.marker, at, cv2.FONT_HERSHEY_DUPLEX, scale, 250, thickness, cv2.LINE_AA)
