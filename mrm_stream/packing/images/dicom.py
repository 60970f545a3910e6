"""A DICOM file -> 8-bit grey pixels and the view.

The file is not trusted. Its header is read by itself, and sizes are checked before memory is taken; pixels are sought
by the lengths that the file gives, each checked against the file's end; gdcm runs in a process of its own. The values
found are the same on every machine, but for lossy JPEG 2000, which is decoded in float32.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import RLELosslessDecoder

from mrm_stream.errors import MrmStreamError
from mrm_stream.formats.options import Rendering
from mrm_stream.packing.images.checks import ImageError, check_size
from mrm_stream.packing.images.gdcm_process import shared_decoder
from mrm_stream.packing.images.jpeg import decode_jpeg, stream_format
from mrm_stream.packing.images.padding import PADDING_KEYWORDS, padding_values
from mrm_stream.packing.images.rendering import DicomPixels, Stored, grey_levels, tell_values

_RLE = "1.2.840.10008.1.2.5"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_GDCM = {
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.81": "JPEGLSNearLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG2000",
}
"""Transfer syntaxes: pixels as they are, implicit and explicit little endian; JPEG baseline and extended; gdcm's."""

_FRAGMENTS_LIMIT = 10_000
_STREAM_START = rb"\xff\xd8\xff|\xff\x4f\xff\x51|\0\0\0\x0cjP  "
_FRAME_START = re.compile(_STREAM_START + rb"|[\1\2]\0\0\0\x40\0\0\0")
_NEXT_FRAME = re.compile(rb"\xff\xd9\0?(?:" + _STREAM_START + rb")")
"""How compressed frames begin: JPEG and JPEG-LS, JPEG 2000, bare or in a file's wrapping, RLE; one after another.

Decoders return the first of several, and ignore the others. No header needs to tell how many there are.
"""
_PIXEL_DATA = (0x7FE0, 0x0010)
_ITEM, _SEQUENCE_END, _UNDEFINED = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD), 0xFFFFFFFF
_VIEW = re.compile(r"[A-Z0-9][A-Z0-9 _]{0,15}")
_KEYWORDS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth", "ViewPosition", *PADDING_KEYWORDS),
)
_TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in _KEYWORDS]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the header says that pixels are stored."""

    height: int
    width: int
    bits_allocated: int
    bits_stored: int
    signed: bool


@dataclass(frozen=True, slots=True)
class DecodedDicom:
    """The picture in a DICOM."""

    grey_HW: NDArray[np.uint8]
    view: str
    """Such as `PA`; empty where the file has none."""
    padding_HW: NDArray[np.bool_] | None
    """Where padding is; None where the file declares none."""
    tell: Callable[[], str]
    """Says of what values the grey was made, and how."""


def decode_dicom(data: bytes, rendering: Rendering) -> DecodedDicom:
    """Return the picture, shape (height, width).

    Args:
        data: A DICOM file, with its preamble.
        rendering: How stored values become grey.

    Raises:
        ImageError: The file is damaged or cut short, or holds what is not one grey picture of a radiograph's size.
        MrmStreamError: gdcm, which decodes compressed pixels, cannot be started.
        MemoryError: The machine is short of it: the image is not to blame.
    """
    try:
        with _quiet_pydicom():
            header, syntax, position = _read_header(data)
            layout = _check_layout(header)
            stored_HW = _stored_values(data, position, syntax, layout)
            values = np.arange(1 << 8 * stored_HW.itemsize) & ((1 << layout.bits_stored) - 1)
            if layout.signed:
                values -= (values >> (layout.bits_stored - 1)) << layout.bits_stored
            is_padding = padding_values(header, values, signed=layout.signed)
            pixels = DicomPixels(stored_HW, values, is_padding, header)
            grey = grey_levels(pixels, rendering)
            view = str(header.get("ViewPosition") or "").strip().upper()
    except (MrmStreamError, MemoryError):
        raise
    except Exception as error:  # pydicom lets struct, key, type and recursion errors of hostile files through.
        # Its messages repeat what is in the file, such as names: they end here.
        raise ImageError("image-damaged", f"the DICOM is damaged ({type(error).__name__})") from None
    padding_HW = is_padding[stored_HW] if is_padding.any() else None
    view = view if _VIEW.fullmatch(view) else ""
    return DecodedDicom(grey[stored_HW], view, padding_HW, partial(tell_values, pixels, rendering))


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Let pydicom neither warn nor log: it would do so for each file, and repeat what is in it."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_header(data: bytes) -> tuple[Dataset, str, int]:
    """Return what stands before the pixels, the transfer syntax, and where the element of the pixels begins."""
    file = BytesIO(data)
    file.seek(132)
    # The syntax first, by itself: `dcmread` would unpack a deflated file, of whatever size, before it could be refused.
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    _check_end(data, file.tell())
    syntax = str(meta.get("TransferSyntaxUID") or "")
    if syntax not in (*_NATIVE, *_JPEG, _RLE, *_GDCM):
        name = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "none, or no valid one"
        raise ImageError("image-encoding-unknown", f"DICOMs of this transfer syntax are not read: {name}")
    header = read_dataset(
        file,
        syntax == _NATIVE[0],
        True,
        stop_when=lambda tag, vr, length: tag.group >= _PIXEL_DATA[0],
        specific_tags=_TAGS,
    )
    _check_end(data, file.tell())
    return header, syntax, file.tell()


def _check_end(data: bytes, position: int) -> None:
    if len(data) < position + 12:
        raise ImageError("image-truncated", "the DICOM ends before its pixels")


def _integer(header: Dataset, keyword: str, default: int | None = None) -> int:
    value: Any = header.get(keyword, default)
    if value is None:
        raise ImageError("image-damaged", f"the DICOM lacks {keyword}")
    return int(value)


def _check_layout(header: Dataset) -> _Layout:
    """Return the layout, where it is that of one grey picture of a radiograph's size."""
    photometric = str(header.get("PhotometricInterpretation") or "").strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or _integer(header, "SamplesPerPixel", 1) != 1:
        raise ImageError("image-colour-space", "the DICOM is not grey (MONOCHROME1 or MONOCHROME2)")
    if _integer(header, "NumberOfFrames", 1) > 1:
        raise _several_frames()
    height, width = _integer(header, "Rows"), _integer(header, "Columns")
    check_size(height, width)
    allocated = _integer(header, "BitsAllocated")
    stored = _integer(header, "BitsStored", allocated)
    if allocated not in (8, 16):
        raise ImageError("image-encoding-unknown", f"the DICOM has {allocated} bits a pixel: 8 and 16 are read")
    if not 1 <= stored <= allocated or _integer(header, "HighBit", stored - 1) != stored - 1:
        raise ImageError("image-encoding-unknown", "the DICOM's values do not lie in the low bits of its pixels")
    signed = _integer(header, "PixelRepresentation", 0)
    if signed not in (0, 1):
        raise ImageError("image-damaged", "the DICOM does not say whether its values have a sign")
    return _Layout(height, width, allocated, stored, bool(signed))


