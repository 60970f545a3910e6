"""An image file as found in the wild -> the small grey JPEG that a shard holds.

What is done to an image, beyond making it smaller, is this and no more. Colour becomes luma (ITU-R BT.601); alpha is
dropped, not composited; 16 bits become 8, linear over the range that the values use (`grey_of_png`); EXIF, its
orientation included, and gamma are ignored, as the reference code ignored them. How a DICOM's values become grey is a
choice, `Rendering`. All arithmetic is on integers, or in single operations on float64, which round alike everywhere:
every machine makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simplejpeg

from mrm_stream.formats.options import Blank, Rendering
from mrm_stream.packing.images.blank import check_not_blank
from mrm_stream.packing.images.checks import OF_8_BITS, ImageError, told_values
from mrm_stream.packing.images.jpeg import decode_jpeg, is_jpeg
from mrm_stream.packing.images.png import grey_of_png, is_png
from mrm_stream.packing.images.sizes import height_width, shrink, target_size

_DICOM_MAGIC = b"DICM"
_DICOM_PREAMBLE = 128
_BARE_DICOM = (b"\x02\0", b"\x08\0")
"""The groups that a DICOM without preamble begins with, little endian."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What a shard holds of an image."""

    jpeg: bytes = field(repr=False)
    """8-bit grey baseline JPEG, without metadata."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the source."""
    size: tuple[int, int]
    """(height, width) in pixels of `jpeg`."""
    view: str = ""
    """A DICOM's ViewPosition, such as PA; empty where it has none, and for other files."""
    assumed_bits: int | None = None
    """Of the values of a PNG of 16 bits, where they were not given; None for other files."""
    is_padded: bool = False
    """Whether it is a DICOM some of whose pixels are declared to be padding."""


def encode_image(
    data: bytes,
    *,
    short_side: int,
    quality: int,
    rendering: Rendering = "window",
    bits: int | None = None,
    blank: Blank = "quarantine",
) -> EncodedImage:
    """Decode an image in full, shrink it, and encode it as a grey JPEG.

    Args:
        data: A JPEG, PNG or DICOM file.
        short_side: Height or width of the result in pixels, whichever is less; a smaller image keeps its size.
        quality: Of the JPEG, 1 to 100.
        rendering: How a DICOM becomes grey; other files do not ask.
        bits: Of the values of a PNG of 16 bits, 8 to 16; None: assumed from its pixels. Other files do not ask.
        blank: Whether an image with nothing on it is refused.

    Raises:
        ImageError: The file is not an image, is damaged or cut short, or is of a kind that cannot be read truthfully;
            or it is blank.
    """
    if not data:
        raise ImageError("image-empty", "the file is empty")
    view, assumed_bits, padding_HW = "", None, None
    tell: Callable[[], str]
    if data[_DICOM_PREAMBLE : _DICOM_PREAMBLE + len(_DICOM_MAGIC)] == _DICOM_MAGIC:
        # Loaded when the first DICOM is met: it takes a third of a second.
        from mrm_stream.packing.images.dicom import decode_dicom

        decoded = decode_dicom(data, rendering)
        pixels_HW, view, padding_HW, tell = decoded.grey_HW, decoded.view, decoded.padding_HW, decoded.tell
        original_size = height_width(pixels_HW)
    elif is_jpeg(data):
        original_size, pixels_HW = decode_jpeg(data, short_side)
        tell = partial(told_values, pixels_HW, OF_8_BITS)
    elif is_png(data):
        pixels_HW, assumed_bits, tell = grey_of_png(data, bits)
        original_size = height_width(pixels_HW)
    elif data.startswith(_BARE_DICOM) and data[4:6].isalpha():
        raise ImageError("image-not-an-image", "the file may be a DICOM, but lacks the preamble of a DICOM file")
    else:
        raise ImageError("image-not-an-image", "the file is neither a JPEG, nor a PNG, nor a DICOM")
    size = target_size(original_size, short_side)
    grey_HW1 = np.ascontiguousarray(shrink(pixels_HW, size)[..., None])
    if blank == "quarantine":
        check_not_blank(grey_HW1 if padding_HW is None else pixels_HW[~padding_HW], tell)
    jpeg = simplejpeg.encode_jpeg(grey_HW1, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return EncodedImage(
        jpeg=jpeg,
        original_size=original_size,
        size=size,
        view=view,
        assumed_bits=assumed_bits,
        is_padded=padding_HW is not None and bool(padding_HW.any()),
    )
