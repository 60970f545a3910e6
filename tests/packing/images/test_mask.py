from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image
from mrm_stream.packing.images.mask import EncodedMask, encode_mask
from tests.packing.images.pngs import png_16

Texture = Callable[[int, int, int], NDArray[np.uint8]]


def file_of(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def inside(mask: EncodedMask) -> NDArray[np.bool_]:
    """The mask that a result holds; it is black and white only."""
    with Image.open(io.BytesIO(mask.png), formats=("PNG",)) as image:
        assert image.mode == "L"
        grey_HW = np.asarray(image)
    assert set(np.unique(grey_HW)) <= {0, 255}
    return np.asarray(grey_HW == 255)


def runs_of(mask_HW: NDArray[np.bool_]) -> str:
    """Run lengths, pixel by pixel down the columns."""
    numbers: list[int] = []
    for number, value in enumerate(mask_HW.T.ravel(), start=1):
        if value and (not numbers or numbers[-2] + numbers[-1] != number):
            numbers += [number, 0]
        if value:
            numbers[-1] += 1
    return " ".join(map(str, numbers))


def code_of(mask: bytes | str, original_size: tuple[int, int] = (4, 5)) -> str:
    with pytest.raises(ImageError) as caught:
        encode_mask(mask, original_size=original_size, size=original_size)
    return caught.value.code


def test_a_mask_lies_over_the_radiograph_as_it_is_packed() -> None:
    # A bright disc as the radiograph, and the same as its mask.
    rows, columns = np.ogrid[:300, :411]
    disc_HW = (rows - 120) ** 2 + (columns - 250) ** 2 < 80**2
    radiograph = file_of(Image.fromarray(np.where(disc_HW, 220, 30).astype(np.uint8)))
    packed = encode_image(radiograph, short_side=97, quality=95)
    mask = encode_mask(runs_of(disc_HW), original_size=packed.original_size, size=packed.size)
    with Image.open(io.BytesIO(packed.jpeg)) as image:
        bright_HW = np.asarray(image) > 125
    assert (bright_HW != inside(mask)).mean() < 0.002


def test_every_pixel_format_is_inside_where_it_is_not_zero(texture: Texture) -> None:
    mask_HW = texture(40, 50, 1) > 128
    faint = Image.fromarray(mask_HW.astype(np.uint8))
    opaque = Image.new("L", (50, 40), 255)
    black = Image.new("L", (50, 40))
    indexed = Image.fromarray(mask_HW.astype(np.uint8) + np.uint8(1)).convert("P")
    indexed.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 1])
    cases = [
        faint,
        Image.fromarray(mask_HW),
        Image.fromarray(mask_HW.astype(np.uint16) * np.uint16(3)),
        Image.merge("RGB", (black, black, faint)),
        Image.merge("RGBA", (faint, black, black, opaque)),
        Image.merge("LA", (faint, opaque)),
        indexed,
    ]
    for image in cases:
        mask = encode_mask(file_of(image), original_size=(40, 50), size=(40, 50))
        np.testing.assert_array_equal(inside(mask), mask_HW, image.mode)


def test_a_mask_of_16_bits_keeps_what_lies_in_its_low_bits() -> None:
    mask_HW = np.zeros((20, 30), np.uint16)
    mask_HW[5:12, 7:20] = 255
    for channels in (1, 2, 3, 4):
        values = [mask_HW] * (channels - (channels % 2 == 0)) + [np.full_like(mask_HW, 65535)] * (channels % 2 == 0)
        encoded = encode_mask(png_16(np.stack(values, axis=-1)), original_size=(20, 30), size=(20, 30))
        np.testing.assert_array_equal(inside(encoded), mask_HW > 0, str(channels))


