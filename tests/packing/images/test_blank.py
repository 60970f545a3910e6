"""Images with nothing on them are refused by a rule, and kept where that is asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.packing.images.blank import BLANK_LEVELS
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image
from tests.packing.images.dicoms import dicom_of, picture
from tests.packing.images.pngs import png_16

CONSTANT = np.full((80, 100), 99, np.uint8)


def noise(spread: int, *, top: int = 0) -> NDArray[np.uint8]:
    """So many levels, each equally often, from 60 on; then so many pixels of white."""
    noise_HW = (60 + np.random.default_rng(0).permutation(8000) % spread).astype(np.uint8)
    noise_HW[:top] = 255
    return noise_HW.reshape(80, 100)


def jpeg(grey_HW: NDArray[np.uint8]) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(grey_HW[..., None]), 100, "GRAY", "Gray")
    return content


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def grey_png(grey_HW: NDArray[np.uint8]) -> bytes:
    return png(Image.fromarray(grey_HW))


def alpha_alone() -> bytes:
    image = Image.new("RGB", (100, 80), (0, 0, 0))
    image.putalpha(Image.fromarray(picture(80, 100, 8)))
    return png(image)


STORED = picture(80, 100, 12)
PADDED = np.pad(STORED, 9, constant_values=60000)
MISSING: dict[str, Any] = {"WindowCenter": 20000, "WindowWidth": 100}
BLANK: dict[str, bytes] = {
    "constant JPEG": jpeg(CONSTANT),
    "constant PNG": grey_png(CONSTANT),
    "black PNG": grey_png(CONSTANT * 0),
    "PNG of all the levels": grey_png(noise(BLANK_LEVELS)),
    "PNG of all the levels and stray pixels": grey_png(noise(BLANK_LEVELS, top=8)),
    "constant PNG of 16 bits": png_16(np.full((80, 100), 3000)),
    "PNG of 16 bits far from black": png_16(30000 + np.arange(8000).reshape(80, 100) // 8),
    "PNG of 16 bits of 0 and 1": png_16(np.arange(8000).reshape(80, 100) % 2),
    "picture in alpha alone": alpha_alone(),
    "constant DICOM": dicom_of(np.full((80, 100), 7, np.uint16), 12),
    "DICOM whose window is above": dicom_of(STORED, 12, **MISSING),
    "DICOM whose window is below": dicom_of(STORED, 12, WindowCenter=-9000, WindowWidth=100),
    "inverted DICOM whose window is above": dicom_of(STORED, 12, PhotometricInterpretation="MONOCHROME1", **MISSING),
    "padded DICOM whose window is below": dicom_of(
        PADDED, 16, PixelPaddingValue=60000, WindowCenter=-90, WindowWidth=9
    ),
    "DICOM of padding": dicom_of(np.full((80, 100), 7, np.uint16), 12, PixelPaddingValue=7),
    "DICOM darkened by one pixel": dicom_of(np.where(np.arange(8000).reshape(80, 100) == 99, 65535, STORED), 16),
}
SHOWN: dict[str, bytes] = {
    "PNG of a level more": grey_png(noise(BLANK_LEVELS + 1)),
    "PNG of all the levels and more than stray pixels": grey_png(noise(BLANK_LEVELS, top=9)),
    "radiograph in a wide black frame": grey_png(np.pad(noise(40), 300)),
    "two tones": grey_png(np.where(np.arange(8000).reshape(80, 100) < 4000, 0, 255).astype(np.uint8)),
    "padded DICOM": dicom_of(PADDED, 16, PixelPaddingValue=60000),
}


@pytest.mark.parametrize("rendering", ["window", "equalized"])
@pytest.mark.parametrize("name", BLANK)
def test_a_blank_image_is_refused_unless_it_is_asked_for(name: str, rendering: Any) -> None:
    if rendering == "equalized" and ("window" in name or "darkened" in name):
        pytest.skip("takes no heed of windows, and spreads what is dark")
    with pytest.raises(ImageError, match="blank") as caught:
        encode_image(BLANK[name], short_side=80, quality=95, rendering=rendering)
    assert caught.value.code == "image-blank"
    kept = encode_image(BLANK[name], short_side=80, quality=95, rendering=rendering, blank="keep")
    assert min(kept.size) == 80


@pytest.mark.parametrize("name", SHOWN)
def test_an_image_with_little_on_it_is_packed(name: str) -> None:
    shown = encode_image(SHOWN[name], short_side=1024, quality=95)
    assert shown == encode_image(SHOWN[name], short_side=1024, quality=95, blank="keep")


def test_no_real_radiograph_is_blank(shared: Path) -> None:
    for path in sorted((shared / "data/openi-256/images").iterdir())[::40]:
        encode_image(path.read_bytes(), short_side=224, quality=95)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("PNG of 16 bits far from black", "its values are 30,000 to 30,999, taken to be of 0 to 32,767 (15 bits)"),
        ("constant JPEG", "its values are 99 to 99, of 0 to 255"),
        ("PNG of all the levels and stray pixels", "its values are 60 to 255, of 0 to 255"),
        ("constant DICOM", "its values are 7 to 7, shown from the least to the greatest, as the file has no window"),
        ("padded DICOM whose window is below", "shown by the file's window, of width 9 around -90"),
    ],
)
def test_of_a_blank_image_the_values_and_the_range_are_told(name: str, told: str) -> None:
    with pytest.raises(ImageError) as caught:
        encode_image(BLANK[name], short_side=80, quality=95)
    assert told in caught.value.what
    assert name != "padded DICOM whose window is below" or f"values are {STORED.min():,} to" in caught.value.what


def test_given_bits_and_rescaled_or_equalized_values_are_told_as_such() -> None:
    def told(data: bytes, **choices: Any) -> str:
        with pytest.raises(ImageError) as caught:
            encode_image(data, short_side=80, quality=95, **choices)
        return caught.value.what

    given = told(BLANK["PNG of 16 bits far from black"], bits=16)
    assert "30,000 to 30,999, taken to be of 0 to 65,535 (16 bits, as given)" in given
    constant = np.full((80, 100), 7, np.uint16)
    assert "its values are -86 to -86, shown" in told(dicom_of(constant, 12, RescaleSlope=2, RescaleIntercept=-100))
    assert "its values are 7 to 7, equalized" in told(dicom_of(constant, 12), rendering="equalized")