def _stored_values(data: bytes, position: int, syntax: str, layout: _Layout) -> Stored:
    """Return the pixels as they are stored, whatever their bits mean, shape (height, width)."""
    if struct.unpack_from("<HH", data, position) != _PIXEL_DATA:
        raise ImageError("image-damaged", "the DICOM has no pixels, or none of integers")
    # A VR makes an odd number where an implicit element has its length, which is even.
    explicit = data[position + 4 : position + 6] in (b"OB", b"OW", b"UN")
    start = position + (12 if explicit else 8)
    (length,) = struct.unpack_from("<I", data, start - 4)
    if (length == _UNDEFINED) == (syntax in _NATIVE):
        raise ImageError("image-damaged", "the DICOM's pixels are not encoded as its transfer syntax says")
    shape_HW = (layout.height, layout.width)
    raw: Any
    if syntax in _NATIVE:
        raw = _native_bytes(data, start, length, layout)
    else:
        end, stream = _encapsulated(data, start)
        if syntax != _RLE:
            return _from_jpeg(stream, shape_HW) if syntax in _JPEG else _from_gdcm(stream, syntax, shape_HW)
        raw = _from_rle(data[start:end], layout)
    # A view of the file, not a copy.
    return np.frombuffer(raw, f"<u{layout.bits_allocated // 8}").reshape(shape_HW)


