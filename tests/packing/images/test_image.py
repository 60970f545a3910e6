from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.formats.options import Rendering
from mrm_stream.packing.images import checks
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import EncodedImage, encode_image
from mrm_stream.packing.images.jpeg import is_jpeg

Texture = Callable[[int, int, int], NDArray[np.uint8]]


def jpeg_of(pixels: NDArray[np.uint8], **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, **settings)
    return buffer.getvalue()


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode(data: bytes, short_side: int = 64) -> EncodedImage:
    return encode_image(data, short_side=short_side, quality=95)


def pixels_of(encoded: EncodedImage) -> NDArray[np.int64]:
    height, width, colour, _ = simplejpeg.decode_jpeg_header(encoded.jpeg)
    assert (height, width) == encoded.size
    assert colour == "Gray"
    return np.asarray(simplejpeg.decode_jpeg(encoded.jpeg, "GRAY")[..., 0], np.int64)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (200, 100, (128, 64)),
        (100, 200, (64, 128)),
        (64, 90, (64, 90)),
        (65, 90, (64, 89)),
        (30, 40, (30, 40)),
        (513, 700, (64, 87)),
    ],
)
def test_short_side_is_as_asked_and_never_enlarged(
    texture: Texture, height: int, width: int, size: tuple[int, int]
) -> None:
    for data in (jpeg_of(texture(height, width, 1)), png_of(Image.fromarray(texture(height, width, 1)))):
        encoded = encode(data)
        assert (encoded.original_size, encoded.size) == ((height, width), size)
        assert pixels_of(encoded).shape == size


def test_the_result_is_the_source_low_passed(texture: Texture) -> None:
    pixels_HW = texture(512, 640, 3)
    noise_HW = np.random.default_rng(0).integers(-20, 21, pixels_HW.shape)
    noisy_HW = np.clip(pixels_HW + noise_HW, 0, 255).astype(np.uint8)
    clean = np.asarray(Image.fromarray(pixels_HW).resize((80, 64), Image.Resampling.BICUBIC), np.int64)
    # Without a low pass the noise of standard deviation 12 would pass; averaged over 8 x 8 pixels it is 1.5.
    for data in (jpeg_of(noisy_HW), png_of(Image.fromarray(noisy_HW))):
        assert np.abs(pixels_of(encode(data)) - clean).mean() < 3


def test_every_pixel_format_gives_its_luma(texture: Texture) -> None:
    red_HW, green_HW, blue_HW = (texture(64, 64, seed) for seed in (1, 2, 3))
    luma_HW = 0.299 * red_HW + 0.587 * green_HW + 0.114 * blue_HW
    rgb = Image.fromarray(np.stack([red_HW, green_HW, blue_HW], -1))
    alpha = Image.fromarray(texture(64, 64, 4))
    grey = Image.fromarray(red_HW)
    transparent = rgb.copy()
    transparent.putalpha(alpha)
    grey_alpha = grey.copy()
    grey_alpha.putalpha(alpha)
    indexed = grey.quantize(256)
    assert indexed.mode == "P"
    black_and_white = grey.point(lambda value: 255 * (value > 127), mode="1")
    cases: list[tuple[bytes, NDArray[Any]]] = [
        (png_of(rgb), luma_HW),
        (png_of(transparent), luma_HW),
        (png_of(grey), red_HW),
        (png_of(grey_alpha), red_HW),
        (png_of(indexed), np.asarray(indexed.convert("RGB").convert("L"))),
        (png_of(black_and_white), np.where(red_HW > 127, 255, 0)),
        (jpeg_of(np.asarray(rgb), subsampling=0), luma_HW),
        (jpeg_of(np.asarray(rgb), subsampling=2), luma_HW),
        (jpeg_of(red_HW, progressive=True), red_HW),
    ]
    for number, (data, expected) in enumerate(cases):
        error = np.abs(pixels_of(encode(data)) - expected)
        assert error.mean() < 2, f"case {number}"


def test_16_bit_grey_is_linear_over_the_whole_range() -> None:
    # Levels off the multiples of 257, where the low byte alone would be as good as the high one.
    levels = np.clip(np.arange(256) * 257 + np.where(np.arange(256) % 2, 100, -100), 0, 65535).astype(np.uint16)
    ramp_HW = np.tile(levels, (64, 1))
    image = Image.fromarray(ramp_HW)
    assert image.mode == "I;16"
    assert np.abs(pixels_of(encode(png_of(image))) - np.arange(256)).max() <= 3


def test_16_bit_noise_over_the_whole_range_keeps_its_contrast() -> None:
    # As PadChest's: radiographs of 16 bits in which black and white both occur.
    wide_HW = np.random.default_rng(0).integers(0, 1 << 16, (300, 200)).astype(np.uint16)
    wide_HW[0, :2] = 0, 65535
    encoded = encode(png_of(Image.fromarray(wide_HW)), 200)
    assert (encoded.original_size, encoded.size, encoded.view) == ((300, 200), (300, 200), "")
    error = np.abs(pixels_of(encoded) - wide_HW / 257)
    assert error.mean() < 2
    assert error[0, :2].max() < 4


def test_rendering_says_nothing_of_files_that_are_grey_already(texture: Texture) -> None:
    for data in (jpeg_of(texture(60, 50, 1)), png_of(Image.fromarray(texture(60, 50, 1)))):
        plain, equalized = (
            encode_image(data, short_side=40, quality=95, rendering=kind) for kind in get_args(Rendering)
        )
        assert plain == equalized


