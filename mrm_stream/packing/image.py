"""An image file as found in the wild -> the small grey JPEG that a shard holds.

What is done to an image, beyond making it smaller, is this and no more. Colour becomes luma (ITU-R BT.601); alpha is
dropped, not composited; 16-bit grey is divided by 257, linear over the whole range; EXIF, its orientation included, and
gamma are ignored, as the reference code ignored them. All arithmetic is on integers, so every machine makes the
same bytes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.errors import RecordError

MAX_SIDE = 20_000
MAX_PIXELS = 80_000_000
MAX_SCANS = 100
"""Of a progressive JPEG. Each costs a pass over the image; real ones have about ten."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = b"\xff\xda"


class ImageError(RecordError):
    """One image cannot be packed.

    Args:
        code: The reason as quarantine.jsonl counts it, such as `image-truncated`.
        what: The reason in words.
    """

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return ImageError, (self.code, self.what)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What a shard holds of an image."""

    jpeg: bytes = field(repr=False)
    """8-bit grey baseline JPEG, without metadata."""
    original_size: tuple[int, int]
    """(height, width) in pixels of the source."""
    size: tuple[int, int]
    """(height, width) in pixels of `jpeg`."""


def encode_image(data: bytes, *, short_side: int, quality: int) -> EncodedImage:
    """Decode an image in full, shrink it, and encode it as a grey JPEG.

    Args:
        data: A JPEG or PNG file.
        short_side: Height or width of the result in pixels, whichever is less; a smaller image keeps its size.
        quality: Of the JPEG, 1 to 100.

    Raises:
        ImageError: The file is not an image, is damaged or cut short, or is of a kind that cannot be read truthfully.
    """
    if not data:
        raise ImageError("image-empty", "the file is empty")
    if data.startswith(_JPEG_MAGIC):
        original_size, pixels_HW = _decode_jpeg(data, short_side)
    elif data.startswith(_PNG_MAGIC):
        pixels_HW = _decode_png(data)
        original_size = _height_width(pixels_HW)
    else:
        raise ImageError("image-not-an-image", "the file is neither a JPEG nor a PNG")
    size = target_size(original_size, short_side)
    if _height_width(pixels_HW) != size:
        # Pillow low-passes before it shrinks, and does so in fixed point; OpenCV's floating point differs between CPUs.
        shrunk = Image.fromarray(pixels_HW).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        pixels_HW = np.asarray(shrunk)
    grey_HW1 = np.ascontiguousarray(pixels_HW[..., None])
    jpeg = simplejpeg.encode_jpeg(grey_HW1, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return EncodedImage(jpeg=jpeg, original_size=original_size, size=size)


def target_size(original_size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (height, width) with the lesser at most `short_side`, in the same proportion.

    Example:
        >>> target_size((3056, 2544), 1024), target_size((600, 500), 1024)
        ((1230, 1024), (600, 500))
    """
    least = min(original_size)
    if least <= short_side:
        return original_size
    height, width = ((side * short_side + least // 2) // least for side in original_size)
    return height, width


def _height_width(pixels_HW: NDArray[np.uint8]) -> tuple[int, int]:
    return pixels_HW.shape[0], pixels_HW.shape[1]


def _check_size(height: int, width: int) -> None:
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ImageError("image-too-large", f"{width} x {height} pixels are more than a radiograph has")
    if min(height, width) < 1:
        raise ImageError("image-damaged", "the image has no pixels")


def _decode_jpeg(data: bytes, short_side: int) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Return the original (height, width), and the grey image at least as large as its target."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise ImageError("image-damaged", "the JPEG's header cannot be read") from error
    _check_size(height, width)
    if colour in ("CMYK", "YCCK"):
        # Whether such inks are stored inverted differs from writer to writer: a guess may give a negative.
        raise ImageError("image-colour-space", f"{colour} JPEGs cannot be read truthfully")
    if data.count(_START_OF_SCAN) > MAX_SCANS:
        raise ImageError("image-damaged", "the JPEG has too many scans")
    target_height, target_width = target_size((height, width), short_side)
    try:
        # For MIMIC's size: 33 ms at half scale, straight from the DCT, v 50 in full; then 11 ms to resize, v 48.
        grey_HW1 = simplejpeg.decode_jpeg(data, "GRAY", min_height=target_height, min_width=target_width, strict=True)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise ImageError("image-truncated", "the JPEG is cut short") from error
        raise ImageError("image-damaged", f"the JPEG is damaged ({error})") from error
    return (height, width), grey_HW1[..., 0]


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                _check_size(image.height, image.width)
                image.load()
                return _to_grey(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image-too-large", "the PNG has more pixels than a radiograph") from error
    except Exception as error:  # Pillow lets struct, zlib and index errors of hostile files through, among others.
        if "truncated" in str(error).lower():
            raise ImageError("image-truncated", "the PNG is cut short") from error
        raise ImageError("image-damaged", f"the PNG is damaged ({type(error).__name__})") from error


def _to_grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    # Through the palette where there is one, and without compositing alpha.
    return np.asarray(image.convert("L"))


def _from_16_bit(wide_HW: NDArray[np.integer]) -> NDArray[np.uint8]:
    if int(wide_HW.max()) < 1 << 12:
        # 12 bits in a 16-bit file would keep 16 grey levels; nothing in the file says which range was meant.
        raise ImageError("image-grey-range", "a 16-bit image whose values use less than a sixteenth of the range")
    return ((wide_HW.astype(np.uint32) + 128) // 257).astype(np.uint8)
