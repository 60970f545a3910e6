"""Ribs, spine, clavicles, scapulae and humeri: what they add to the path of the beam."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mrm_stream.sources.phantom.grid import (
    GRID,
    LEFT_EDGE,
    PIXELS_PER_UNIT,
    TOP_EDGE,
    X_1W,
    X_HALF,
    Y_H1,
    Plane,
    disc_box,
    mirror,
    smoothstep,
)
from mrm_stream.sources.phantom.subject import Anatomy

_RIBS = 12
_STEPS = 128
"""Entries of a rib's profile, from its upper edge to the next rib's."""


def bones(anatomy: Anatomy, cage_H1: Plane, midline_H1: Plane, *, portable: bool) -> Plane:
    """Return the path through the bones, shape (GRID, GRID), cm of water beyond the soft tissue that they replace.

    Args:
        anatomy: Whose bones.
        cage_H1: Half the inner width of the rib cage, chest units.
        midline_H1: x of the spine.
        portable: The arms hang and the scapulae lie over the lungs.
    """
    path_HW = _ribs(anatomy, cage_H1)
    _, columns = disc_box(0.0, 0.0, 0.35)
    path_HW[:, columns] += _spine(X_1W[:, columns] - midline_H1)
    path_HW += _shoulders(anatomy, portable)
    return path_HW


def _rib_profile() -> Plane:
    """Path through the ribs by height: a shell of dense bone about a spongy core, so bright edges."""
    height = np.arange(_STEPS) / _STEPS
    across = np.clip(np.abs(height - 0.24) / 0.2, 0.0, 1.0)
    inner = np.clip(across / 0.78, 0.0, 1.0)
    shell = np.sqrt(1.0 - across**2) - 0.7 * np.sqrt(1.0 - inner**2)
    profile = np.zeros((_RIBS + 2, _STEPS), np.float32)
    profile[1 : _RIBS + 1] = shell
    profile[1] *= 0.8
    profile[_RIBS - 1 :] *= 0.6
    return profile.ravel()


_PROFILE = _rib_profile()


def _ribs(anatomy: Anatomy, cage_H1: Plane) -> Plane:
    """Each rib is a hoop about the cage that falls from the spine to the side, and on to its front end."""
    around_HW = np.minimum(X_HALF / (1.03 * cage_H1 + 0.02), 1.0)
    chord_HW = np.sqrt(1.0 - around_HW * around_HW)
    # The beam grazes a hoop at the side of the chest, and so runs longer through it.
    grazing_HW = np.minimum(1.0 / np.maximum(chord_HW, 1e-3), 2.4)
    grazing_HW *= around_HW < 1.0
    drop = anatomy.rib_drop
    back_HW = Y_H1 - drop * (1.0 - chord_HW) - 0.10 * around_HW
    front_HW = Y_H1 - drop * (1.0 + chord_HW) - 0.10 - 0.16 * (1.0 - around_HW)
    to_step = _STEPS / anatomy.rib_spacing
    first = 0.02 - anatomy.rib_spacing

    def along(height_HW: NDArray[np.floating[Any]]) -> Plane:
        step_HW = ((height_HW - first) * to_step).astype(np.int32)
        return np.take(_PROFILE, step_HW, mode="clip")

    path_HW = along(back_HW)
    # Towards the sternum ribs end in cartilage, which hardly shows.
    path_HW += along(front_HW) * smoothstep((around_HW - 0.38) / 0.3) * 0.85
    path_HW *= grazing_HW
    path_HW *= 1.7 * anatomy.rib_density
    return mirror(path_HW)


def _spine(from_middle_HW: Plane) -> Plane:
    """Vertebral bodies with brighter end plates, and a spinous process in each."""
    vertebra_H1 = (Y_H1 + 0.7) % 0.2 / 0.2
    disc_H1 = smoothstep(np.abs(vertebra_H1 - 0.5) / 0.06 - 7.0)
    body_H1 = 1.0 - 0.35 * disc_H1 + 0.18 * np.exp(-(((np.abs(vertebra_H1 - 0.5) - 0.41) / 0.03) ** 2))
    half_H1 = 0.125 + 0.02 * smoothstep(Y_H1 / 2.0) + 0.012 * np.cos(vertebra_H1 * 2.0 * np.pi)
    edge_HW = np.clip((half_H1 - np.abs(from_middle_HW)) / 0.03, 0.0, 1.0)
    process_HW = np.exp(-((from_middle_HW / 0.022) ** 2)) * np.exp(-(((vertebra_H1 - 0.75) / 0.2) ** 2))
    pedicle_H1 = np.exp(-(((vertebra_H1 - 0.3) / 0.12) ** 2))
    pedicle_HW = np.exp(-(((np.abs(from_middle_HW) - 0.075) / 0.02) ** 2)) * pedicle_H1
    path_HW: Plane = 1.7 * body_H1 * edge_HW + 0.9 * process_HW + 0.7 * pedicle_HW
    return path_HW


def _shoulders(anatomy: Anatomy, portable: bool) -> Plane:
    """Clavicles, scapulae and humeri, drawn as outlines with a dense rim."""
    lift = -0.06 if portable else 0.0
    inward = 0.16 if portable else 0.0
    drawing_HW = np.zeros((GRID, GRID), np.uint8)
    for side in (-1.0, 1.0):
        clavicle = [(0.10, 0.30), (0.25, 0.21), (0.45, 0.15), (0.65, 0.13), (0.85, 0.06), (1.02, -0.02), (1.18, -0.04)]
        points = np.array([(side * x, y + lift) for x, y in clavicle])
        _bar(drawing_HW, points, 0.085, 95)
        scapula = np.array(
            [(1.28, 0.08), (1.12, 0.12), (1.02 - inward, 0.45), (0.99 - inward, 0.85), (1.06 - inward, 1.05),
             (1.13 - inward, 0.8), (1.22 - 0.5 * inward, 0.4)]
        )  # fmt: skip
        scapula[:, 0] = side * (scapula[:, 0] + 0.3 * anatomy.width)
        layer_HW = np.zeros((GRID, GRID), np.uint8)
        cv2.fillPoly(layer_HW, [_pixels(scapula)], 40, cv2.LINE_AA, 4)
        cv2.polylines(layer_HW, [_pixels(scapula)], True, 75, 2, cv2.LINE_AA, 4)
        cv2.add(drawing_HW, layer_HW, drawing_HW)
        humerus = np.array([(1.42, 0.16), (1.52, 0.5), (1.6, 1.2)]) * (side, 1.0)
        layer_HW[:] = 0
        _bar(layer_HW, humerus, 0.15, 110)
        head = tuple(_pixels(humerus[:1])[0, 0].tolist())
        cv2.circle(layer_HW, head, round(0.13 * PIXELS_PER_UNIT * 16), 105, -1, cv2.LINE_AA, 4)
        cv2.add(drawing_HW, layer_HW, drawing_HW)
    path_HW: Plane = cv2.GaussianBlur(drawing_HW, (0, 0), 1.2).astype(np.float32)
    path_HW *= 0.034
    return path_HW


def _pixels(points: NDArray[Any]) -> NDArray[Any]:
    """Chest units to OpenCV's fixed-point pixels (4 fractional bits), shape (points, 1, 2)."""
    pixels = (points - (LEFT_EDGE, TOP_EDGE)) * PIXELS_PER_UNIT * 16.0
    return np.rint(pixels).astype(np.int32)[:, None]


def _bar(drawing_HW: NDArray[Any], points: NDArray[Any], width: float, level: int) -> None:
    """Draw a long bone: a bright rim about a dimmer core."""
    thickness = round(width * PIXELS_PER_UNIT)
    cv2.polylines(drawing_HW, [_pixels(points)], False, level, thickness, cv2.LINE_AA, 4)
    cv2.polylines(drawing_HW, [_pixels(points)], False, round(0.62 * level), thickness - 5, cv2.LINE_AA, 4)
