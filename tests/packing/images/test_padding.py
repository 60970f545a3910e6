"""Padding (DICOM PS3.3, C.7.5.1.1.2): no part of the picture, in whatever form the header gives it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from mrm_stream.formats.options import Rendering
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.dicom import decode_dicom
from tests.packing.images.dicoms import dicom_of, grey_of, picture

BORDER = 3
PADDING_VALUE, RANGE_LIMIT = 0x00280120, 0x00280121
SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
PHOTOMETRIC = pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])


def framed(inside_HW: NDArray[Any], *values: int) -> NDArray[Any]:
    """The picture in a frame of these values, in turn."""
    framed_HW = np.pad(inside_HW, BORDER)
    is_frame_HW = np.pad(np.zeros(inside_HW.shape, bool), BORDER, constant_values=True)
    framed_HW[is_frame_HW] = np.resize(np.array(values, inside_HW.dtype), is_frame_HW.sum())
    return framed_HW


def check(framed_HW: NDArray[Any], inside_HW: NDArray[Any], bits: int, padding: dict[str, Any], **more: Any) -> None:
    """The frame is black, and the picture within is what it is without a frame."""
    syntax = more.pop("syntax", uid.ExplicitVRLittleEndian)
    rendering: Rendering = more.pop("rendering", "window")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values of another VR
        data = dicom_of(framed_HW, bits, syntax, **more, **padding)
    expected_HW = decode_dicom(dicom_of(inside_HW, bits, **more), rendering).grey_HW
    assert np.ptp(expected_HW) > 100
    found_HW = decode_dicom(data, rendering).grey_HW
    within = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    np.testing.assert_array_equal(found_HW[within], expected_HW)
    assert np.pad(expected_HW, BORDER).sum() == found_HW.sum(), "the frame is not black"


def curve(first: int) -> Dataset:
    """A VOI LUT of 2,048 entries from a value on."""
    table = Dataset()
    table.add_new(0x00283002, "SS" if first < 0 else "US", [2048, first, 12])
    table.add_new(0x00283006, "OW", np.arange(0, 4096, 2, dtype="<u2").tobytes())
    return table


@SIGNED
@PHOTOMETRIC
@pytest.mark.parametrize("place", ["far below", "just below", "just above", "far above"])
@pytest.mark.parametrize("is_range", [False, True], ids=["one value", "a range"])
@pytest.mark.parametrize("rendering", ["window", "equalized"])
def test_padding_takes_no_part_and_is_black(
    signed: bool, photometric: str, place: str, is_range: bool, rendering: Rendering
) -> None:
    low = -500 if signed else 3000
    inside_HW = (picture(40, 50, 10).astype(np.int32) + low).astype(np.int16 if signed else np.uint16)
    lowest, highest = (-32768, 32767) if signed else (0, 65535)
    ends = {
        "far below": (lowest, lowest + 90),
        "just below": (low - 60, low - 1),
        "just above": (low + 1024, low + 1200),
        "far above": (highest - 90, highest),
    }[place]
    # A range is given from the value at the end of all values towards the picture.
    ends = ends if "below" in place else ends[::-1]
    values = (ends[0], ends[1], sum(ends) // 2) if is_range else (ends[0],)
    padding = {"PixelPaddingValue": ends[0]} | ({"PixelPaddingRangeLimit": ends[1]} if is_range else {})
    shown: list[dict[str, Any]] = [
        {},
        {"RescaleSlope": "1.5", "RescaleIntercept": "-7"},
        {"RescaleSlope": "-1", "RescaleIntercept": "4000"},
        {"WindowCenter": low + 500, "WindowWidth": 900},
        {"WindowCenter": low + 500, "WindowWidth": 300, "VOILUTFunction": "SIGMOID"},
        {"VOILUTSequence": [curve(low - 400)]},
    ]
    for number, more in enumerate(shown):
        syntax = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)[number % 2]
        how = {"PhotometricInterpretation": photometric, "syntax": syntax, "rendering": rendering}
        check(framed(inside_HW, *values), inside_HW, 16, padding, **more, **how)


@SIGNED
@PHOTOMETRIC
@pytest.mark.parametrize("is_range", [False, True], ids=["one value", "a range"])
def test_either_sign_of_the_element_is_read(signed: bool, photometric: str, is_range: bool) -> None:
    inside_HW = picture(40, 50, 12, signed=signed)
    dtype = inside_HW.dtype
    ends = (-20000, -19000) if signed else (60000, 61000)
    ends = ends[::-1] if photometric == "MONOCHROME1" else ends
    for vr in ("US", "SS", "IS", "UL", "SL"):
        low = 0 if vr in ("US", "UL") else -(1 << 15)
        first, last = ((end - low) % (1 << 16) + low for end in ends)
        padding: dict[str, Any] = {"PixelPaddingValue": DataElement(PADDING_VALUE, vr, first)}
        if is_range:
            padding["PixelPaddingRangeLimit"] = DataElement(RANGE_LIMIT, vr, last)
        framed_HW = framed(inside_HW.astype(dtype), *(ends if is_range else ends[:1]))
        check(framed_HW, inside_HW, 16, padding, PhotometricInterpretation=photometric)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless])
@PHOTOMETRIC
def test_padding_within_the_bits_of_the_picture(syntax: uid.UID, photometric: str) -> None:
    inside_HW = (picture(40, 50, 10) + 500).astype(np.uint16)
    for value, limit in ((0, None), (4095, None), (0, 40), (4095, 4000), (0, 0)):
        padding = {"PixelPaddingValue": value} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
        framed_HW = framed(inside_HW, value, value if limit is None else limit)
        check(framed_HW, inside_HW, 12, padding, PhotometricInterpretation=photometric, syntax=syntax)
    small_HW = np.clip(picture(40, 50, 8), 60, 190)
    for value in (0, 255):
        padding = {"PixelPaddingValue": value}
        check(framed(small_HW, value), small_HW, 8, padding, PhotometricInterpretation=photometric)


@pytest.mark.parametrize(
    ("signed", "word", "written"),
    [
        (True, -32768, -32768),  # 12 bits of it would be 0, which is a value of the picture
        (True, -32768, 32768),
        (True, -2000, 63536),
        (True, 0x0830, 0x0830),  # without its sign in the word, as compressed streams have it
        (True, 0x0830, -2000),
        (False, 0xF830, 63536),
        (False, 0xF830, -2000),
        (False, 0xFFFF, -1),
        (False, 0x8000, 32768),
    ],
)
def test_padding_told_by_bits_that_the_values_do_not_have(signed: bool, word: int, written: int) -> None:
    inside_HW = picture(40, 50, 12, signed=signed)
    inside_HW = np.clip(inside_HW, -1900, 1900) if signed else np.clip(inside_HW, 100, 4000)
    for vr in ("US", "SS"):
        low = 0 if vr == "US" else -(1 << 15)
        element = DataElement(PADDING_VALUE, vr, (written - low) % (1 << 16) + low)
        check(framed(inside_HW, word), inside_HW, 12, {"PixelPaddingValue": element})


def test_a_byte_of_padding_is_read_with_either_sign() -> None:
    inside_HW = np.clip(picture(40, 50, 8), 60, 190)
    check(framed(inside_HW, 255), inside_HW, 8, {"PixelPaddingValue": DataElement(PADDING_VALUE, "SS", -1)})
    signed_HW = np.clip(picture(40, 50, 8, signed=True), -80, 80)
    for value in (-128, 128):
        vr = "SS" if value < 0 else "US"
        check(framed(signed_HW, -128), signed_HW, 8, {"PixelPaddingValue": DataElement(PADDING_VALUE, vr, value)})
    # Of two bytes, it is none that a pixel could have.
    plain_HW = picture(40, 50, 8)
    element = DataElement(PADDING_VALUE, "US", 0x0100)
    np.testing.assert_array_equal(grey_of(dicom_of(plain_HW, 8, PixelPaddingValue=element)), plain_HW)


def test_padding_is_told_before_the_modality_lut() -> None:
    inside_HW = (picture(40, 50, 10) + 500).astype(np.uint16)
    table = Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 16])
    table.add_new(0x00283006, "OW", (np.arange(4096, dtype="<u2") * 3).tobytes())
    check(framed(inside_HW, 4095), inside_HW, 12, {"PixelPaddingValue": 4095}, ModalityLUTSequence=[table])


def test_a_padding_that_says_nothing_changes_nothing() -> None:
    stored_HW = picture(40, 50, 12)
    plain_HW = grey_of(dicom_of(stored_HW, 12))
    nothing: list[dict[str, Any]] = [
        {"PixelPaddingValue": DataElement(PADDING_VALUE, "US", None)},
        {"PixelPaddingValue": 60000},
        # A limit alone limits nothing.
        {"PixelPaddingRangeLimit": 4000},
    ]
    for elements in nothing:
        np.testing.assert_array_equal(grey_of(dicom_of(stored_HW, 12, **elements)), plain_HW)
    # Writers that know only one form leave the sign of the pixels out: they have none.
    bare = dicom_of(stored_HW, 12, uid.ImplicitVRLittleEndian, PixelRepresentation=0, PixelPaddingValue=60000)
    representation = b"\x28\0\x03\x01\x02\0\0\0\0\0"
    assert bare.count(representation) == 1
    np.testing.assert_array_equal(grey_of(bare.replace(representation, b"")), plain_HW)


@pytest.mark.parametrize("rendering", ["window", "equalized"])
@pytest.mark.parametrize("more", [{}, {"WindowCenter": 5, "WindowWidth": 9}], ids=["no window", "a window"])
@PHOTOMETRIC
def test_a_picture_of_nothing_but_padding_is_black(rendering: Rendering, more: Any, photometric: str) -> None:
    data = dicom_of(
        np.full((40, 50), 7, np.uint16), 12, PixelPaddingValue=7, PhotometricInterpretation=photometric, **more
    )
    assert decode_dicom(data, rendering).grey_HW.max() == 0


def test_a_padding_that_is_no_number_is_damage() -> None:
    data = dicom_of(picture(40, 50, 12), 12, PixelPaddingValue=DataElement(PADDING_VALUE, "LO", "none"))
    with pytest.raises(ImageError) as caught:
        grey_of(data)
    assert caught.value.code == "image-damaged"