def test_a_jpeg_mask_does_not_grow_by_its_ringing(texture: Texture) -> None:
    mask_HW = texture(80, 90, 1) > 128
    jpeg = file_of(Image.fromarray(mask_HW.astype(np.uint8) * np.uint8(255)), "JPEG", quality=90)
    found_HW = inside(encode_mask(jpeg, original_size=(80, 90), size=(80, 90)))
    assert (found_HW != mask_HW).mean() < 0.002
    empty = file_of(Image.new("L", (90, 80)), "JPEG")
    assert not inside(encode_mask(empty, original_size=(80, 90), size=(80, 90))).any()
    assert (
        code_of(file_of(Image.fromarray(mask_HW.astype(np.uint8) * np.uint8(60)), "JPEG"), (80, 90)) == "mask-damaged"
    )


def test_run_lengths_go_down_the_columns_from_one() -> None:
    expected = np.zeros((4, 5), bool)
    expected[3, 0] = expected[:2, 1] = True
    expected[3, 4] = True
    for runs in ("4 3 20 1", "4 1 5 2 20 1", " 4 3\n20 1 "):
        np.testing.assert_array_equal(inside(encode_mask(runs, original_size=(4, 5), size=(4, 5))), expected)
    for runs in ("", "  "):
        assert not inside(encode_mask(runs, original_size=(4, 5), size=(2, 2))).any()
    assert inside(encode_mask("1 20", original_size=(4, 5), size=(2, 2))).all()


@pytest.mark.parametrize(
    "runs",
    ["1", "1 2 3", "0 2", "1 0", "5 2 1 2", "3 3 5 1", "19 3", "21 1", "-1", "1 -2", "1.0 2", "a b", "1_0 2", "1e1 2"],
)
def test_run_lengths_that_are_none(runs: str) -> None:
    assert code_of(runs) == "mask-damaged"


def test_run_lengths_of_odd_characters_or_without_end() -> None:
    for runs in ("9" * 30 + " 1", "\N{ARABIC-INDIC DIGIT THREE} 1", "1 9999999999", "1,2", "1 1 " * 100_000 + "x"):
        assert code_of(runs) == "mask-damaged", runs[:40]


def test_a_mask_of_another_image_or_none_at_all() -> None:
    png = file_of(Image.new("L", (5, 4)))
    assert not inside(encode_mask(png, original_size=(4, 5), size=(4, 5))).any()
    assert code_of(png, (5, 4)) == "mask-size"
    with pytest.raises(ImageError, match="the mask is 5 x 4 pixels, the image 8 x 6: a mask must be of the image"):
        encode_mask(png, original_size=(6, 8), size=(3, 4))
    with pytest.raises(ImageError, match="5 x 4 pixels, less than the 8 x 4 of the packed image: take images no lar"):
        encode_mask(png, original_size=(4, 5), size=(4, 8))
    assert code_of(png, (4, 6)) == "mask-size"
    assert code_of(b"") == "mask-damaged"
    assert code_of(b"1 2") == "mask-damaged"
    noise = np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)
    assert code_of(file_of(Image.fromarray(noise))[:-300], (60, 50)) == "image-truncated"
    assert code_of("1 1", (30_000, 30_000)) == "image-too-large"


def test_a_large_mask_takes_milliseconds() -> None:
    rows, columns = np.ogrid[:1024, :1024]
    disc_HW = (rows - 500) ** 2 + (columns - 600) ** 2 < 300**2
    edges = np.flatnonzero(np.diff(np.concatenate([[False], disc_HW.T.ravel(), [False]])))
    runs = " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))
    start = time.process_time()
    encode_mask(runs, original_size=(1024, 1024), size=(512, 512))

    assert time.process_time() - start < 0.1


def test_real_masks_keep_their_area(shared: Path) -> None:
    paths = sorted((shared / "data/covid-cxr/lung-masks/masks").iterdir())
    assert len(paths) > 90
    for path in paths[::9]:
        with Image.open(path) as image:
            original_size, original_HW = (image.height, image.width), np.asarray(image.convert("L")) > 0
        size = ((image.height * 3 + 7) // 8, (image.width * 3 + 7) // 8)
        mask = encode_mask(path.read_bytes(), original_size=original_size, size=size)
        assert 0.1 < inside(mask).mean() < 0.6
        assert mask.change is not None
        assert abs(mask.change.area) < 0.0002
        assert mask.change.area == pytest.approx(inside(mask).mean() / original_HW.mean() - 1, abs=1e-6)
