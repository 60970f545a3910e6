"""Parametric chest to attenuation: path lengths of an X-ray through body, lungs and bones, on one fixed grid.

The chest is a set of analytic solids (rib cage, heart, mediastinum, domes of the diaphragm, ...) whose extent along the
beam is known in closed form; a plane holds that extent in centimetres of water. Suffixes: H, W rows and columns of the
grid (`GRID` x `GRID`); 1 an axis to broadcast. Coordinates are chest units, see `subject`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrm_stream.sources.phantom.bones import bones
from mrm_stream.sources.phantom.grid import (
    X_1W,
    X_HALF,
    Y_H1,
    Plane,
    disc_box,
    empty,
    inflate,
    mirror,
    radius_squared,
    smoothstep,
)
from mrm_stream.sources.phantom.subject import Anatomy, Kind, Study
from mrm_stream.sources.phantom.vessels import vessels

LUNG_DENSITY = 0.26
"""Of water; the rest of a lung's depth is air."""


@dataclass(frozen=True, slots=True)
class Chest:
    """A chest without findings of the lungs; planes have shape (GRID, GRID) and are centimetres of water."""

    tissue_HW: Plane
    """All that is not lung: soft tissue, organs, bones."""
    lung_HW: Plane
    """Depth of the lungs, air included."""
    markings_HW: Plane
    """Vessels within the lungs."""
    heart_HW: Plane
    """Depth of the heart."""
    cage_H1: Plane
    """Half the inner width of the rib cage at each height, chest units."""
    dome_1W: Plane
    """Height at which the diaphragm begins, chest units."""
    midline_H1: Plane
    """x of the spine."""


def heart_ratio(study: Study) -> float:
    """Return the cardiothoracic ratio that a study shows."""
    ratio = study.anatomy.cardiothoracic_ratio
    for finding in study.having(Kind.CARDIOMEGALY):
        ratio = 0.54 + 0.12 * finding.size
    # The heart lies further from the detector when the beam enters from the front.
    return ratio * (1.05 if study.portable else 1.0)


def build_chest(study: Study, *, seed: int, rotation: float = 0.0) -> Chest:
    """Return the chest of a study.

    Args:
        study: Anatomy, inspiration and heart; the findings of the lungs are added by `findings.apply_findings`.
        seed: Of the data set; the vessels are drawn from it.
        rotation: Of the patient about the spine: shift of what lies in front of it, chest units.
    """
    anatomy = study.anatomy
    cage_H1 = _cage()
    midline_H1 = (anatomy.scoliosis * np.sin(Y_H1 * 2.0)).astype(np.float32)
    sides_HW = np.abs(X_1W) / np.maximum(cage_H1, 1e-3)
    chord_HW = np.sqrt(np.maximum(1.0 - sides_HW**2, 0.0))
    depth_H1 = anatomy.thickness * (11.0 + 6.0 * smoothstep((Y_H1 - 0.1) / 0.9))
    cavity_HW = depth_H1 * chord_HW
    # The apices are domes of their own, beside the spine.
    across_1W = np.clip((np.abs(X_1W) - 0.43) / 0.36, -1.0, 1.0)
    apex_1W = 0.36 - 0.34 * np.sqrt(1.0 - across_1W**2)
    cavity_HW *= np.sqrt(np.clip((Y_H1 - apex_1W) / 0.16, 0.0, 1.0))

    dome_1W = _dome(study)
    below_HW = Y_H1 - dome_1W
    # The domes are round from front to back too: lung reaches down behind them, less and less of it.
    behind_HW = 0.62 - 0.62 * np.sqrt(np.clip(below_HW / 0.34, 0.0, 1.0))
    cavity_HW *= 1.0 - (1.0 - behind_HW) * np.clip(below_HW / 0.014 + 0.5, 0.0, 1.0)

    heart_HW = _heart(study, rotation)
    organs_HW = _mediastinum(anatomy, midline_H1, rotation)
    np.maximum(organs_HW, heart_HW, out=organs_HW)
    lung_HW = np.maximum(cavity_HW - organs_HW, 0.0)

    tissue_HW = _body(anatomy) - lung_HW
    tissue_HW += bones(anatomy, cage_H1, midline_H1, portable=study.portable)
    _carve_airway(tissue_HW, rotation)
    _carve_stomach(tissue_HW, study)
    np.maximum(tissue_HW, 0.0, out=tissue_HW)

    markings_HW = vessels(seed, anatomy.index, rotation, study.inspiration)
    markings_HW *= anatomy.markings * np.minimum(lung_HW * 0.16, 1.0)
    return Chest(tissue_HW, lung_HW, markings_HW, heart_HW, cage_H1, dome_1W, midline_H1)


def _cage() -> Plane:
    up_H1 = np.clip((1.9 - Y_H1) / 1.9, 0.0, 1.0)
    cage_H1: Plane = np.sqrt(1.0 - up_H1**5) * (1.0 - 0.02 * np.maximum(Y_H1 - 1.9, 0.0))
    return cage_H1


def _dome(study: Study) -> Plane:
    """The left dome lies lower; both fall off to the costophrenic angles, and a little towards the spine."""
    from_top_1W = np.abs(X_1W) - 0.45
    fall_1W = np.where(from_top_1W > 0.0, 0.36 * (from_top_1W / 0.55) ** 2, 0.08 * (from_top_1W / 0.45) ** 2)
    lower_1W = 0.08 * smoothstep((X_1W + 0.1) / 0.2)
    return (study.inspiration + fall_1W + lower_1W).astype(np.float32)


