"""An image file as found in the wild -> the small grey JPEG that a shard holds.

What is done to an image, beyond making it smaller, is this and no more. Colour becomes luma (ITU-R BT.601); alpha is
dropped, not composited; 16-bit grey is divided by 257, linear over the whole range; EXIF, its orientation included, and
gamma are ignored, as the reference code ignored them. How a DICOM's values become grey is a choice, `Rendering`. All
arithmetic is on integers, or in single operations on float64, which round alike everywhere: every machine makes the
same bytes.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.errors import RecordError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Rendering = Literal["window", "equalized"]
"""How a DICOM becomes 8-bit grey; MONOCHROME1 is inverted either way.

window: as its maker meant it to be seen (DICOM PS3.3, C.11): modality LUT or rescaling, then the first VOI LUT or else
the first window. Where the file has neither, or a window that is none (narrower than 1), the least value becomes black
and the greatest white.

equalized: as the images of MIMIC-CXR-JPG were made: least to greatest stored value over 0 to 255, fractions dropped,
then the histogram equalized. It is OpenCV's `equalizeHist`, in integers: levels differ from its floats by 1 at most.
(What is inverted is so first of all, not after fractions are dropped: a picture and its negative come out the same.)
"""

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels as a DICOM stores them, whatever their bits mean."""

MAX_SIDE = 20_000
MAX_PIXELS = 80_000_000
MAX_SCANS = 100
"""Of a progressive JPEG. Each costs a pass over the image; real ones have about ten."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = b"\xff\xda"
_DICOM_MAGIC = b"DICM"
_DICOM_PREAMBLE = 128
_FRAME_MARKERS = (0xC0, 0xC1, 0xC3, 0xF7)
"""Of the headers of baseline, extended and lossless JPEG, and of JPEG-LS."""
_BARE_DICOM = (b"\x02\0", b"\x08\0")
"""The groups that a DICOM without preamble begins with, little endian."""


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
    view: str = ""
    """A DICOM's ViewPosition, such as PA; empty where it has none, and for other files."""