def test_orientation_and_metadata_are_not_taken_over(texture: Texture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a name that must not travel"
    encoded = encode(jpeg_of(texture(60, 40, 1), exif=exif))
    assert encoded.size == (60, 40)
    assert b"a name" not in encoded.jpeg
    assert b"Exif" not in encoded.jpeg


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(texture: Texture) -> None:
    data = jpeg_of(texture(80, 80, 1))
    assert encode(data + b"\0\0tail of another program").jpeg == encode(data).jpeg


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png"])
@pytest.mark.parametrize("end_marker", [False, True])
def test_wherever_an_image_is_cut_short_it_is_found(texture: Texture, kind: str, end_marker: bool) -> None:
    noisy_HW = np.random.default_rng(0).integers(0, 256, (150, 130), dtype=np.uint8)
    if kind == "png":
        data, tail = png_of(Image.fromarray(noisy_HW)), b""
        # The last 12 bytes are the empty IEND chunk, the 4 before it the checksum of the last data.
        cuts = range(60, len(data) - 16, 997)
    else:
        data, tail = jpeg_of(noisy_HW, progressive=kind == "progressive"), b"\xff\xd9" if end_marker else b""
        scan = data.rindex(b"\xff\xda") + 20 if end_marker else 200
        cuts = range(scan, len(data) - 4, 211)
    assert len(cuts) > 5
    encode(data)
    for cut in cuts:
        with pytest.raises(ImageError) as caught:
            encode(data[:cut] + tail)
        assert caught.value.code in ("image-truncated", "image-damaged"), cut


def test_codes_of_what_is_no_image(texture: Texture) -> None:
    inks = Image.fromarray(texture(64, 64, 1)).convert("CMYK")
    buffer = io.BytesIO()
    inks.save(buffer, "JPEG")
    truncated = jpeg_of(texture(64, 64, 1))[:-40]
    gif = io.BytesIO()
    Image.fromarray(texture(8, 8, 1)).save(gif, "GIF")
    cases = {
        b"": "image-empty",
        b"hello": "image-not-an-image",
        gif.getvalue(): "image-not-an-image",
        b"\xff\xd8\xff\xe0": "image-damaged",
        b"\x89PNG\r\n\x1a\n": "image-damaged",
        buffer.getvalue(): "image-colour-space",
        truncated: "image-truncated",
    }
    for data, code in cases.items():
        with pytest.raises(ImageError) as caught:
            encode(data)
        assert caught.value.code == code


def test_sizes_are_bounded_before_pixels_are_decoded(texture: Texture, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg, png = jpeg_of(texture(50, 60, 1)), png_of(Image.fromarray(texture(50, 60, 1)))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    monkeypatch.setattr(Image.Image, "convert", refuse)
    for name, limit in (("MAX_SIDE", 59), ("MAX_PIXELS", 2999)):
        with monkeypatch.context() as patch:
            patch.setattr(checks, name, limit)
            for data in (jpeg, png):
                with pytest.raises(ImageError) as caught:
                    encode(data)
                assert caught.value.code == "image-too-large"


def test_a_moving_picture_is_refused(texture: Texture) -> None:
    first, second = (Image.fromarray(texture(50, 60, seed)) for seed in (1, 2))
    buffer = io.BytesIO()
    first.save(buffer, "PNG", save_all=True, append_images=[second])
    assert b"acTL" in buffer.getvalue()
    with pytest.raises(ImageError) as caught:
        encode(buffer.getvalue())
    assert caught.value.code == "image-several-frames"


def test_a_decompression_bomb_is_refused_at_once() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    for side in (9_500, 30_000):
        header = chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")
        with pytest.raises(ImageError) as caught:
            encode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))))
        assert caught.value.code == "image-too-large"


def test_the_code_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("image-empty", "the file is empty")))  # noqa: S301
    assert (error.code, error.what) == ("image-empty", "the file is empty")


def test_every_real_image_can_be_packed(shared: Path) -> None:
    images = sorted((shared / "data/covid-cxr/images").iterdir())
    assert len(images) > 600
    for path in images[::9]:
        encoded = encode_image(path.read_bytes(), short_side=256, quality=95)
        assert min(encoded.size) == min(256, *encoded.original_size)


def test_real_radiographs_that_lack_one_byte_are_cut_short(shared: Path) -> None:
    images = sorted((shared / "data/covid-cxr/images").iterdir())
    whole = [data for path in images[::60] if is_jpeg(data := path.read_bytes())]
    assert len(whole) > 5
    for data in whole:
        data = data[: data.rindex(b"\xff\xd9") + 2]
        encode(data)
        for cut in (data[:-3] + data[-2:], data[:-2], data[: len(data) // 2] + data[-2:]):
            with pytest.raises(ImageError) as caught:
                encode(cut)
            assert caught.value.code == "image-truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_one_byte_is_cut_short(texture: Texture, progressive: bool) -> None:
    data = jpeg_of(texture(776, 1001, 1), progressive=progressive)
    encode(data)
    for cut in (data[:-3] + data[-2:], data[:-2], data[: len(data) // 2] + data[-2:]):
        with pytest.raises(ImageError) as caught:
            encode(cut)
        assert caught.value.code == "image-truncated"
