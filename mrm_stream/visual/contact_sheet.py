"""Small pictures of a set's samples, with their masks and boxes drawn."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.jpeg import decode_jpeg
from mrm_stream.packing.images.png import read_png
from mrm_stream.packing.summary import ShownSample
from mrm_stream.visual.page import Picture

THUMBNAIL = 280
"""Longer side of a picture in pixels: shown at some 160, it is sharp on a dense screen too."""
OUTLINE = (255, 176, 0)
"""Colour of masks' outlines and boxes."""

_SHOWN_FINDINGS = 4


def picture_of(sample: ShownSample) -> Picture:
    """Return a small picture of a sample: key, split and view, and the findings that are labelled present."""
    present = [finding for finding, label in sample.labels.items() if label == 1]
    findings = ", ".join(present[:_SHOWN_FINDINGS])
    if len(present) > _SHOWN_FINDINGS:
        findings += f" and {len(present) - _SHOWN_FINDINGS} more"
    origin = f"{sample.split} · {sample.view}" if sample.view else sample.split
    name = sample.key if len(sample.key) <= 14 else f"{sample.key[:8]}…{sample.key[-5:]}"
    try:
        jpeg, alt = _thumbnail(sample), f"Radiograph {name}, {origin}: {findings or 'no finding labelled present'}"
    except ImageError:
        jpeg, alt = None, "does not decode: run mrm-stream verify --decode"
    return Picture(jpeg, alt, [name, origin, *([findings] if findings else [])])


def _thumbnail(sample: ShownSample) -> bytes:
    """Return a colour JPEG with the outline of the mask and the boxes; ImageError where the image does not decode."""
    grey_HW = decode_jpeg(sample.jpeg, THUMBNAIL)[1]
    height, width = sample.size
    scale = min(THUMBNAIL / max(sample.size), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(grey_HW).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    if sample.mask is not None:
        picture.paste(OUTLINE, mask=_outline(read_png(sample.mask, _inside), size))
    draw = ImageDraw.Draw(picture)
    for box in sample.boxes:
        # What lies outside is drawn along the border: numbers of any size may stand in a damaged set.
        left, right = (round(min(max(x * scale, 0), size[0] - 1)) for x in (box.left, box.left + box.width))
        top, bottom = (round(min(max(y * scale, 0), size[1] - 1)) for y in (box.top, box.top + box.height))
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=OUTLINE, width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _inside(image: Image.Image) -> NDArray[np.uint8]:
    return np.where(np.asarray(image) != 0, np.uint8(255), np.uint8(0))


def _outline(inside_HW: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return 255 on the inner border of a mask, reduced to `size` (width, height), and 0 elsewhere."""
    # Padded, as all beyond the picture's edge is outside.
    reduced = Image.fromarray(inside_HW).resize(size, Image.Resampling.BOX).point(lambda value: 255 * (value > 0))
    padded = Image.fromarray(np.pad(np.asarray(reduced), 2))
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(5)))[2:-2, 2:-2]
    return Image.fromarray(np.asarray(reduced) & ~inner)
