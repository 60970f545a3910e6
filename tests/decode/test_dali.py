from __future__ import annotations

import gc
import logging
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrm_stream.decode.cpu import TurboJpegDecoder
from mrm_stream.decode.crops import Crops, central_crops, random_crops
from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.decode.decoder import make_decoder
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.errors import ConfigError, DamagedSamplesError, MrmStreamError

MakeJpeg = Callable[..., bytes]
SIZE = 64
CPU = torch.device("cpu")


@pytest.fixture(params=["cpu", "cuda"])
def decoder(request: pytest.FixtureRequest) -> Iterator[DaliDecoder]:
    pytest.importorskip("nvidia.dali")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    made = DaliDecoder(size=SIZE, threads=2, device=torch.device(request.param))
    yield made
    made.close()


def crops_of(jpegs: list[bytes], seed: int = 0) -> Crops:
    return random_crops(jpeg_sizes(jpegs), 0, np.arange(len(jpegs)), seed=seed)


def without_tables(jpeg: bytes) -> bytes:
    """Return the JPEG with a Huffman table that no decoder accepts, in a header that looks whole."""
    table = jpeg.index(b"\xff\xc4")
    return jpeg[: table + 5] + b"\xff" * 16 + jpeg[table + 21 :]


def test_output_is_grey_8_bit_and_of_the_size_asked(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    jpegs = [make_jpeg(100, 140), make_jpeg(90, 64, "RGB"), make_jpeg(64, 64)]
    image = decoder.decode(jpegs, crops_of(jpegs))
    assert (image.shape, image.dtype) == ((3, 1, SIZE, SIZE), torch.uint8)
    assert image.is_contiguous()
    assert decoder.decode([], central_crops(jpeg_sizes([]))).shape == (0, 1, SIZE, SIZE)


def test_batches_may_grow_and_shrink(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    jpegs = [make_jpeg(80 + 9 * i, 120 + 5 * i) for i in range(9)]
    counts = [2, 1, 5, 9, 3]
    batches = [decoder.decode(jpegs[:count], crops_of(jpegs[:count])) for count in counts]
    assert [len(batch) for batch in batches] == counts
    assert all(torch.equal(batch, batches[3][: len(batch)]) for batch in batches)


def test_a_delivered_batch_outlives_the_next_and_the_decoder(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    jpegs = [make_jpeg(80, 120), make_jpeg(120, 80)]
    delivered = [decoder.decode(jpegs, crops_of(jpegs, seed)) for seed in range(4)]
    kept = [image.clone() for image in delivered]
    for seed in range(4, 12):
        decoder.decode(jpegs, crops_of(jpegs, seed))
    decoder.close()
    gc.collect()
    filler = [torch.full_like(delivered[0], 7) for _ in range(64)]
    assert all(torch.equal(image, copy) for image, copy in zip(delivered, kept, strict=True))
    del filler


def test_input_may_be_freed_as_soon_as_decode_returns(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    jpegs = [make_jpeg(100, 140)]
    expected = decoder.decode(jpegs, crops_of(jpegs))
    store = bytearray(jpegs[0])
    image = decoder.decode([memoryview(store)], crops_of(jpegs))
    if image.is_cuda:
        torch.cuda.synchronize()
    store[:] = bytes(len(store))
    assert torch.equal(image, expected)


def test_a_flipped_sample_is_the_mirror_image(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    jpegs = [make_jpeg(80, 120)]
    crops = central_crops(jpeg_sizes(jpegs))
    flipped = Crops(crops.top, crops.left, crops.height, crops.width, np.array([True]))
    straight = decoder.decode(jpegs, crops)
    assert torch.equal(decoder.decode(jpegs, flipped), straight.flip(-1))
    assert not torch.equal(straight, straight.flip(-1))


def test_an_exif_orientation_is_not_applied(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    jpegs = [make_jpeg(100, 100), make_jpeg(100, 100, exif=exif.tobytes())]
    upright, tagged = decoder.decode(jpegs, central_crops(jpeg_sizes(jpegs)))
    assert torch.equal(upright, tagged)


def test_undecodable_samples_are_named_and_the_next_batch_decodes(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    good = make_jpeg(100, 140)
    bad = without_tables(good)
    expected = decoder.decode([good] * 4, crops_of([good] * 4))
    for _ in range(2):
        with pytest.raises(DamagedSamplesError) as caught:
            decoder.decode([good, bad, good, bad], crops_of([good] * 4))
        assert sorted(caught.value.reasons) == [1, 3]
        assert torch.equal(decoder.decode([good] * 4, crops_of([good] * 4)), expected)


def test_a_failed_pipeline_is_not_used_again(
    make_jpeg: MakeJpeg, decoder: DaliDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, built = DaliDecoder._build, []

    def count(self: DaliDecoder, capacity: int) -> Any:
        built.append(capacity)
        return build(self, capacity)

    monkeypatch.setattr(DaliDecoder, "_build", count)
    good = make_jpeg(100, 140)
    decoder.decode([good] * 2, crops_of([good] * 2))
    with pytest.raises(DamagedSamplesError):
        decoder.decode([good, without_tables(good)], crops_of([good] * 2))
    for _ in range(2):
        decoder.decode([good], crops_of([good]))
    assert built == [2, 2]


def test_a_crop_outside_the_image_is_refused(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    with pytest.raises(ValueError, match="leaves its image"):
        decoder.decode([make_jpeg(100, 140)], crops_of([make_jpeg(200, 140)]))


def test_a_jpeg_that_was_cut_short_never_reaches_dali(make_jpeg: MakeJpeg, decoder: DaliDecoder) -> None:
    good = make_jpeg(100, 140)
    for length in range(0, len(good), 97):
        with pytest.raises(DamagedSamplesError) as caught:
            decoder.decode([good, good[:length]], crops_of([good] * 2))
        assert list(caught.value.reasons) == [1]


def test_a_failure_without_a_culprit_is_reported_as_dalis(
    make_jpeg: MakeJpeg, decoder: DaliDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: DaliDecoder, *_: Any) -> None:
        raise RuntimeError("out of device memory")

    jpegs = [make_jpeg(100, 140)]
    with monkeypatch.context() as patch:
        patch.setattr(DaliDecoder, "_run", fail)
        with pytest.raises(MrmStreamError, match="out of device memory") as caught:
            decoder.decode(jpegs, crops_of(jpegs))
    assert not isinstance(caught.value, DamagedSamplesError)
    assert "turbojpeg" in str(caught.value)
    assert decoder.decode(jpegs, crops_of(jpegs)).shape == (1, 1, SIZE, SIZE)


def test_auto_is_libjpeg_turbo_without_a_gpu_and_either_can_be_asked_for() -> None:
    pytest.importorskip("nvidia.dali")
    assert isinstance(make_decoder("auto", size=SIZE, threads=1, device=CPU), TurboJpegDecoder)
    assert isinstance(make_decoder("turbojpeg", size=SIZE, threads=1, device=CPU), TurboJpegDecoder)
    assert isinstance(make_decoder("dali", size=SIZE, threads=1, device=CPU), DaliDecoder)
    # The pipeline is built at the first batch, so that choosing needs no GPU.
    assert isinstance(make_decoder("auto", size=SIZE, threads=1, device=torch.device("cuda")), DaliDecoder)


def test_without_dali_auto_does_without_and_asking_for_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match="turbojpeg"):
        make_decoder("dali", size=SIZE, threads=1, device=CPU)
    with caplog.at_level(logging.WARNING):
        made = make_decoder("auto", size=SIZE, threads=1, device=torch.device("cuda"))
    assert isinstance(made, TurboJpegDecoder)
    assert "nvidia-dali" in caplog.text


def test_a_memory_map_can_be_closed_after_its_batch(make_jpeg: MakeJpeg, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    decoder = DaliDecoder(size=SIZE, threads=1, device=CPU)
    path = tmp_path / "shard"
    path.write_bytes(make_jpeg(100, 140))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapped)
    image = decoder.decode([view], central_crops(jpeg_sizes([view])))
    view.release()
    mapped.close()
    assert image.float().std() > 10
