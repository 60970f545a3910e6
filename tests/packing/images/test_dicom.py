"""What the values of a DICOM become: pixels of every encoding to grey, windows and tables, and the view."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi_lut

from mrm_stream.packing.images.dicom import decode_dicom
from mrm_stream.packing.images.encode import encode_image
from tests.packing.images.dicoms import LOSSLESS, code_of, dicom_of, grey_of, picture


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
