from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_voi_lut

from mrm_stream.errors import MrmStreamError
from mrm_stream.packing.images import checks, gdcm_process
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.dicom import decode_dicom
from mrm_stream.packing.images.encode import encode_image
from tests.packing.images.dicoms import GDCM_NAMES, code_of, dicom_of, grey_of, picture

LOSSLESS = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless, *GDCM_NAMES]


def linear(stored: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Black at `low`, white at `high`, rounded half up."""
    return np.floor(np.clip((stored.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (12, True), (14, False), (16, False), (16, True)]
)
def test_lossless_pixels_are_exact(syntax: uid.UID, bits: int, signed: bool) -> None:
    stored = picture(62, 83, bits, signed=signed)
    # Two windows, each steep enough that neighbouring values give different greys, and in different places.
    for center in (40.0, 100.0):
        data = dicom_of(stored, bits, syntax, WindowCenter=center, WindowWidth=129.0)
        expected = linear(stored, center - 64.5, center + 63.5)
        assert len(np.unique(expected)) > 60 or bits > 12
        np.testing.assert_array_equal(grey_of(data), expected)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], ids=lambda syntax: syntax.name)
def test_lossy_jpeg_is_near(syntax: uid.UID) -> None:
    stored = picture(64, 80, 8)
    stream = simplejpeg.encode_jpeg(np.ascontiguousarray(stored[..., None]), 98, "GRAY", "Gray")
    data = dicom_of(stored, 8, syntax, stream=stream, WindowCenter=128, WindowWidth=256)
    # Quality 98 quantizes by 2 at most in the low frequencies.
    assert np.abs(grey_of(data).astype(int) - stored).max() <= 6
    for end in (b"", b"\xff\xd9"):
        assert code_of(dicom_of(stored, 8, syntax, stream=stream[: len(stream) // 2] + end)) == "image-truncated"


def test_unused_high_bits_mean_nothing() -> None:
    for signed in (False, True):
        stored = picture(40, 50, 12, signed=signed)
        dirty = (stored.view(np.uint16) & 0x0FFF) | (np.arange(50, dtype=np.uint16) % 16 << 12)
        dirtied = dicom_of(dirty.view(stored.dtype), 12)
        np.testing.assert_array_equal(grey_of(dirtied), grey_of(dicom_of(stored, 12)))


def test_without_a_window_the_values_in_use_fill_the_range() -> None:
    stored = picture(40, 50, 10) + np.uint16(300)
    expected = linear(stored, int(stored.min()), int(stored.max()))
    np.testing.assert_array_equal(grey_of(dicom_of(stored, 12)), expected)
    # A window that is none counts as none.
    np.testing.assert_array_equal(grey_of(dicom_of(stored, 12, WindowCenter=1, WindowWidth=0)), expected)
    assert grey_of(dicom_of(np.full((8, 8), 7, np.uint16), 12)).max() == 0


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str | None) -> None:
    stored = picture(60, 70, 12)
    data = dicom_of(
        stored,
        12,
        RescaleSlope="1.7",
        RescaleIntercept="-1024",
        WindowCenter=["1500.5", "1"],
        WindowWidth=["2200", "2"],
        VOILUTFunction=function,
    )
    header = Dataset()
    header.WindowCenter, header.WindowWidth = 1500.5, 2200
    header.BitsStored, header.PixelRepresentation, header.PhotometricInterpretation = 16, 0, "MONOCHROME2"
    if function is not None:
        header.VOILUTFunction = function
    shown = apply_voi_lut(stored * 1.7 - 1024, header)
    expected = np.floor(shown / 65535 * 255 + 0.5)
    difference = np.abs(grey_of(data) - expected)
    # Where a value falls on a half, the two may round apart.
    assert difference.max() <= 1
    assert difference.mean() < 0.001


def table_of(levels: NDArray[Any], first: int, bits: int, entries: int | None = None) -> Dataset:
    table = Dataset()
    number = levels.size % 65536 if entries is None else entries
    table.add_new(0x00283002, "SS" if first < 0 else "US", [number, first, bits])
    table.add_new(0x00283006, "OW", levels.astype("<u2").tobytes())
    return table


def test_tables_go_before_rescaling_and_windows() -> None:
    stored = picture(60, 70, 10)
    modality = np.arange(1024) * 3
    curve = np.rint(np.linspace(0, 1, 2000) ** 2 * 4095)
    data = dicom_of(
        stored,
        10,
        ModalityLUTSequence=[table_of(modality, 0, 16)],
        RescaleSlope=None,
        VOILUTSequence=[table_of(curve, 500, 12)],
        WindowCenter=1,
        WindowWidth=2,
    )
    shown = curve[np.clip(stored.astype(int) * 3 - 500, 0, 1999)]
    np.testing.assert_array_equal(grey_of(data), np.floor(shown * 255 / 4095 + 0.5))


def test_a_table_whose_first_value_is_negative() -> None:
    stored = picture(60, 70, 8, signed=True).astype(np.int16)
    curve = np.linspace(0, 255, 200).astype(int)
    expected = curve[np.clip(stored.astype(int) + 100, 0, 199)]
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        # The second as writers give it that take no heed of the sign.
        for first in (-100, 65536 - 100):
            data = dicom_of(stored, 9, syntax, VOILUTSequence=[table_of(curve, first, 8)])
            np.testing.assert_array_equal(grey_of(data), expected)


def test_a_table_of_all_values_with_a_sign_begins_at_the_least() -> None:
    stored = picture(60, 70, 16, signed=True)
    curve = (np.arange(65536) ** 2 >> 16).astype(np.uint16)
    expected = np.floor(curve[stored.astype(int) + 32768] * 255.0 / 65535 + 0.5)
    assert np.unique(expected).size > 200
    for first in (-32768, 32768):  # the second read without its sign
        np.testing.assert_array_equal(
            grey_of(dicom_of(stored, 16, VOILUTSequence=[table_of(curve, first, 16)])), expected
        )


def test_a_table_of_all_values_in_both_monochromes() -> None:
    stored = picture(60, 70, 16)
    curve = (np.arange(65536) ** 2 >> 16).astype(np.uint16)
    expected = np.floor(curve[stored] * 255.0 / 65535 + 0.5)
    positive = dicom_of(stored, 16, VOILUTSequence=[table_of(curve, 0, 16)])
    np.testing.assert_array_equal(grey_of(positive), expected)
    negative = dicom_of(
        stored, 16, VOILUTSequence=[table_of(65535 - curve, 0, 16)], PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_array_equal(grey_of(negative), expected)
    for table in (table_of(curve[:50], 0, 16, 60), table_of(curve, 0, 0), table_of(curve, 0, 17)):
        assert code_of(dicom_of(stored, 16, VOILUTSequence=[table])) == "image-damaged"


@pytest.mark.parametrize("rendering", ["window", "equalized"])
@pytest.mark.parametrize("windowed", [False, True])
def test_both_monochromes_of_a_picture_give_the_same_jpeg(rendering: Any, windowed: bool) -> None:
    stored = picture(150, 130, 12)
    window: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 3001} if windowed else {}
    # The window of the negative has its centre mirrored, and its borders belong to the other side.
    mirrored: dict[str, Any] = {"WindowCenter": 4095 - 2048 + 1, "WindowWidth": 3001} if windowed else {}
    positive = dicom_of(stored, 12, **window)
    negative = dicom_of(4095 - stored, 12, PhotometricInterpretation="MONOCHROME1", **mirrored)
    first, second, other = (
        encode_image(data, short_side=64, quality=95, rendering=rendering).jpeg
        for data in (positive, negative, dicom_of(4095 - stored, 12, **mirrored))
    )
    assert first == second != other


def test_equalized_is_what_opencv_makes() -> None:
    stored = (picture(300, 280, 12) ** 2.0 / 4500).astype(np.uint16) + np.uint16(90)
    low, high = int(stored.min()), int(stored.max())
    stretched = ((stored.astype(np.int64) - low) * 255 // (high - low)).astype(np.uint8)
    negative = (low + high - stored.astype(np.int64)).astype(np.uint16)
    for photometric, shown in (("MONOCHROME2", stored), ("MONOCHROME1", negative)):
        data = dicom_of(shown, 12, PhotometricInterpretation=photometric, WindowCenter=5, WindowWidth=3)
        grey = decode_dicom(data, "equalized").grey_HW
        difference = np.abs(grey.astype(int) - np.asarray(cv2.equalizeHist(stretched)))
        assert difference.max() <= 1
        assert difference.mean() < 0.02
        assert np.abs(grey.astype(int) - stretched).mean() > 5
    assert decode_dicom(dicom_of(np.full((8, 8), 7, np.uint16), 12), "equalized").grey_HW.max() == 0


def test_a_falling_rescaling_turns_the_picture() -> None:
    stored = picture(60, 50, 12)
    falling = dicom_of(stored, 12, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_array_equal(grey_of(falling), grey_of(dicom_of(4095 - stored, 12)))
    np.testing.assert_array_equal(
        decode_dicom(falling, "equalized").grey_HW, decode_dicom(dicom_of(4095 - stored, 12), "equalized").grey_HW
    )


@pytest.mark.parametrize(
    ("written", "view"), [("PA", "PA"), (" ll ", "LL"), (None, ""), ("", ""), ("A report, by mistake.", "")]
)
def test_the_view_comes_along_and_nothing_is_enlarged(written: str | None, view: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dicom_of(picture(20, 30, 12), 12, ViewPosition=written)
    for short_side, size in ((16, (16, 24)), (20, (20, 30)), (64, (20, 30))):
        encoded = encode_image(data, short_side=short_side, quality=95)
        assert (encoded.view, encoded.original_size, encoded.size) == (view, (20, 30), size)


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


def test_nothing_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    for syntax in LOSSLESS:
        data = bytearray(dicom_of(picture(50, 60, 12), 12, syntax, SpecificCharacterSet="ISO_IR 100"))
        data = data.replace(b"ISO_IR 100", b"A DISEASE ")
        with pytest.warns(UserWarning, match="A DISEASE"):
            dcmread(io.BytesIO(data))
        capfd.readouterr()
        recwarn.clear()
        caplog.clear()
        middle = data.index(b"\xe0\x7f\x10\0") + 400
        data[middle : middle + 200] = bytes(200)
        with contextlib.suppress(ImageError):
            encode_image(bytes(data), short_side=64, quality=95)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
        assert not recwarn.list


def test_gdcm_that_does_not_start_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom_of(picture(50, 60, 12), 12, uid.JPEGLSLossless)
    gdcm_process.shared_decoder.cache_clear()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MrmStreamError, match="gdcm") as caught:
        grey_of(data)
    assert not isinstance(caught.value, ImageError)
    monkeypatch.undo()
    grey_of(data)


def test_a_decoder_that_is_killed_is_no_damage_and_is_started_again() -> None:
    # Large enough for its stream not to fit into a pipe: the writer is there when the reader goes.
    data = dicom_of(picture(500, 600, 12), 12, uid.JPEGLSLossless)
    grey = grey_of(data)
    process = gdcm_process.shared_decoder()._process
    assert process is not None
    process.kill()
    process.wait()
    np.testing.assert_array_equal(grey_of(data), grey)
    process = gdcm_process.shared_decoder()._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    with pytest.raises(MrmStreamError, match="killed") as caught:
        grey_of(data)
    assert not isinstance(caught.value, ImageError)
    np.testing.assert_array_equal(grey_of(data), grey)


def test_a_decoder_that_crashes_or_never_ends_is_damage() -> None:
    data = dicom_of(picture(500, 600, 12), 12, uid.JPEGLSLossless)
    grey = grey_of(data)
    for end in (signal.SIGSEGV, signal.SIGABRT, signal.SIGPROF):
        process = gdcm_process.shared_decoder()._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

        def crash(process: subprocess.Popen[bytes] = process, end: signal.Signals = end) -> None:
            process.send_signal(end)
            process.send_signal(signal.SIGCONT)

        threading.Timer(0.2, crash).start()
        assert code_of(data) == "image-damaged"
        np.testing.assert_array_equal(grey_of(data), grey)


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = """
        class Anything:
            def __getattr__(self, name): return self
            def __call__(self, *_): return self
            def __iter__(self): return iter(())
            def GetBuffer(self):
                while True: pass

        def __getattr__(name): return Anything()
    """
    (tmp_path / "gdcm.py").write_text(textwrap.dedent(endless))
    data = dicom_of(picture(50, 60, 12), 12, uid.JPEGLSLossless)
    gdcm_process.shared_decoder()._stop()
    monkeypatch.syspath_prepend(tmp_path)
    watch = threading.Timer(60, lambda: gdcm_process.shared_decoder()._stop())
    watch.start()
    try:
        start = os.times().children_user
        assert code_of(data) == "image-damaged"
        assert 1.5 < os.times().children_user - start < 4
    finally:
        watch.cancel()
    monkeypatch.undo()
    grey_of(data)


def test_the_decoder_ends_with_its_parent() -> None:
    code = (
        "import os, sys; from pathlib import Path; from mrm_stream.packing.images import gdcm_process; "
        "print(gdcm_process.shared_decoder()._start().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # `run` returns when stdout is closed, which the decoder shares with nobody; it sees its stdin close.
    process = Path("/proc") / run.stdout.strip()
    deadline = time.monotonic() + 10
    while process.exists() and "(zombie)" not in (process / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FUZZ = """
import json, sys, time
import numpy as np
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image

data, cases, seed = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
start, codes, slowest = data.index(b"\\xe0\\x7f\\x10\\0"), {}, 0.0
for case in range(cases):
    draws = np.random.default_rng([seed, case])
    damaged = bytearray(data)
    if case % 5 == 0:
        damaged = damaged[: draws.integers(132, len(data))]
    else:
        # Headers are where one bit matters most: the DICOM's, the stream's, then all of it.
        low, high = ((132, start), (start, start + 300), (start, len(data)), (0, len(data)))[case % 4]
        for _ in range(draws.integers(1, 4)):
            damaged[draws.integers(low, min(high, len(data)))] ^= 1 << int(draws.integers(8))
    began = time.perf_counter()
    try:
        encode_image(bytes(damaged), short_side=32, quality=90, rendering=("window", "equalized")[case % 2])
        code = "read"
    except ImageError as error:
        code = error.code
    codes[code] = codes.get(code, 0) + 1
    slowest = max(slowest, time.perf_counter() - began)
print(json.dumps({"codes": codes, "slowest": slowest}))
"""


def fuzz(path: Path, cases: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-c", FUZZ, str(path), str(cases), str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    outcome: dict[str, Any] = json.loads(run.stdout)
    return outcome


def check_fuzz(tmp_path: Path, syntax: uid.UID, cases: int, seed: int) -> None:
    path = tmp_path / "radiograph.dcm"
    stored, bits, stream = picture(50, 60, 12), 12, None
    if syntax == uid.JPEGBaseline8Bit:
        stored, bits = picture(50, 60, 8), 8
        stream = simplejpeg.encode_jpeg(np.ascontiguousarray(stored[..., None]), 95, "GRAY", "Gray")
    path.write_bytes(dicom_of(stored, bits, syntax, stream=stream, ViewPosition="PA"))
    outcome = fuzz(path, cases, seed)
    assert outcome["slowest"] < 5
    assert sum(outcome["codes"].values()) == cases
    assert outcome["codes"]["image-truncated"] >= cases // 10
    assert set(outcome["codes"]) > {"image-truncated", "read"}


@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_damage_is_an_image_error_and_no_more(syntax: uid.UID, tmp_path: Path) -> None:
    check_fuzz(tmp_path, syntax, 80, 0)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_damage_of_every_kind_is_an_image_error(syntax: uid.UID, seed: int, tmp_path: Path) -> None:
    check_fuzz(tmp_path, syntax, 500, seed)


def test_packing_starts_without_pydicom() -> None:
    code = "import sys, mrm_stream.packing.pack; sys.exit('pydicom' in sys.modules or 'gdcm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


Texture = Callable[[int, int, int], NDArray[np.uint8]]


def test_a_radiograph_of_mimic_s_size_takes_little_more_than_its_decoding(texture: Texture) -> None:
    stored = texture(3056, 2544, 0).astype(np.uint16) * np.uint16(16)
    data = dicom_of(stored, 12, WindowCenter=2048, WindowWidth=4096)
    grey_of(data)
    start = time.process_time()
    grey_of(data)
    # 20 ms were measured: a look-up a pixel. Floating point a pixel takes ten times that.
    assert time.process_time() - start < 0.15


def test_bytes_of_a_row_or_so_beyond_the_picture_are_passed_over() -> None:
    stored = picture(20, 30, 12)
    spare = dicom_of(stored, 12, PixelData=stored.tobytes() + b"\0" * 120)
    assert np.array_equal(grey_of(spare), grey_of(dicom_of(stored, 12)))
