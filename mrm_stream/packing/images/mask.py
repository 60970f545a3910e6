"""A finding's mask as found in the wild -> the grey PNG that a shard holds, as large as the packed radiograph."""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.packing.images.checks import ImageError, check_size
from mrm_stream.packing.images.jpeg import decode_jpeg, is_jpeg
from mrm_stream.packing.images.png import has_wide_channels, is_png, read_png, wide_channels
from mrm_stream.packing.images.reduction import reduce_mask

_RUNS = re.compile(r"\s*(?:[0-9]{1,10}(?:\s+|$))*", re.ASCII)
_HALF = 128


@dataclass(frozen=True, slots=True)
class MaskChange:
    """What making a mask smaller has changed."""

    area: float
    """Relative, of the finding's share of the image: 0.1 where it is a tenth larger than it was."""
    kept_by_rule: int
    """Connected components that have a pixel only because none may vanish."""


@dataclass(frozen=True, slots=True)
class EncodedMask:
    """What a shard holds of a mask."""

    png: bytes = field(repr=False)
    """8-bit grey, 255 inside the finding, 0 outside."""
    change: MaskChange | None
    """None where the mask is empty."""


def encode_mask(mask: bytes | str, *, original_size: tuple[int, int], size: tuple[int, int]) -> EncodedMask:
    """Return the mask as large as the packed radiograph.

    The pixels with most of the finding in them are inside, as many as keep its share of the image. Each of its
    connected components (8 neighbours) keeps a pixel at least, so that a mask is empty only if it was. All of that is
    reckoned in whole numbers: every machine comes to the same mask.

    Args:
        mask: A PNG, inside where it is not 0; a JPEG, inside from 128, as its edges ring; or run lengths: pairs of
            first pixel and length, numbered from 1, down the columns, left to right, ascending; none for an empty mask.
        original_size: (height, width) in pixels of the radiograph that it was drawn on; the mask has the same.
        size: (height, width) in pixels of the result.

    Raises:
        ImageError: The mask is damaged, as large as another image, or smaller than the result.
    """
    check_size(*original_size)
    inside_HW = _from_runs(mask, original_size) if isinstance(mask, str) else _from_image(mask)
    if inside_HW.shape != original_size:
        (height, width), (image_height, image_width) = inside_HW.shape, original_size
        raise ImageError(
            "mask-size",
            f"the mask is {width} x {height} pixels, the image {image_width} x {image_height}: "
            "a mask must be of the image beside it, at that size",
        )
    if size[0] > original_size[0] or size[1] > original_size[1]:
        (height, width), (packed_height, packed_width) = original_size, size
        raise ImageError(
            "mask-size",
            f"the mask is {width} x {height} pixels, less than the {packed_width} x {packed_height} of the packed "
            "image: take images no larger than those that the masks were drawn on, or a lesser --short-side",
        )
    reduced_HW, kept_by_rule = reduce_mask(inside_HW, size)
    share = np.count_nonzero(inside_HW) / inside_HW.size
    buffer = io.BytesIO()
    # Only runs are sought: twice as fast as zlib's default, and no hash that could differ from one zlib to another.
    Image.fromarray(reduced_HW.view(np.uint8) * np.uint8(255)).save(buffer, "PNG", compress_type=zlib.Z_RLE)
    area = round(float(np.count_nonzero(reduced_HW) / reduced_HW.size / share - 1), 6) if share else None
    return EncodedMask(buffer.getvalue(), None if area is None else MaskChange(area, kept_by_rule))


def _from_image(data: bytes) -> NDArray[np.bool_]:
    if is_png(data):
        inside_HW = read_png(data, _not_zero)
        # Of 16 bits a channel, Pillow has the high ones alone.
        return np.asarray(wide_channels(data).any(axis=-1)) if has_wide_channels(data) else inside_HW
    if is_jpeg(data):
        grey_HW = decode_jpeg(data)[1]
        if 0 < grey_HW.max() < _HALF:
            raise ImageError("mask-damaged", "the mask is a JPEG without bright pixels: 0 and 1 do not survive in one")
        return grey_HW >= _HALF
    raise ImageError("mask-damaged", "the mask is neither a PNG nor a JPEG")


def _not_zero(image: Image.Image) -> NDArray[np.bool_]:
    # Through the palette where there is one; alpha says nothing.
    if image.mode in ("P", "PA", "RGBA"):
        image = image.convert("RGB")
    elif image.mode == "LA":
        image = image.getchannel("L")
    inside = np.asarray(image) != 0
    return inside if inside.ndim == 2 else np.asarray(inside.any(axis=-1))


def _from_runs(text: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask that run lengths describe, shape `size`."""
    if not _RUNS.fullmatch(text):
        raise ImageError("mask-damaged", "the mask's run lengths are not whole numbers")
    numbers = np.array(text.split(), np.int64)
    if numbers.size % 2:
        raise ImageError("mask-damaged", "the mask's run lengths are not in pairs")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends, pixels = starts + lengths, size[0] * size[1]
    if (lengths < 1).any() or (starts[1:] < ends[:-1]).any() or (starts < 0).any() or (ends > pixels).any():
        raise ImageError("mask-damaged", "the mask's runs are empty, not ascending, or beyond the image")
    # Gap, run, gap, run, ..., gap.
    borders = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [pixels]])
    parts = np.diff(borders)
    inside = np.repeat(np.arange(parts.size) % 2 == 1, parts)
    return inside.reshape(size[1], size[0]).T