def _heart(study: Study, rotation: float) -> Plane:
    scale = heart_ratio(study) / 0.45
    centre_y = study.inspiration + 0.16 - 0.42 * scale
    offset = 1.5 * rotation
    heart_HW = empty()
    inflate(heart_HW, 12.0 * scale, 0.15 * scale + offset, centre_y, 0.50 * scale, 0.36 * scale, 38.0)
    inflate(heart_HW, 8.0 * scale, -0.12 * scale + offset, centre_y - 0.06, 0.19 * scale, 0.34 * scale)
    # The outflow tract joins the ventricles to the great vessels, so that the left border is one smooth line.
    half = 0.5 * (centre_y - 0.80) + 0.16
    inflate(heart_HW, 9.0 * scale, 0.12 + 0.06 * scale + offset, 0.5 * (centre_y + 0.80), half, 0.21 * scale, 80.0)
    return heart_HW


def _mediastinum(anatomy: Anatomy, midline_H1: Plane, rotation: float) -> Plane:
    heights = (-0.7, 0.0, 0.15, 0.35, 0.6, 0.8, 1.1, 1.4, 2.9)
    right_H1 = np.interp(Y_H1, heights, (0.3, 0.29, 0.24, 0.21, 0.205, 0.22, 0.24, 0.2, 0.2))
    left_H1 = np.interp(Y_H1, heights, (0.3, 0.29, 0.23, 0.2, 0.2, 0.21, 0.24, 0.2, 0.2))
    half_H1 = (0.5 * anatomy.mediastinum * (right_H1 + left_H1)).astype(np.float32)
    centre_H1 = (midline_H1 + rotation + 0.5 * (left_H1 - right_H1)).astype(np.float32)
    organs_HW = empty()
    _, columns = disc_box(0.0, 0.0, 0.6)
    across_HW = (X_1W[:, columns] - centre_H1) / half_H1
    organs_HW[:, columns] = 12.0 * np.sqrt(np.maximum(1.0 - across_HW * across_HW, 0.0))
    inflate(organs_HW, 7.0, 0.18 + 1.5 * rotation, 0.52, anatomy.knob, 1.05 * anatomy.knob)
    inflate(organs_HW, 5.5, 0.17 + 1.5 * rotation, 0.83, 0.15, 0.17, 30.0)
    return organs_HW


def _body(anatomy: Anatomy) -> Plane:
    half_H1 = 1.06 + anatomy.width + 0.5 * np.exp(-(((Y_H1 - 0.05) / 0.5) ** 2))
    wide_HW = np.minimum(X_HALF / half_H1, 1.0)
    depth_H1 = anatomy.thickness * (16.5 + 6.5 * smoothstep(Y_H1 / 1.2))
    wide_HW *= wide_HW
    torso_HW = depth_H1 * np.sqrt(1.0 - wide_HW * wide_HW)
    shoulder_1W = -0.4 + 0.42 * smoothstep((X_HALF - 0.28) / 1.1)
    torso_HW *= np.sqrt(np.clip((Y_H1 - shoulder_1W) / 0.28, 0.0, 1.0))
    neck_1W = 12.0 * anatomy.thickness * np.sqrt(np.maximum(1.0 - (X_HALF / 0.42) ** 2, 0.0))
    body_HW = mirror(np.maximum(torso_HW, neck_1W))
    for side in (-1.0, 1.0):
        inflate(body_HW, 12.0, side * (1.58 + 0.5 * anatomy.width), 0.95, 0.9, 0.22, 90.0 - side * 8.0)
        rows, columns = disc_box(side * 0.6, 1.5, 0.38)
        round_HW = np.sqrt(np.maximum(1.0 - radius_squared(side * 0.6, 1.5, 0.38, 0.36, 0.0, rows, columns), 0.0))
        # A breast hangs: its lower edge is the sharp one.
        body_HW[rows, columns] += anatomy.breast * round_HW * smoothstep((Y_H1[rows] - 1.1) / 0.5)
    return body_HW


def _carve_airway(tissue_HW: Plane, rotation: float) -> None:
    """Take out trachea and main bronchi: air, 1.6 cm across."""
    air_HW = empty()
    _, columns = disc_box(rotation, 0.0, 0.1)
    across_HW = (X_1W[:, columns] + 0.015 - rotation) / 0.062
    air_HW[:, columns] = 1.6 * np.sqrt(np.maximum(1.0 - across_HW**2, 0.0)) * smoothstep((0.76 - Y_H1) / 0.06)
    inflate(air_HW, 1.6, -0.12 + rotation, 0.80, 0.17, 0.045, -42.0)
    inflate(air_HW, 1.6, 0.14 + rotation, 0.79, 0.19, 0.04, 28.0)
    tissue_HW -= air_HW


def _carve_stomach(tissue_HW: Plane, study: Study) -> None:
    """Take out the air under the left dome; it stands over a fluid level when the patient does."""
    radius = study.anatomy.stomach
    y = study.inspiration + 0.15 + 0.6 * radius
    rows, columns = disc_box(0.48, y, radius)
    air_HW = np.sqrt(np.maximum(1.0 - radius_squared(0.48, y, radius, 0.6 * radius, 8.0, rows, columns), 0.0))
    if not study.portable:
        air_HW *= np.clip((y + 0.2 * radius - Y_H1[rows]) / 0.02, 0.0, 1.0)
    tissue_HW[rows, columns] -= 5.0 * air_HW


def normal_path(chest: Chest) -> NDArray[np.float32]:
    """Return the path length through the whole chest, (GRID, GRID), in centimetres of water."""
    return chest.tissue_HW + LUNG_DENSITY * chest.lung_HW + chest.markings_HW
