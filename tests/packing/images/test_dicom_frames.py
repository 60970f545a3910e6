"""DICOMs that are not one whole picture: several frames, other layouts, streams that are cut short or in pieces."""

from __future__ import annotations

import io
import time
import warnings
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.encaps import generate_frames

from mrm_stream.packing.images import checks
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image
from tests.packing.images.dicoms import GDCM_NAMES, LOSSLESS, code_of, dicom_of, grey_of, picture


def test_what_is_not_one_grey_radiograph_is_refused() -> None:
    stored = picture(20, 30, 12)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"PhotometricInterpretation": "RGB"}, "image-colour-space"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "image-colour-space"),
        ({"SamplesPerPixel": 3}, "image-colour-space"),
        ({"PhotometricInterpretation": None}, "image-colour-space"),
        ({"NumberOfFrames": 2}, "image-several-frames"),
        ({"BitsAllocated": 32}, "image-encoding-unknown"),
        ({"HighBit": 15}, "image-encoding-unknown"),
        ({"BitsStored": 17, "HighBit": 16}, "image-encoding-unknown"),
        ({"Rows": None}, "image-damaged"),
        ({"Rows": 0}, "image-damaged"),
        ({"Rows": [20, 20]}, "image-damaged"),
        ({"PixelRepresentation": 2}, "image-damaged"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "image-damaged"),
        ({"RescaleSlope": "nan"}, "image-damaged"),
        ({"RescaleIntercept": "nan"}, "image-damaged"),
        ({"RescaleIntercept": "1e999"}, "image-damaged"),
        ({"WindowCenter": "inf", "WindowWidth": 9}, "image-damaged"),
        ({"VOILUTFunction": "CURVED", "WindowCenter": 9, "WindowWidth": 9}, "image-encoding-unknown"),
        ({"Rows": 21}, "image-truncated"),
        ({"Rows": 9}, "image-damaged"),
    ]
    for elements, code in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = dicom_of(stored, 12, **elements)
        assert code_of(data) == code, elements
        if "Rescale" in "".join(elements):
            assert code_of(data, rendering="equalized") == code, elements
    for syntax in (uid.ExplicitVRBigEndian, uid.HTJ2K, uid.MPEG2MPML, "1.2.3.4"):
        data = dicom_of(stored, 12).replace(
            uid.ExplicitVRLittleEndian.encode() + b"\0", syntax.encode().ljust(20, b"\0")[:20]
        )
        assert code_of(data) == "image-encoding-unknown", syntax


@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("number", [None, 1], ids=["no NumberOfFrames", "NumberOfFrames 1"])
@pytest.mark.parametrize("bits", [8, 12])
def test_several_frames_are_found_without_their_number(frames: int, number: int | None, bits: int) -> None:
    # Of an odd number of bytes too, where a single frame is followed by one that fills up.
    for shape in ((20, 30), (21, 31)):
        stored = picture(*shape, bits)
        more: dict[str, Any] = {"NumberOfFrames": number}
        several = b"".join([stored.tobytes()] * frames)
        native = dicom_of(stored, bits, PixelData=several + b"\0" * (len(several) % 2), **more)
        assert code_of(native) == "image-several-frames"
        one = dicom_of(stored, bits, PixelData=stored.tobytes() + b"\0" * (stored.nbytes % 2), **more)
        np.testing.assert_array_equal(grey_of(one), grey_of(dicom_of(stored, bits)))


