"""A finding's mask as found in the wild -> the grey PNG that a shard holds, as large as the packed radiograph."""

from __future__ import annotations

import io
import re
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.packing.images.checks import ImageError, check_size
from mrm_stream.packing.images.jpeg import decode_jpeg, is_jpeg
from mrm_stream.packing.images.png import is_png, read_png

_RUNS = re.compile(r"\s*(?:[0-9]{1,10}(?:\s+|$))*", re.ASCII)
_HALF = 128


def encode_mask(mask: bytes | str, *, original_size: tuple[int, int], size: tuple[int, int]) -> bytes:
    """Return an 8-bit grey PNG, 255 inside the finding, 0 outside.

    A pixel is inside where at least half of its area is. That is reckoned in whole numbers, so every machine comes to
    the same mask.

    Args:
        mask: A PNG, inside where it is not 0; a JPEG, inside from 128, as its edges ring; or run lengths: pairs of
            first pixel and length, numbered from 1, down the columns, left to right, ascending; none for an empty mask.
        original_size: (height, width) in pixels of the radiograph as found; the mask has the same.
        size: (height, width) in pixels of the result, not more than `original_size`.

    Raises:
        ImageError: The mask is damaged, or as large as another image.
    """
    assert 0 < size[0] <= original_size[0]
    assert 0 < size[1] <= original_size[1]
    check_size(*original_size)
    inside_HW = _from_runs(mask, original_size) if isinstance(mask, str) else _from_image(mask)
    if inside_HW.shape != original_size:
        (height, width), (image_height, image_width) = inside_HW.shape, original_size
        raise ImageError(
            "mask-size", f"the mask is {width} x {height} pixels, the image {image_width} x {image_height}"
        )
    grey_HW = _reduce(inside_HW, size).view(np.uint8) * np.uint8(255)
    buffer = io.BytesIO()
    # Only runs are sought: twice as fast as zlib's default, and no hash that could differ from one zlib to another.
    Image.fromarray(grey_HW).save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _from_image(data: bytes) -> NDArray[np.bool_]:
    if is_png(data):
        return read_png(data, _not_zero)
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


def _reduce(inside_HW: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where at least half of an output pixel's area is inside, shape `size`."""
    height, width = inside_HW.shape
    if (height, width) == size:
        return inside_HW
    # Areas in 1 / (output height * output width) of an input pixel, in which all borders are whole numbers.
    area = _sum_down(_sum_down(inside_HW, size[0]).T, size[1]).T
    return np.asarray(2 * area >= height * width)


def _sum_down(values_HW: NDArray[np.bool_] | NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the sums over `rows` bands of equal height, in 1 / rows of an input row, shape (rows, W)."""
    height = values_HW.shape[0]
    borders = np.arange(rows + 1) * height
    whole, rest_R1 = borders // rows, (borders % rows)[:, None]
    # Each band from the row that its upper border cuts, down to the one that its lower border cuts, less what of these
    # two lies above the borders.
    sums = np.add.reduceat(values_HW, whole[:-1], axis=0, dtype=np.int64) * rows
    cut = np.concatenate([values_HW, values_HW[-1:]])[whole] * rest_R1
    return np.asarray(sums - cut[:-1] + cut[1:])
