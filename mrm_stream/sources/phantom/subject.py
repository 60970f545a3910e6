"""Who is radiographed, with what findings and how: numbers drawn from the seed, which both image and report tell of.

Lengths are in chest units: half the inner width of the rib cage, about 14 cm. x runs to the right of the image
(the patient's left), y downwards from the apices of the lungs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag

from mrm_stream.sources.phantom.draws import Draws, Level

CM_PER_UNIT = 14.0

RIGHT, LEFT = -1, 1
"""Signs of x: the patient's right is on the left of the image."""


class Kind(IntFlag):
    """A finding; the value is its bit in a mask."""

    EFFUSION = 1
    PNEUMOTHORAX = 2
    CARDIOMEGALY = 4
    NODULE = 8
    CONSOLIDATION = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding on one side."""

    kind: Kind
    side: int
    """RIGHT or LEFT; LEFT for cardiomegaly."""
    size: float
    """0 (just visible) to 1 (extreme)."""
    height: float = 0.5
    """Of its centre: 0 at the apex, 1 at the dome of the diaphragm; nodules and consolidations only."""
    lateral: float = 0.5
    """Of its centre: 0 at the mediastinum, 1 at the chest wall; nodules and consolidations only."""

    @property
    def diameter_mm(self) -> int:
        """Diameter of a nodule, 12 to 30 mm."""
        return round(12 + 18 * self.size)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What stays the same over the studies of a subject."""

    index: int
    female: bool
    thickness: float
    """Of the body from front to back, relative to the average."""
    width: float
    """Of the soft tissue beside the ribs, chest units."""
    cardiothoracic_ratio: float
    """Width of the heart over the inner width of the rib cage, erect and PA."""
    rib_spacing: float
    rib_drop: float
    """How far a rib falls from the spine to the side of the chest, chest units."""
    rib_density: float
    mediastinum: float
    """Width relative to the average."""
    knob: float
    """Radius of the aortic knob, chest units."""
    scoliosis: float
    markings: float
    """Density of the pulmonary vessels, relative to the average."""
    breast: float
    """Depth of breast tissue, cm."""
    stomach: float
    """Half the width of the air in the stomach, chest units."""


@dataclass(frozen=True, slots=True)
class Study:
    """One visit: what the report tells."""

    index: int
    anatomy: Anatomy
    findings: tuple[Finding, ...]
    portable: bool
    """AP at the bedside instead of PA."""
    low_volumes: bool
    inspiration: float
    """Height of the right dome of the diaphragm below the apices, chest units."""

    def having(self, kind: Kind) -> tuple[Finding, ...]:
        """Return the findings of a kind, right before left."""
        return tuple(finding for finding in self.findings if finding.kind is kind)


@dataclass(frozen=True, slots=True)
class Exposure:
    """How one radiograph was taken and printed."""

    index: int
    height: int
    width: int
    zoom: float
    """Pixels a chest unit, relative to a chest that just fills the short side."""
    shift_x: float
    shift_y: float
    turn: float
    """Of the patient in the image plane, degrees."""
    rotation: float
    """Of the patient about the spine: shift of the mediastinum, chest units."""
    voltage: float
    """Attenuation of water, 1/cm."""
    scatter: float
    noise: float
    """Standard deviation in the mediastinum, grey levels."""
    contrast: float
    brightness: float
    collimation: tuple[float, float, float, float]
    """Black border at top, bottom, left and right, as fractions of the image."""
    marker: str
    marker_at: tuple[float, float]
    """Of the marker's lower left corner: x and y as fractions of the image."""


def draw_anatomy(seed: int, subject: int) -> tuple[Anatomy, tuple[Finding, ...]]:
    """Return a subject's anatomy and the findings that last from study to study."""
    draws = Draws(seed, Level.SUBJECT, subject)
    female = draws.chance(0.48)
    ratio = draws.between(0.41, 0.475)
    anatomy = Anatomy(
        index=subject,
        female=female,
        thickness=draws.between(0.85, 1.2),
        width=draws.between(0.10, 0.26),
        cardiothoracic_ratio=ratio,
        rib_spacing=draws.between(0.185, 0.215),
        rib_drop=draws.between(0.22, 0.36),
        rib_density=draws.between(0.7, 1.25),
        mediastinum=draws.between(0.88, 1.15),
        knob=draws.between(0.13, 0.19),
        scoliosis=draws.normal(0.02),
        markings=draws.between(0.75, 1.25),
        breast=draws.between(1.0, 3.5) if female else 0.0,
        stomach=draws.between(0.05, 0.2),
    )
    lasting = []
    if draws.chance(0.20):
        lasting.append(Finding(Kind.CARDIOMEGALY, LEFT, draws.between(0.0, 1.0)))
    if draws.chance(0.14):
        side = draws.choice((RIGHT, LEFT))
        height = draws.between(0.18, 0.72)
        lasting.append(Finding(Kind.NODULE, side, draws.between(0.0, 1.0), height, draws.between(0.3, 0.75)))
    return anatomy, tuple(lasting)


