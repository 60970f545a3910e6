from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mrm_stream.decode.cpu import TurboJpegDecoder
from mrm_stream.decode.crops import central_crops
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.errors import DamagedSamplesError

MakeJpeg = Callable[..., bytes]


def reason(jpeg: bytes) -> str:
    with pytest.raises(DamagedSamplesError) as caught:
        jpeg_sizes([jpeg])
    assert list(caught.value.reasons) == [0]
    return caught.value.reasons[0]


def test_height_comes_before_width(make_jpeg: MakeJpeg) -> None:
    jpegs = [make_jpeg(40, 64), make_jpeg(333, 17), make_jpeg(50, 20, "RGB"), make_jpeg(24, 8, optimize=True)]
    assert jpeg_sizes(jpegs).tolist() == [[40, 64], [333, 17], [50, 20], [24, 8]]
    assert jpeg_sizes([]).shape == (0, 2)


def test_a_slice_of_a_memory_map_is_read_as_bytes_are(make_jpeg: MakeJpeg, tmp_path: Path) -> None:
    jpeg = make_jpeg(40, 64)
    path = tmp_path / "shard"
    path.write_bytes(b"before" + jpeg + b"after")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        slot = view[6 : 6 + len(jpeg)]
        assert jpeg_sizes([slot]).tolist() == [[40, 64]]
        slot.release()
        view.release()


def test_each_refusal_names_its_slot_and_its_reason(make_jpeg: MakeJpeg) -> None:
    good = make_jpeg(40, 64)
    bad = [good, good[:-2], b"", good, b"GIF89a" + good[6:]]
    with pytest.raises(DamagedSamplesError) as caught:
        jpeg_sizes(bad)
    assert sorted(caught.value.reasons) == [1, 2, 4]
    assert "cut short" in caught.value.reasons[1]
    assert "like a JPEG" in caught.value.reasons[2]


def test_every_truncation_is_refused(make_jpeg: MakeJpeg) -> None:
    good = make_jpeg(40, 64)
    for length in range(len(good)):
        reason(good[:length])


def test_what_is_not_8_bit_baseline_is_refused(make_jpeg: MakeJpeg) -> None:
    good = make_jpeg(40, 64)
    assert "not baseline" in reason(make_jpeg(40, 64, progressive=True))
    assert "4 components" in reason(make_jpeg(40, 64, "CMYK"))
    frame = good.index(b"\xff\xc0")
    assert "of 12 bits" in reason(good[: frame + 4] + b"\x0c" + good[frame + 5 :])


def test_tables_may_stand_before_the_frame_header(make_jpeg: MakeJpeg) -> None:
    good = make_jpeg(40, 64)
    frame, tables, scan = (good.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    assert frame < tables < scan
    moved = good[:frame] + good[tables:scan] + good[frame:tables] + good[scan:]
    assert jpeg_sizes([moved]).tolist() == [[40, 64]]
    crops, decoder = (
        central_crops(jpeg_sizes([moved])),
        TurboJpegDecoder(size=32, threads=1, device=torch.device("cpu")),
    )
    assert torch.equal(decoder.decode([moved], crops), decoder.decode([good], crops))
    decoder.close()


@pytest.mark.parametrize(("height", "width"), [(65535, 65535), (0, 64), (40, 0), (8193, 9766)])
def test_absurd_sizes_are_refused_before_anything_is_allocated(make_jpeg: MakeJpeg, height: int, width: int) -> None:
    good = make_jpeg(40, 64)
    frame = good.index(b"\xff\xc0")
    assert "claims" in reason(good[: frame + 5] + struct.pack(">HH", height, width) + good[frame + 9 :])


def test_headers_without_end_are_given_up() -> None:
    assert "does not tell a size" in reason(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000 + b"\xff\xd9")
    assert "cut short" in reason(b"\xff\xd8\xff\xe0\xff\xff" + bytes(100) + b"\xff\xd9")
    assert "damaged" in reason(b"\xff\xd8\xff\xe0\x00\x00" + bytes(100) + b"\xff\xd9")


def test_no_damage_to_a_header_causes_another_error(make_jpeg: MakeJpeg) -> None:
    good = make_jpeg(40, 64)
    draw = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(400)] = draw.randrange(256)
        try:
            (size,) = jpeg_sizes([bytes(damaged)]).tolist()
        except DamagedSamplesError:
            continue
        assert min(size) > 0
