from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mrm_stream.decode.cpu import TurboJpegDecoder, resize_bicubic
from mrm_stream.decode.crops import Crops, central_crops, random_crops
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.errors import DamagedSamplesError

MakeJpeg = Callable[..., bytes]
SIZE = 64


@pytest.fixture
def decoder() -> Iterator[TurboJpegDecoder]:
    made = TurboJpegDecoder(size=SIZE, threads=2, device=torch.device("cpu"))
    yield made
    made.close()


def crops_of(jpegs: list[bytes], seed: int = 0) -> Crops:
    return random_crops(jpeg_sizes(jpegs), 0, np.arange(len(jpegs)), seed=seed)


def damage(jpeg: bytes) -> dict[str, bytes]:
    """Return ways in which a JPEG can be damaged behind its header, each with the end marker in place or not."""
    middle = len(jpeg) // 2
    return {
        "cut": jpeg[:middle],
        "cut, end marker": jpeg[:middle] + b"\xff\xd9",
        "no end marker": jpeg[:-2],
        "hole": jpeg[:middle] + jpeg[middle + 200 :],
        "strange marker": jpeg[:middle] + b"\xff\xd3" + jpeg[middle + 2 :],
        "no tables": jpeg[: jpeg.index(b"\xff\xc4") + 5] + b"\xff" * 16 + jpeg[jpeg.index(b"\xff\xc4") + 21 :],
    }


@pytest.mark.parametrize("out", [32, 61, 224])
@pytest.mark.parametrize("shape", [(224, 224), (61, 32), (333, 518), (7, 901), (3, 3)])
def test_resize_is_torchs_bit_for_bit_and_pils_to_two_grey_levels(shape: tuple[int, int], out: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    result = resize_bicubic(image, out)
    in_one_call = functional.interpolate(
        torch.from_numpy(image)[None, None], (out, out), mode="bicubic", antialias=True
    )
    assert np.array_equal(result, in_one_call[0, 0].numpy())
    # PIL rounds its weights to another number of bits: noise, which no radiograph is, is the worst case.
    expected = np.asarray(Image.fromarray(image).resize((out, out), Image.Resampling.BICUBIC))
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.01


def test_output_is_grey_8_bit_and_of_the_size_asked(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    jpegs = [make_jpeg(100, 140), make_jpeg(90, 64, "RGB"), make_jpeg(64, 64)]
    image = decoder.decode(jpegs, crops_of(jpegs))
    assert (image.shape, image.dtype, image.device.type) == ((3, 1, SIZE, SIZE), torch.uint8, "cpu")
    assert image.is_contiguous()
    assert decoder.decode([], central_crops(jpeg_sizes([]))).shape == (0, 1, SIZE, SIZE)


def test_a_sample_is_the_same_in_any_batch_and_place(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    jpegs = [make_jpeg(80 + 9 * i, 120 + 5 * i) for i in range(8)]
    whole = decoder.decode(jpegs, crops_of(jpegs))
    for i in range(8):
        crops = random_crops(jpeg_sizes(jpegs[i : i + 1]), 0, [i], seed=0)
        assert torch.equal(decoder.decode([memoryview(jpegs[i])], crops)[0], whole[i])


def test_a_delivered_batch_is_never_written_again(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    jpegs = [make_jpeg(80, 120), make_jpeg(120, 80)]
    delivered = [decoder.decode(jpegs, crops_of(jpegs, seed)) for seed in range(4)]
    kept = [image.clone() for image in delivered]
    for seed in range(4, 12):
        decoder.decode(jpegs, crops_of(jpegs, seed))
    assert all(torch.equal(image, copy) for image, copy in zip(delivered, kept, strict=True))


def test_a_flipped_sample_is_the_mirror_image(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    jpegs = [make_jpeg(80, 120)]
    crops = central_crops(jpeg_sizes(jpegs))
    flipped = Crops(crops.top, crops.left, crops.height, crops.width, np.array([True]))
    straight = decoder.decode(jpegs, crops)
    assert torch.equal(decoder.decode(jpegs, flipped), straight.flip(-1))
    assert not torch.equal(straight, straight.flip(-1))


@pytest.mark.parametrize("kind", sorted(damage(bytes(100) + b"\xff\xc4")))
def test_a_damaged_jpeg_is_named_by_its_slot(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder, kind: str) -> None:
    good = make_jpeg(100, 140)
    jpegs = [good, damage(good)[kind], good]
    with pytest.raises(DamagedSamplesError) as caught:
        decoder.decode(jpegs, crops_of([good] * 3))
    assert list(caught.value.reasons) == [1]
    assert "JPEG" in caught.value.reasons[1]
    assert decoder.decode([good], crops_of([good])).float().std() > 10


def test_every_damaged_slot_is_named_at_once(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    good = make_jpeg(100, 140)
    bad = damage(good)["hole"]
    with pytest.raises(DamagedSamplesError) as caught:
        decoder.decode([bad, good, bad, good, bad], crops_of([good] * 5))
    assert sorted(caught.value.reasons) == [0, 2, 4]


def test_no_truncation_is_delivered(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    good = make_jpeg(100, 140)
    draw = random.Random(0)
    for length in [draw.randrange(len(good) - 2) for _ in range(200)]:
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(DamagedSamplesError):
                decoder.decode([good[:length] + end], crops_of([good]))


def test_a_crop_outside_the_image_is_refused(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    with pytest.raises(ValueError, match="leaves its image"):
        decoder.decode([make_jpeg(100, 140)], crops_of([make_jpeg(200, 140)]))


def test_an_exif_orientation_is_not_applied(make_jpeg: MakeJpeg, decoder: TurboJpegDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    jpegs = [make_jpeg(100, 100), make_jpeg(100, 100, exif=exif.tobytes())]
    assert Image.open(io.BytesIO(jpegs[1])).getexif()[0x0112] == 6
    upright, tagged = decoder.decode(jpegs, central_crops(jpeg_sizes(jpegs)))
    assert torch.equal(upright, tagged)