def draw_study(seed: int, subject: int, study: int) -> Study:
    """Return what one visit shows; `study` counts over the whole set, `subject` too."""
    anatomy, lasting = draw_anatomy(seed, subject)
    draws = Draws(seed, Level.STUDY, study)
    nodule_side = next((finding.side for finding in lasting if finding.kind is Kind.NODULE), 0)
    portable = draws.chance(0.45)
    low_volumes = draws.chance(0.3 if portable else 0.1)
    inspiration = draws.between(1.35, 1.48) if low_volumes else draws.between(1.68, 1.9)
    findings = list(lasting)

    # No finding hides another: no fluid, consolidation or nodule where air or fluid has taken the lung's place.
    open_side = 0
    side, size = draws.choice((RIGHT, LEFT)), draws.between(0.0, 1.0)
    if draws.chance(0.14):
        open_side = -nodule_side or side
        findings.append(Finding(Kind.PNEUMOTHORAX, open_side, size))

    effusion = {RIGHT: 0.0, LEFT: 0.0}
    both, side = draws.chance(0.3), draws.choice((RIGHT, LEFT))
    sizes = {RIGHT: draws.between(0.0, 1.0), LEFT: draws.between(0.0, 1.0)}
    if draws.chance(0.28):
        for wet in (RIGHT, LEFT) if both and not open_side else (-open_side or side,):
            effusion[wet] = sizes[wet] * (0.5 if wet == nodule_side else 1.0)
            findings.append(Finding(Kind.EFFUSION, wet, effusion[wet]))

    side, size = draws.choice((RIGHT, LEFT)), draws.between(0.0, 1.0)
    low, lateral = draws.between(0.0, 1.0), draws.between(0.25, 0.75)
    if draws.chance(0.25):
        side = -open_side or -nodule_side or side
        nodule = next((finding for finding in lasting if finding.kind is Kind.NODULE and finding.side == side), None)
        height = 0.2 + 0.62 * low
        if nodule is not None:
            height = 0.78 if nodule.height < 0.4 else 0.25
        if any(finding.kind is Kind.EFFUSION and finding.side == side for finding in findings):
            height = min(height, 0.62 - 0.42 * effusion[side])
        if effusion[side] < 0.6 and (nodule is None or abs(nodule.height - height) > 0.25):
            findings.append(Finding(Kind.CONSOLIDATION, side, size, height, lateral))

    findings.sort(key=lambda finding: (finding.kind, finding.side))
    return Study(study, anatomy, tuple(findings), portable, low_volumes, inspiration)


def without(study: Study, kind: Kind) -> Study:
    """Return the same study as if the findings of a kind had not been there."""
    return replace(study, findings=tuple(finding for finding in study.findings if finding.kind is not kind))


def draw_exposure(seed: int, image: int, *, portable: bool, size: int) -> Exposure:
    """Return how image number `image` of the set was taken; `size` is its short side in pixels."""
    draws = Draws(seed, Level.IMAGE, image)
    long_side = max(size, round(size / draws.between(0.82, 1.0)))
    landscape = draws.chance(0.4 if portable else 0.1)
    loose = 1.6 if portable else 1.0
    border = draws.chance(0.3)
    edges = tuple(draws.between(0.0, 0.045) if border and draws.chance(0.6) else 0.0 for _ in range(4))
    return Exposure(
        index=image,
        height=size if landscape else long_side,
        width=long_side if landscape else size,
        zoom=draws.between(0.9, 1.04),
        shift_x=draws.normal(0.025 * loose),
        shift_y=draws.normal(0.035 * loose),
        turn=draws.normal(1.2 * loose),
        rotation=draws.normal(0.02 * loose),
        voltage=draws.between(0.145, 0.185),
        scatter=draws.between(0.2, 0.4) * (1.3 if portable else 1.0),
        noise=draws.between(2.0, 6.0),
        contrast=draws.between(0.85, 1.2),
        brightness=draws.between(-0.06, 0.06),
        collimation=(edges[0], edges[1], edges[2], edges[3]),
        marker=draws.choice(("L", "R")) + (draws.choice(("", " AP", " PORT")) if portable else ""),
        marker_at=(draws.between(0.02, 0.06), draws.between(0.07, 0.2)),
    )
