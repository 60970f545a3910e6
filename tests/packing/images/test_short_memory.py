"""Where memory is short, no image is said to be damaged: it would be left out for good."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from mrm_stream.packing.images import dicom
from mrm_stream.packing.images.dicom import decode_dicom
from mrm_stream.packing.images.encode import encode_image


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_of_a_png(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", _raising(error))
    with pytest.raises(MemoryError):
        encode_image(_png(), short_side=32, quality=90)


@pytest.mark.parametrize("words", ["Memory allocation failure", "Insufficient memory (case 4)"])
def test_of_a_jpeg(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    whole = simplejpeg.encode_jpeg(np.zeros((40, 40, 1), np.uint8), 90, "GRAY", "Gray")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", _raising(ValueError(words)))
    with pytest.raises(MemoryError):
        encode_image(whole, short_side=32, quality=90)


def test_of_a_dicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "_read_header", _raising(MemoryError()))
    with pytest.raises(MemoryError):
        decode_dicom(bytes(128) + b"DICM", "window")
