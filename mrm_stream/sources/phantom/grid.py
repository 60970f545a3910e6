"""The grid that a chest is computed on, and the solids that it is made of."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.float32]

PIXELS_PER_UNIT = 160
"""Ribs are 12 pixels high at this scale; a finer grid costs time and cannot be told apart under the noise."""
LEFT_EDGE, TOP_EDGE = -1.75, -0.65
"""Of the grid, chest units."""
GRID = round(3.5 * PIXELS_PER_UNIT)

X_1W: Plane = ((np.arange(GRID) + 0.5) / PIXELS_PER_UNIT + LEFT_EDGE).astype(np.float32)[None, :]
Y_H1: Plane = ((np.arange(GRID) + 0.5) / PIXELS_PER_UNIT + TOP_EDGE).astype(np.float32)[:, None]


def smoothstep(value: NDArray[np.floating[Any]]) -> Plane:
    """Return values, (...), that rise from 0 at 0 to 1 at 1, with slope 0 at both."""
    clipped: Plane = np.clip(value, 0.0, 1.0).astype(np.float32, copy=False)
    clipped *= clipped * (3.0 - 2.0 * clipped)
    return clipped


def disc_box(x: float, y: float, radius: float) -> tuple[slice, slice]:
    """Return the rows and columns of the grid that hold a disc, cut at the grid's edges."""
    rows = [round((y + sign * radius - TOP_EDGE) * PIXELS_PER_UNIT) + sign for sign in (-1, 1)]
    columns = [round((x + sign * radius - LEFT_EDGE) * PIXELS_PER_UNIT) + sign for sign in (-1, 1)]
    low_row, high_row = (min(max(row, 0), GRID) for row in rows)
    low_column, high_column = (min(max(column, 0), GRID) for column in columns)
    return slice(low_row, high_row), slice(low_column, high_column)


def radius_squared(
    x: float, y: float, along: float, across: float, degrees: float, rows: slice, columns: slice
) -> Plane:
    """Return the squared distance from an ellipse's centre in units of its semi-axes, over part of the grid, (H, W).

    Args:
        x: Centre.
        y: Centre.
        along: First semi-axis.
        across: Second semi-axis.
        degrees: From the x axis to the first semi-axis, clockwise on the image.
        rows: Of the grid.
        columns: Of the grid.
    """
    cosine, sine = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    from_x, from_y = X_1W[:, columns] - x, Y_H1[rows] - y
    first = from_x * (cosine / along) + from_y * (sine / along)
    second = from_y * (cosine / across) - from_x * (sine / across)
    squared: Plane = first * first + second * second
    return squared


X_HALF: Plane = X_1W[:, GRID // 2 :]
"""The right half of the grid: what is the same on both sides is computed once, and mirrored."""


def mirror(half_HW: Plane) -> Plane:
    """Return the whole of a plane of which `X_HALF` is the right half."""
    return np.concatenate([half_HW[:, ::-1], half_HW], axis=1)


def inflate(
    plane_HW: Plane, depth: float, x: float, y: float, along: float, across: float, degrees: float = 0.0
) -> None:
    """Join an ellipsoid to the solid in `plane_HW`, in place: where both lie, the deeper counts.

    `depth` is the ellipsoid's own along the beam, in the plane's unit; see `radius_squared` for the rest.
    """
    rows, columns = disc_box(x, y, max(along, across))
    chord = np.sqrt(np.maximum(1.0 - radius_squared(x, y, along, across, degrees, rows, columns), 0.0))
    part = plane_HW[rows, columns]
    np.maximum(part, depth * chord, out=part)


def empty() -> Plane:
    """Return a plane of zeros, shape (GRID, GRID)."""
    return np.zeros((GRID, GRID), np.float32)
