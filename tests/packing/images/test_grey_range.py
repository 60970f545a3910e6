"""PNGs of 16 bits, whose values seldom use all of them: the range is taken from what a picture holds, or given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import EncodedImage, encode_image
from tests.packing.images.pngs import png_16

BITS = range(8, 17)
KINDS = ["grey", "grey and alpha", "RGB", "RGBA"]
KIND = pytest.mark.parametrize("kind", KINDS)


def ramp(bits: int, low: float = 0.0) -> NDArray[np.uint16]:
    """From dark to the greatest value of so many bits, shape (120, 200)."""
    top = (1 << bits) - 1
    return np.tile(np.rint(np.linspace(low * top, top, 200)), (120, 1)).astype(np.uint16)


def of_kind(grey_HW: NDArray[np.uint16], kind: str) -> NDArray[np.uint16]:
    opaque_HW = np.full_like(grey_HW, 65535)
    channels = {"grey": 1, "grey and alpha": 1, "RGB": 3, "RGBA": 3}[kind]
    return np.stack([grey_HW] * channels + [opaque_HW] * (kind in ("grey and alpha", "RGBA")), axis=-1)


def encode(data: bytes, bits: int | None = None) -> EncodedImage:
    return encode_image(data, short_side=200, quality=100, bits=bits)


def pixels_of(encoded: EncodedImage) -> NDArray[np.int64]:
    return np.asarray(simplejpeg.decode_jpeg(encoded.jpeg, "GRAY")[..., 0], np.int64)


def check(encoded: EncodedImage, grey_HW: NDArray[Any]) -> None:
    """The pixels are these, but for what quality 100 rounds."""
    assert np.abs(pixels_of(encoded) - grey_HW).max() <= 2


@KIND
@pytest.mark.parametrize("bits", BITS)
def test_the_range_is_that_of_the_picture(bits: int, kind: str) -> None:
    grey_HW = ramp(bits)
    encoded = encode(png_16(of_kind(grey_HW, kind)))
    assert encoded.assumed_bits == bits
    check(encoded, grey_HW * 255.0 / ((1 << bits) - 1))


@KIND
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("stray", [1, 24], ids=["one stray pixel", "one in a thousand"])
def test_stray_pixels_do_not_darken_the_picture(bits: int, kind: str, stray: int) -> None:
    grey_HW = ramp(bits)
    burnt_HW = grey_HW.copy()
    burnt_HW.ravel()[:stray] = 65535
    encoded = encode(png_16(of_kind(burnt_HW, kind)))
    assert encoded.assumed_bits == bits
    difference_HW = np.abs(pixels_of(encoded) - grey_HW * 255.0 / ((1 << bits) - 1))
    # Stray pixels are white; they ring within their block of the JPEG.
    assert np.median(difference_HW) <= 1
    assert (difference_HW[16:] <= 2).all()


def test_one_stray_pixel_of_a_small_picture_is_stray() -> None:
    grey_HW = ramp(12)[:3]
    grey_HW[0, 0] = 65535
    assert encode(png_16(grey_HW)).assumed_bits == 12


def test_a_picture_that_uses_more_than_half_of_a_range_has_it() -> None:
    for top, bits in ((2047, 11), (2048, 12), (4095, 12), (4096, 13), (255, 8), (256, 9), (130, 8), (65535, 16)):
        grey_HW = np.tile(np.rint(np.linspace(0, top, 200)), (120, 1)).astype(np.uint16)
        encoded = encode(png_16(grey_HW))
        assert encoded.assumed_bits == bits, top
        assert 120 <= pixels_of(encoded).max() <= 255


def test_colour_of_16_bits_becomes_luma_without_losing_its_low_bits() -> None:
    red_HW, green_HW, blue_HW = (np.roll(ramp(12), shift, axis=1) for shift in (0, 60, 130))
    rgb_HWC = np.stack([red_HW, green_HW, blue_HW], axis=-1)
    luma_HW = 0.299 * red_HW + 0.587 * green_HW + 0.114 * blue_HW
    bits = int(luma_HW.max()).bit_length()
    encoded = encode(png_16(rgb_HWC))
    assert encoded.assumed_bits == bits
    assert np.abs(pixels_of(encoded) - luma_HW * 255.0 / ((1 << bits) - 1)).mean() < 1


def test_alpha_gamma_and_profiles_say_nothing() -> None:
    grey_HW = ramp(12)
    expected = encode(png_16(grey_HW)).jpeg
    clear_HW = np.random.default_rng(0).integers(0, 1 << 16, grey_HW.shape).astype(np.uint16)
    chunks = [(b"gAMA", (45455).to_bytes(4, "big")), (b"tRNS", b"\0\0\0\1\0\2"), (b"sBIT", b"\x0c\x0c\x0c")]
    for pixels, more in (
        (np.stack([grey_HW, clear_HW], axis=-1), chunks[:1]),
        (np.stack([grey_HW, grey_HW, grey_HW, clear_HW], axis=-1), chunks[:1]),
        (np.stack([grey_HW] * 3, axis=-1), chunks),
    ):
        assert encode(png_16(pixels, *more)).jpeg == expected


@KIND
@pytest.mark.parametrize("bits", BITS)
def test_bits_that_are_given_settle_it(bits: int, kind: str) -> None:
    grey_HW = ramp(bits) // 4  # by itself it would be taken for one of fewer bits
    data = png_16(of_kind(grey_HW, kind))
    encoded = encode(data, bits)
    assert encoded.assumed_bits is None
    check(encoded, grey_HW * 255.0 / ((1 << bits) - 1))
    if bits > 8:
        with pytest.raises(ImageError, match="more than 8 bits") as caught:
            encode(png_16(of_kind(ramp(bits), kind)), 8)
        assert caught.value.code == "image-grey-range"


def test_bits_say_nothing_of_other_images() -> None:
    grey_HW1 = (ramp(8)[..., None]).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(grey_HW1), 95, "GRAY", "Gray")
    for bits in (None, 8, 12):
        assert encode(jpeg, bits) == encode(jpeg)
        assert encode(jpeg, bits).assumed_bits is None


@KIND
def test_wherever_a_png_of_16_bits_is_cut_short_it_is_found(kind: str) -> None:
    noise_HW = np.random.default_rng(0).integers(0, 1 << 12, (60, 50)).astype(np.uint16)
    data = png_16(of_kind(noise_HW, kind))
    encode(data)
    for cut in range(40, len(data) - 16, 397):
        with pytest.raises(ImageError) as caught:
            encode(data[:cut])
        assert caught.value.code in ("image-truncated", "image-damaged"), cut
    middle = len(data) // 2
    with pytest.raises(ImageError):
        encode(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