@pytest.mark.parametrize("syntax", [uid.RLELossless, *GDCM_NAMES, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_several_compressed_frames_are_found_without_their_number(syntax: uid.UID) -> None:
    stored = picture(50, 60, 8)
    if syntax == uid.JPEGBaseline8Bit:
        frame = simplejpeg.encode_jpeg(np.ascontiguousarray(stored[..., None]), 95, "GRAY", "Gray")
    else:
        (frame,) = generate_frames(dcmread(io.BytesIO(dicom_of(stored, 8, syntax))).PixelData, number_of_frames=1)
    frame += b"\0" * (len(frame) % 2)
    grey = grey_of(encapsulated(stored, syntax, frame))
    assert code_of(encapsulated(stored, syntax, frame, frame)) == "image-several-frames"
    # Each frame in pieces; both in one piece.
    half = len(frame) // 4 * 2
    pieces = (frame[:half], frame[half:])
    assert code_of(encapsulated(stored, syntax, *pieces, *pieces)) == "image-several-frames"
    np.testing.assert_array_equal(grey_of(encapsulated(stored, syntax, *pieces)), grey)
    if syntax != uid.RLELossless:
        assert code_of(encapsulated(stored, syntax, frame + frame)) == "image-several-frames"


def encapsulated(stored: NDArray[Any], syntax: uid.UID, *items: bytes) -> bytes:
    """A DICOM of 8 bits whose pixels lie in these items, after an empty table of offsets."""
    data = dicom_of(stored, 8, syntax, stream=bytes(2))
    framed = b"".join(b"\xfe\xff\0\xe0" + len(item).to_bytes(4, "little") + item for item in (b"", *items))
    return data[: data.index(b"\xfe\xff\0\xe0")] + framed + b"\xfe\xff\xdd\xe0" + bytes(4)


def test_a_dicom_without_its_preamble_is_named() -> None:
    data = dicom_of(picture(20, 30, 12), 12)[132:]
    with pytest.raises(ImageError, match="preamble") as caught:
        encode_image(data, short_side=64, quality=95)
    assert caught.value.code == "image-not-an-image"


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_sizes_are_bounded_before_memory_is_taken(syntax: uid.UID, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom_of(picture(50, 60, 12), 12, syntax)
    huge = data
    for tag, side in ((b"\x28\0\x10\0", 50), (b"\x28\0\x11\0", 60)):
        explicit = syntax != uid.ImplicitVRLittleEndian
        element = tag + (b"US\x02\0" if explicit else b"\x02\0\0\0") + side.to_bytes(2, "little")
        assert huge.count(element) == 1
        huge = huge.replace(element, element[:-2] + b"\xff\xff")
    grey_of(data)
    start = time.perf_counter()
    assert code_of(huge) == "image-too-large"
    assert time.perf_counter() - start < 0.1
    monkeypatch.setattr(checks, "MAX_SIDE", 59)
    assert code_of(data) == "image-too-large"


def test_a_deflated_dicom_is_refused_packed() -> None:
    data = dicom_of(np.zeros((2000, 2000), np.uint16), 12, uid.DeflatedExplicitVRLittleEndian)
    assert len(data) < 100_000
    assert code_of(data) == "image-encoding-unknown"


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_wherever_a_dicom_is_cut_short_it_is_found(syntax: uid.UID) -> None:
    data = dicom_of(picture(50, 60, 12), 12, syntax)
    start = data.index(b"\xe0\x7f\x10\0")
    for cut in [*range(140, start, 37), *range(start, len(data) - 1, 211), len(data) - 1, len(data) - 9]:
        assert code_of(data[:cut]) == "image-truncated", cut


@pytest.mark.parametrize("syntax", GDCM_NAMES, ids=lambda syntax: syntax.name)
def test_a_stream_must_be_what_the_header_says(syntax: uid.UID) -> None:
    data = dicom_of(picture(50, 60, 12), 12, syntax)
    for tag, side in ((b"\x28\0\x10\0", 50), (b"\x28\0\x11\0", 60)):
        element = tag + b"US\x02\0" + side.to_bytes(2, "little")
        other = data.replace(element, element[:-2] + (side - 1).to_bytes(2, "little"))
        assert other != data
        assert code_of(other) == "image-damaged"
    end = data.rindex(b"\xff\xd9")
    # Whole as a file; the stream within is not.
    assert code_of(data[: end - 400] + bytes(400) + b"\0\0" + data[end + 2 :]) == "image-truncated"


def test_a_stream_with_a_hole_is_found_where_the_decoder_says_so() -> None:
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLossless):
        data = bytearray(dicom_of(picture(50, 60, 12), 12, syntax))
        middle = (data.index(b"\xff\xd8\xff") + data.rindex(b"\xff\xd9")) // 2
        data[middle : middle + 300] = bytes(300)
        assert code_of(bytes(data)) == "image-damaged"


def test_a_stream_may_lie_in_pieces_but_not_in_endless_ones() -> None:
    data = dicom_of(picture(50, 60, 12), 12, uid.JPEGLSLossless)
    start, end = data.index(b"\xff\xd8\xff"), data.rindex(b"\xff\xd9") + 2
    stream = data[start : end + (end - start) % 2]
    for pieces in (1, 7):
        size = -(-len(stream) // pieces) // 2 * 2 + 2
        items = [stream[place : place + size] for place in range(0, len(stream), size)]
        cut = [b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in (b"", *items)]
        whole = data[: start - 16] + b"".join(cut) + b"\xfe\xff\xdd\xe0" + bytes(4)
        np.testing.assert_array_equal(grey_of(whole), grey_of(data))
    empty = b"\xfe\xff\x00\xe0" + bytes(4)
    assert code_of(data[: start - 8] + empty * 20_000 + data[start - 8 :]) == "image-damaged"


def test_a_stream_cut_short_but_ended_is_found() -> None:
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLossless, uid.JPEGLSLossless):
        stored = picture(50, 60, 12)
        data = dicom_of(stored, 12, syntax)
        start, end = data.index(b"\xff\xd8\xff"), data.rindex(b"\xff\xd9")
        grey_of(dicom_of(stored, 12, syntax, stream=data[start : end + 2]))
        cut = data[start : start + (end - start) // 2] + b"\xff\xd9"
        assert code_of(dicom_of(stored, 12, syntax, stream=cut)) in ("image-truncated", "image-damaged")


def test_an_empty_comment_before_the_frame_is_passed_over() -> None:
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        stored = picture(50, 60, 8)
        data = dicom_of(stored, 8, syntax)
        start, end = data.index(b"\xff\xd8\xff"), data.rindex(b"\xff\xd9") + 2
        stream = data[start : start + 2] + b"\xff\xfe\x00\x02" + data[start + 2 : end]
        np.testing.assert_array_equal(grey_of(dicom_of(stored, 8, syntax, stream=stream)), grey_of(data))


def test_bytes_of_a_row_or_so_beyond_the_picture_are_passed_over() -> None:
    stored = picture(20, 30, 12)
    spare = dicom_of(stored, 12, PixelData=stored.tobytes() + b"\0" * 120)
    assert np.array_equal(grey_of(spare), grey_of(dicom_of(stored, 12)))
