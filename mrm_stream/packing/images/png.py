"""PNGs to pixels, by Pillow; those of 16 bits and several channels by OpenCV, as Pillow drops their low bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.formats.options import BITS
from mrm_stream.packing.images.checks import OF_8_BITS, ImageError, check_size, stray_pixels, told_values
from mrm_stream.packing.images.histogram import histogram

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOUR_TYPE = 24, 25
"""Offsets in the file, in bytes, of the bits of a channel and of the kind of the channels."""
_GREY_ALONE = 0


def is_png(data: bytes) -> bool:
    """Return whether the file begins as a PNG does."""
    return data.startswith(_PNG_MAGIC)


def read_png(data: bytes, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Decode a PNG in full and return what `convert` makes of it.

    Args:
        data: The file.
        convert: From a picture of H x W pixels to an array, (H, W) or (H, W, C), which is returned.

    Raises:
        ImageError: The PNG is damaged, cut short, too large or several pictures, or `convert` refuses it.
        MemoryError: The machine is short of it: the image is not to blame.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                check_size(image.height, image.width)
                if getattr(image, "n_frames", 1) > 1:
                    raise ImageError("image-several-frames", "the PNG has several frames: a radiograph is one")
                image.load()
                return convert(image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image-too-large", "the PNG has more pixels than a radiograph") from error
    except Exception as error:  # Pillow lets struct, zlib and index errors of hostile files through, among others.
        if "out of memory" in str(error).lower():  # what Pillow's decoders say; the size has been checked
            raise MemoryError from None
        if "truncated" in str(error).lower():
            raise ImageError("image-truncated", "the PNG is cut short") from error
        raise ImageError("image-damaged", f"the PNG is damaged ({type(error).__name__})") from error


def grey_of_png(data: bytes, bits: int | None = None) -> tuple[NDArray[np.uint8], int | None, Callable[[], str]]:
    """Decode a PNG of any kind to grey, through its palette, alpha dropped.

    Nothing in a PNG of 16 bits says how many of them the values use. Where `bits` does not, the range is that of the
    fewest bits, 8 at least, that hold all pixels but one in a thousand: stray ones, such as letters burnt in, are
    white. It depends on the file alone, so that a set is the same whoever packs it, in whatever order.

    Args:
        data: The file.
        bits: Of the values of a PNG of 16 bits, 8 to 16; None: assumed from its pixels.

    Returns:
        (grey levels (H, W), the bits that were assumed or None, a function that describes the values in words, as
        `check_not_blank` takes it).

    Raises:
        ImageError: As `read_png`; or more than one pixel in a thousand needs more than `bits`.
        MemoryError: As `read_png`.
    """
    pixels_HW = read_png(data, _grey_or_wide)
    if has_wide_channels(data):
        pixels_HW = _luma(wide_channels(data))
    if pixels_HW.dtype == np.uint8:
        return pixels_HW, None, partial(told_values, pixels_HW, OF_8_BITS)
    used = _used_bits(pixels_HW)
    if bits is not None and used > bits:
        raise ImageError("image-grey-range", f"the PNG's values use {used} bits: more than {bits} bits")
    top = (1 << (bits or used)) - 1
    levels = (np.minimum(np.arange(1 << 16), top) * 255 + top // 2) // top
    how = (
        f"taken to be of 0 to {top:,} ({bits} bits, as given)" if bits else f"taken to be of 0 to {top:,} ({used} bits)"
    )
    return levels.astype(np.uint8)[pixels_HW], used if bits is None else None, partial(told_values, pixels_HW, how)


def has_wide_channels(data: bytes) -> bool:
    """Return whether a PNG, which must be one, has several channels of 16 bits."""
    return data[_DEPTH] == 16 and data[_COLOUR_TYPE] != _GREY_ALONE


def wide_channels(data: bytes) -> NDArray[np.uint16]:
    """Return the red, green and blue of a PNG of several channels of 16 bits, which Pillow has found whole.

    Returns:
        Shape (H, W, 3), in the order blue, green, red.

    Raises:
        ImageError: libpng finds the PNG damaged.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ImageError("image-damaged", "the PNG is damaged (libpng)")
    return np.asarray(pixels[..., :3])


def _grey_or_wide(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16, copy=False)
    # Through the palette where there is one, and without compositing alpha.
    return np.asarray(image.convert("L"))


def _luma(bgr_HWC: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the luma (ITU-R BT.601), by the weights, in 65,536ths, that Pillow takes for 8 bits."""
    luma_HW = np.empty(bgr_HWC.shape[:2], np.uint16)
    for into_HW, band_HWC in zip(np.array_split(luma_HW, 64), np.array_split(bgr_HWC, 64), strict=True):
        blue, green, red = np.moveaxis(band_HWC.astype(np.uint32), -1, 0)
        into_HW[:] = (red * 19595 + green * 38470 + blue * 7471 + (1 << 15)) >> 16
    return luma_HW


def _used_bits(pixels_HW: NDArray[np.uint16]) -> int:
    below = np.cumsum(histogram(pixels_HW))
    greatest = int(np.searchsorted(below, pixels_HW.size - stray_pixels(pixels_HW.size)))
    return max(greatest.bit_length(), BITS[0])