def encode_image(data: bytes, *, short_side: int, quality: int, rendering: Rendering = "window") -> EncodedImage:
    """Decode an image in full, shrink it, and encode it as a grey JPEG.

    Args:
        data: A JPEG, PNG or DICOM file.
        short_side: Height or width of the result in pixels, whichever is less; a smaller image keeps its size.
        quality: Of the JPEG, 1 to 100.
        rendering: How a DICOM becomes grey; other files do not ask.

    Raises:
        ImageError: The file is not an image, is damaged or cut short, or is of a kind that cannot be read truthfully.
    """
    if not data:
        raise ImageError("image-empty", "the file is empty")
    view = ""
    if data[_DICOM_PREAMBLE : _DICOM_PREAMBLE + len(_DICOM_MAGIC)] == _DICOM_MAGIC:
        # Loaded when the first DICOM is met: it takes a third of a second.
        from mrm_stream.packing.dicom import decode_dicom

        pixels_HW, view = decode_dicom(data, rendering)
        original_size = _height_width(pixels_HW)
    elif is_jpeg(data):
        original_size, pixels_HW = decode_jpeg(data, short_side)
    elif is_png(data):
        pixels_HW = read_png(data, _to_grey)
        original_size = _height_width(pixels_HW)
    elif data.startswith(_BARE_DICOM) and data[4:6].isalpha():
        raise ImageError("image-not-an-image", "the file may be a DICOM, but lacks the preamble of a DICOM file")
    else:
        raise ImageError("image-not-an-image", "the file is neither a JPEG, nor a PNG, nor a DICOM")
    size = target_size(original_size, short_side)
    grey_HW1 = np.ascontiguousarray(shrink(pixels_HW, size)[..., None])
    jpeg = simplejpeg.encode_jpeg(grey_HW1, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return EncodedImage(jpeg=jpeg, original_size=original_size, size=size, view=view)


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


def shrink(pixels_HW: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image at (height, width), no larger than it is; in fixed point, the same on every machine.

    What scaled decoding leaves to do, a quarter at most, is done without a low-pass: 0.9 ms for MIMIC's size v 10.
    Against a bicubic reduction of the image decoded in full (40 real radiographs, reduced by 2.5) grey levels then
    differ by 0.66 on average (46.5 dB), v 0.54 (48.2 dB) with Pillow's bicubic in its place.
    """
    if _height_width(pixels_HW) == size:
        return pixels_HW
    if all(4 * new >= 3 * old for new, old in zip(size, _height_width(pixels_HW), strict=True)):
        # OpenCV's other interpolations are in floating point, or not the same with every CPU's instructions.
        return np.asarray(cv2.resize(pixels_HW, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)
    return np.asarray(Image.fromarray(pixels_HW).resize(size[::-1], Image.Resampling.BICUBIC))


def is_jpeg(data: bytes) -> bool:
    """Return whether the file begins as a JPEG does."""
    return data.startswith(_JPEG_MAGIC)


def is_png(data: bytes) -> bool:
    """Return whether the file begins as a PNG does."""
    return data.startswith(_PNG_MAGIC)


def _height_width(pixels_HW: NDArray[np.uint8]) -> tuple[int, int]:
    return pixels_HW.shape[0], pixels_HW.shape[1]


def check_size(height: int, width: int) -> None:
    """Refuse an image by its header, before its pixels are decoded or memory is taken for them.

    Raises:
        ImageError: The image is larger than any radiograph, or has no pixels.
    """
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ImageError("image-too-large", f"{width} x {height} pixels are more than a radiograph has")
    if min(height, width) < 1:
        raise ImageError("image-damaged", "the image has no pixels")


def decode_jpeg(data: bytes, short_side: int = MAX_SIDE) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Return the original (height, width), and the grey image at least as large as its target.

    Args:
        data: A JPEG file, of 8 bits a sample.
        short_side: Height or width in pixels, whichever is less, that the image may be shrunk to where that saves work.

    Raises:
        ImageError: The JPEG is damaged, cut short, too large, or made of inks.
    """
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise ImageError("image-damaged", "the JPEG's header cannot be read") from error
    check_size(height, width)
    if colour in ("CMYK", "YCCK"):
        # Whether such inks are stored inverted differs from writer to writer: a guess may give a negative.
        raise ImageError("image-colour-space", f"{colour} JPEGs cannot be read truthfully")
    if not _has_one_scan(data) and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise ImageError("image-damaged", "the JPEG has too many scans")
    target_height, target_width = target_size((height, width), short_side)
    try:
        # At half scale straight from the DCT, for MIMIC's size: there is less to resize, and it low-passes.
        grey_HW1 = simplejpeg.decode_jpeg(data, "GRAY", min_height=target_height, min_width=target_width, strict=True)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise ImageError("image-truncated", "the JPEG is cut short") from error
        raise ImageError("image-damaged", f"the JPEG is damaged ({error})") from error
    return (height, width), grey_HW1[..., 0]


def _has_one_scan(data: bytes) -> bool:
    """Return whether the header says that one scan holds all: a baseline JPEG whose first scan has every component.

    Nearly all have: to search 1.5 MB of pixels for the marker of another one takes a millisecond.
    """
    place, components = 2, None
    while place + 10 <= len(data):
        marker, (length,) = data[place + 1], struct.unpack_from(">H", data, place + 2)
        if marker == _START_OF_SCAN[1]:
            return data[place + 4] == components
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in (0xC0, 0xC1):
                return False
            components = data[place + 9]
        if data[place] != 0xFF or length < 2:
            return False
        place += 2 + length
    return False


def read_png(data: bytes, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Decode a PNG in full and return what `convert` makes of it.

    Raises:
        ImageError: The PNG is damaged, cut short or too large, or `convert` refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                check_size(image.height, image.width)
                image.load()
                return convert(image)
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


def stream_format(stream: bytes) -> tuple[int, int, int, int]:
    """Return bits, height, width and components of a JPEG, JPEG-LS or JPEG 2000 stream, by its header alone.

    Raises:
        ImageError: The stream is of another kind (progressive JPEG among them), or its header is damaged.
    """
    wavelets = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, bare or in a file's wrapping.
    if not is_jpeg(stream) and 0 <= wavelets < len(stream) - 43:
        right, bottom, left, top, *_, components, depth = struct.unpack_from(">8IHB", stream, wavelets + 8)
        # The highest bit of the depth tells that values have a sign.
        return (depth & 0x7F) + 1, bottom - top, right - left, components
    place = 2
    while is_jpeg(stream) and place + 10 <= len(stream):
        fill, marker, length, bits, height, width, components = struct.unpack_from(">BBHBHHB", stream, place)
        if marker in _FRAME_MARKERS:
            return bits, height, width, components
        if fill != 0xFF or length < 2 or stream[place + 1 : place + 2] == _START_OF_SCAN[1:]:
            break
        place += 2 + length
    raise ImageError("image-damaged", "the header of compressed pixels cannot be read")


def grey_levels(
    stored_HW: Stored, values: NDArray[np.int64], header: Dataset, rendering: Rendering
) -> NDArray[np.uint8]:
    """Return the grey of each value that a pixel of a DICOM can have: an image then costs one look-up a pixel.

    Args:
        stored_HW: The pixels.
        values: What stored values mean, before any look-up: 256 or 65,536 integers.
        header: Where the look-up tables and the window are.
        rendering: How values become grey.

    Raises:
        ImageError: A table or a window is damaged, or is of a kind that is not known.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0:
        raise ImageError("image-damaged", "the DICOM's rescaling makes all values one")
    if rendering == "equalized":
        # Of the rescaling only its direction matters here.
        return _equalized(stored_HW, -values if (slope < 0) != inverted else values)
    if header.get("ModalityLUTSequence"):
        wide = _look_up(header.ModalityLUTSequence[0], values)[0].astype(np.float64)
    else:
        wide = np.asarray(values * slope + intercept, np.float64)
    center, width = _number(header, "WindowCenter", 0.0), _number(header, "WindowWidth", 0.0)
    function = str(header.get("VOILUTFunction") or "LINEAR").strip()
    if header.get("VOILUTSequence"):
        levels, greatest = _look_up(header.VOILUTSequence[0], np.rint(wide).astype(np.int64))
        levels = greatest - levels if inverted else levels
        return ((levels * 255 + greatest // 2) // greatest).astype(np.uint8)
    if width >= 1 or (width > 0 and function != "LINEAR"):
        return _windowed(wide, center, width, function, inverted=inverted)
    used = wide[_histogram(stored_HW) > 0]
    return _ramp(wide, used.min(), used.max() - used.min(), inverted=inverted)


def _number(header: Dataset, keyword: str, default: float) -> float:
    """Return the first value of an element, or the default where it has none."""
    value = header.get(keyword)
    if value is not None and not isinstance(value, str | float | int):
        value = next(iter(value), None)
    number = default if value is None or value == "" else float(value)
    if not math.isfinite(number):
        raise ImageError("image-damaged", f"the DICOM's {keyword} is not finite")
    return number


def _histogram(stored_HW: Stored) -> NDArray[np.int64]:
    """Return how many pixels have each value."""
    counts = np.zeros(1 << 8 * stored_HW.itemsize, np.int64)
    for band in np.array_split(stored_HW, 64):  # In bands that stay in the cache: 12 ms v 30 for MIMIC's size.
        counts += np.bincount(band.ravel(), minlength=counts.size)
    return counts


def _equalized(stored_HW: Stored, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    counts = _histogram(stored_HW)
    used = values[counts > 0]
    low, span = int(used.min()), max(int(used.max() - used.min()), 1)
    grey = np.clip((values - low) * 255 // span, 0, 255)
    # The weights are floats, but whole, and far below 2**53.
    per_level = np.bincount(grey, weights=counts, minlength=256).astype(np.int64)
    first = int(per_level[per_level > 0][0])
    others = max(int(per_level.sum()) - first, 1)
    equal = (510 * (np.cumsum(per_level) - first) + others) // (2 * others)
    return np.clip(equal, 0, 255).astype(np.uint8)[grey]


def _look_up(table: Dataset, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return what a modality or VOI LUT makes of values, and the greatest value that it is meant to give."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries or 1 << 16
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16  # Read without the sign that it has where values have one.
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "u1" if len(data) <= entries + 1 else "<u2")
    levels = np.asarray(data, np.int64)
    if levels.size < entries or not 1 <= bits <= 16:
        raise ImageError("image-damaged", "a look-up table of the DICOM is cut short, or not of 1 to 16 bits")
    greatest = (1 << bits) - 1
    return np.minimum(levels, greatest)[np.clip(values - first, 0, entries - 1)], greatest


def _windowed(
    wide: NDArray[np.float64], center: float, width: float, function: str, *, inverted: bool
) -> NDArray[np.uint8]:
    if function == "LINEAR":
        return _ramp(wide, center - 0.5 - (width - 1) / 2, width - 1, inverted=inverted)
    if function == "LINEAR_EXACT":
        return _ramp(wide, center - width / 2, width, inverted=inverted)
    if function == "SIGMOID":
        distance = center - wide if inverted else wide - center
        return np.searchsorted(_sigmoid_steps(), distance * 4 / width, side="right").astype(np.uint8)
    raise ImageError("image-encoding-unknown", "the DICOM has a VOI LUT function that is not known")


def _ramp(wide: NDArray[np.float64], low: float, span: float, *, inverted: bool) -> NDArray[np.uint8]:
    """Return 0 up to `low`, 255 from `low + span`, and levels between, rounded half up; inverted, the other way round.

    Inverted before it is rounded: a negative in MONOCHROME1 gives the same grey as its positive in MONOCHROME2.
    """
    if span <= 0:
        return np.where((wide > low) != inverted, 255, 0).astype(np.uint8)
    distance = low + span - wide if inverted else wide - low
    return np.floor(np.clip(distance / span, 0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=1)
def _sigmoid_steps() -> NDArray[np.float64]:
    """Return where 255 / (1 + exp(-x)) rounds up to 1, 2, ... 255.

    By decimal logarithms, which are rounded correctly: an `exp` differs from one machine's library to another's.
    """
    return np.array([float((Decimal(2 * level - 1) / Decimal(511 - 2 * level)).ln()) for level in range(1, 256)])
