"""How findings change a chest: what they add to or take from the path of the beam, and where.

A mask is an 8-bit plane in which each finding is one bit (`subject.Kind`), so that findings may lie over each other:
1 effusion (the fluid), 2 pneumothorax (the air between chest wall and lung), 4 cardiomegaly (the whole heart),
8 nodule, 16 consolidation.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mrm_stream.sources.phantom.chest import LUNG_DENSITY, Chest, normal_path
from mrm_stream.sources.phantom.grid import (
    GRID,
    PIXELS_PER_UNIT,
    X_1W,
    Y_H1,
    Plane,
    disc_box,
    radius_squared,
    smoothstep,
)
from mrm_stream.sources.phantom.subject import CM_PER_UNIT, Finding, Kind, Study

_Mask: TypeAlias = NDArray[np.uint8]


def apply_findings(chest: Chest, study: Study, texture_HW: Plane) -> tuple[Plane, dict[Kind, _Mask]]:
    """Return the path through the chest with the study's findings, and where each kind of finding lies.

    Args:
        chest: As `build_chest` gives it; the enlarged heart of a cardiomegaly is in it already.
        study: Whose findings.
        texture_HW: Smooth noise about 0 with deviation 1, which makes edges irregular.

    Returns:
        (path, masks): the path in cm of water, (GRID, GRID), and for each kind present 255 where it lies, (GRID, GRID).
    """
    path_HW = normal_path(chest)
    air_HW = (1.0 - LUNG_DENSITY) * chest.lung_HW
    path_HW += 0.015 * chest.lung_HW * texture_HW
    masks: dict[Kind, _Mask] = {}
    for finding in study.findings:
        if finding.kind is Kind.CARDIOMEGALY:
            cover_HW: NDArray[np.bool_] = (chest.heart_HW > 0.4) & (chest.dome_1W + 0.1 > Y_H1)
        elif finding.kind is Kind.PNEUMOTHORAX:
            cover_HW = _pneumothorax(chest, finding, path_HW)
        elif finding.kind is Kind.EFFUSION:
            cover_HW = _fill(path_HW, air_HW, _fluid(chest, finding))
        elif finding.kind is Kind.NODULE:
            cover_HW = _nodule(chest, finding, path_HW)
        else:
            cover_HW = _fill(path_HW, air_HW, _consolidated(chest, finding, texture_HW))
        mask_HW = np.where(cover_HW, np.uint8(255), np.uint8(0))
        masks[finding.kind] = mask_HW | masks.get(finding.kind, np.uint8(0))
    return path_HW, masks


def _fill(path_HW: Plane, air_HW: Plane, share_HW: Plane) -> NDArray[np.bool_]:
    """Replace a share of the air that is left by fluid, in place; return where that shows."""
    cover_HW = (air_HW > 1.0) & (share_HW > 0.35)
    gain_HW = share_HW * air_HW
    path_HW += gain_HW
    air_HW -= gain_HW
    return cover_HW


def _side(finding: Finding, midline: float = 0.0) -> Plane:
    return smoothstep((X_1W * finding.side - midline) / 0.04 + 0.5)


def _fluid(chest: Chest, finding: Finding) -> Plane:
    """Fluid gathers in the costophrenic angle and climbs the wall: its upper edge is a meniscus."""
    towards_wall_1W = np.clip((np.abs(X_1W) - 0.25) / 0.75, 0.0, 1.0)
    # Above the angle at the wall, not the dome: a small effusion only blunts the angle.
    lowest = float(chest.dome_1W.min())
    angle = lowest + 0.36
    wall = angle - 0.16 - 0.75 * lowest * finding.size
    level_1W = wall + 0.30 * (1.0 - towards_wall_1W**3)
    return smoothstep((Y_H1 - level_1W) / 0.12 + 0.3) * smoothstep((X_1W * finding.side - 0.02) / 0.3)


def _pneumothorax(chest: Chest, finding: Finding, path_HW: Plane) -> NDArray[np.bool_]:
    """The lung shrinks away from apex and wall; air, without vessels, fills the gap."""
    gap_apex, gap_wall = 0.10 + 0.45 * finding.size, 0.05 + 0.38 * finding.size
    down = max(1, round(gap_apex * PIXELS_PER_UNIT))
    lung_H1 = np.concatenate([np.zeros((down, 1), np.float32), chest.cage_H1[:-down]]) * (1.0 - gap_wall)
    lung_H1 -= 0.30 * finding.size * smoothstep((Y_H1 - 1.1) / 0.8)
    from_edge_HW = np.abs(X_1W) - np.maximum(lung_H1, 0.0)
    outside_HW = smoothstep(from_edge_HW / 0.016 + 0.5)
    outside_HW *= _side(finding, 0.1)
    # What is left of the lung holds the same tissue in less room.
    inside_HW = (1.0 - outside_HW) * _side(finding)
    lung_path_HW = LUNG_DENSITY * chest.lung_HW + chest.markings_HW
    path_HW += inside_HW * (0.10 + 0.75 * finding.size) * lung_path_HW - 0.92 * outside_HW * lung_path_HW
    pleura_HW = np.exp(-((from_edge_HW / 0.011) ** 2)) * _side(finding, 0.1) * (chest.lung_HW > 1.0)
    path_HW += 0.9 * pleura_HW
    return (outside_HW > 0.5) & (chest.lung_HW > 1.0)


def _centre(chest: Chest, finding: Finding) -> tuple[float, float]:
    y = finding.height * float(chest.dome_1W.min())
    row = int(np.argmin(np.abs(Y_H1[:, 0] - y)))
    wall = float(chest.cage_H1[row, 0])
    return finding.side * (0.32 + (wall - 0.12 - 0.32) * finding.lateral), y


def _nodule(chest: Chest, finding: Finding, path_HW: Plane) -> NDArray[np.bool_]:
    x, y = _centre(chest, finding)
    radius = finding.diameter_mm / 20.0 / CM_PER_UNIT
    rows, columns = disc_box(x, y, radius)
    depth = np.sqrt(np.maximum(1.0 - radius_squared(x, y, radius, radius, 0.0, rows, columns), 0.0))
    # Denser than water, as most nodules that are seen hold calcium.
    path_HW[rows, columns] += (1.0 + 2.4 * radius * CM_PER_UNIT) * depth
    cover_HW = np.zeros((GRID, GRID), np.bool_)
    cover_HW[rows, columns] = depth > 0.0
    return cover_HW


def _consolidated(chest: Chest, finding: Finding, texture_HW: Plane) -> Plane:
    """A cloud about the centre, with ragged edges."""
    x, y = _centre(chest, finding)
    reach = 0.17 + 0.20 * finding.size
    share_HW = np.zeros((GRID, GRID), np.float32)
    rows, columns = disc_box(x, y, 2.2 * reach)
    radius = np.sqrt(radius_squared(x, y, 1.1 * reach, 0.9 * reach, 20.0 * finding.side, rows, columns))
    share_HW[rows, columns] = smoothstep((1.4 - radius + 0.16 * texture_HW[rows, columns]) / 1.1)
    # Spared lobules leave it mottled.
    share_HW[rows, columns] *= np.clip(0.72 + 0.07 * texture_HW[::-1][rows, columns], 0.4, 0.9)
    return share_HW