def _several_frames() -> ImageError:
    return ImageError("image-several-frames", "the DICOM has several frames: a radiograph is one")


def _native_bytes(data: bytes, start: int, length: int, layout: _Layout) -> memoryview:
    size = layout.height * layout.width * layout.bits_allocated // 8
    if length < size or len(data) < start + size:
        raise ImageError("image-truncated", "the DICOM has fewer pixels than its header says")
    if length >= 2 * size > 2 and length % size <= 1:  # a byte may make the length even
        raise _several_frames()
    # A row or so to spare is met with, and harmless; twice as much as the header says is another picture.
    if length >= 2 * size + 2:
        raise ImageError("image-damaged", "the DICOM has more pixels than its header says")
    return memoryview(data)[start : start + size]


def _encapsulated(data: bytes, start: int) -> tuple[int, bytes]:
    """Return where the items end, and their contents joined, less the first, which is a table of offsets."""
    items: list[bytes] = []
    while len(items) <= _FRAGMENTS_LIMIT and len(data) >= start + 8:
        group, element, length = struct.unpack_from("<HHI", data, start)
        start += 8
        if (group, element) == _SEQUENCE_END:
            stream = b"".join(items[1:])
            if sum(map(bool, map(_FRAME_START.match, items[1:]))) > 1 or _NEXT_FRAME.search(stream):
                raise _several_frames()
            return start, stream
        if (group, element) != _ITEM or length == _UNDEFINED:
            raise ImageError("image-damaged", "the DICOM's pixels do not lie in items")
        items.append(data[start : start + length])
        start += length
    if len(items) > _FRAGMENTS_LIMIT:
        raise ImageError("image-damaged", "the DICOM's pixels lie in too many pieces")
    raise ImageError("image-truncated", "the DICOM ends within its pixels")


def _from_jpeg(stream: bytes, shape_HW: tuple[int, int]) -> NDArray[np.uint8]:
    # By libjpeg-turbo, not gdcm: it is faster, strict, and keeps its head on damaged streams.
    if _check_stream(stream, shape_HW) != 8:
        # Encoded and decoded by gdcm, some values near black come out white; pydicom does not trust it here either.
        raise ImageError("image-encoding-unknown", "lossy JPEGs of more than 8 bits are not read")
    return decode_jpeg(stream)[1]


def _from_rle(items: bytes, layout: _Layout) -> Any:
    return RLELosslessDecoder.as_buffer(
        items,
        index=0,
        rows=layout.height,
        columns=layout.width,
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=layout.bits_allocated,
        bits_stored=layout.bits_stored,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
    )[0]


def _check_stream(stream: bytes, shape_HW: tuple[int, int]) -> int:
    """Return the bits of a value, by the stream's own header, once that says what the DICOM's header says.

    What becomes of a stream of another size is not left to the decoder: gdcm may write past its memory.
    """
    bits, *shape = stream_format(stream)
    if shape != [*shape_HW, 1]:
        raise ImageError("image-damaged", "the DICOM's header and its pixels differ in size or colour")
    if b"\xff\xd9" not in stream[-16:]:
        raise ImageError("image-truncated", "the DICOM's pixels are cut short")
    if not 8 <= bits <= 16:
        raise ImageError("image-encoding-unknown", f"compressed values of {bits} bits are not read")
    return bits


def _from_gdcm(stream: bytes, syntax: str, shape_HW: tuple[int, int]) -> Stored:
    bits = _check_stream(stream, shape_HW)
    raw = shared_decoder().decode(_GDCM[syntax], bits, shape_HW, stream)
    return np.frombuffer(raw, "u1" if bits == 8 else "<u2").reshape(shape_HW)
