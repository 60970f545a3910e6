"""Pulmonary vessels: trees that branch from the hila into the lungs."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mrm_stream.randomness import Purpose, uniform
from mrm_stream.sources.phantom.draws import Level
from mrm_stream.sources.phantom.grid import GRID, LEFT_EDGE, PIXELS_PER_UNIT, TOP_EDGE, Plane
from mrm_stream.sources.phantom.subject import LEFT, RIGHT

_ROOTS = 10
_GENERATIONS = 5
_WIDTHS = (5, 3, 2, 1, 1)
_LEVELS = (82, 70, 60, 50, 34)


@lru_cache(maxsize=8)
def _trees(seed: int, subject: int) -> tuple[NDArray[np.float32], ...]:
    """Return each generation's segments, of both lungs, (segments, 4 points, 2); y is 0 at the apex, 1 at the dome."""
    draws = uniform(seed, int(Level.VESSELS), subject, Purpose.PHANTOM, 12 * _ROOTS * 2**_GENERATIONS)
    taken = 0

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal taken
        count = int(np.prod(shape))
        taken += count
        return draws[taken - count : taken].reshape(shape)

    generations: list[list[NDArray[np.float32]]] = [[] for _ in range(_GENERATIONS)]
    for side in (RIGHT, LEFT):
        fan = np.linspace(-66.0, 84.0, _ROOTS) + 12.0 * (take(_ROOTS) - 0.5)
        angle = np.deg2rad(fan)
        start = np.stack([np.full(_ROOTS, 0.23), 0.52 + 0.10 * np.sin(angle) + 0.05 * (take(_ROOTS) - 0.5)], axis=-1)
        length = 0.17 + 0.09 * take(_ROOTS)
        for generation in range(_GENERATIONS):
            bend = 0.5 * (take(len(angle)) - 0.5)
            along = np.arange(1, 4) / 3.0
            turn = angle[:, None] + bend[:, None] * along
            step = (length[:, None, None] / 3.0) * np.stack([np.cos(turn), 0.62 * np.sin(turn)], axis=-1)
            points = np.concatenate([start[:, None], start[:, None] + np.cumsum(step, axis=1)], axis=1)
            generations[generation].append((points * (side, 1.0)).astype(np.float32))
            start = np.repeat(points[:, -1], 2, axis=0)
            spread = 0.16 + 0.34 * take(len(angle), 2)
            angle = (turn[:, -1, None] + spread * (-1.0, 1.0)).ravel()
            length = np.repeat(length, 2) * (0.66 + 0.3 * take(2 * len(length)))
    return tuple(np.concatenate(parts) for parts in generations)


def vessels(seed: int, subject: int, rotation: float, inspiration: float) -> Plane:
    """Return the path through the vessels as if lung lay everywhere, shape (GRID, GRID), cm of water.

    Args:
        seed: Of the data set.
        subject: Whose vessels; they stay the same over the studies.
        rotation: Shift of the hila, chest units.
        inspiration: Height of the dome of the diaphragm, to which the trees are stretched.
    """
    drawing_HW = np.zeros((GRID, GRID), np.uint8)
    layer_HW = np.zeros((GRID, GRID), np.uint8)
    for segments, width, level in zip(_trees(seed, subject), _WIDTHS, _LEVELS, strict=True):
        placed = (segments * (1.0, inspiration) + (rotation - LEFT_EDGE, -TOP_EDGE)) * PIXELS_PER_UNIT * 16.0
        layer_HW[:] = 0
        cv2.polylines(layer_HW, list(np.rint(placed).astype(np.int32)), False, level, width, cv2.LINE_AA, 4)
        cv2.max(drawing_HW, layer_HW, drawing_HW)
    path_HW: Plane = cv2.GaussianBlur(drawing_HW, (0, 0), 0.9).astype(np.float32)
    path_HW *= 0.017
    return path_HW
