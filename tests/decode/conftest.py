"""Images whose pixels are known, and JPEGs of them as a shard would hold them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

MakeJpeg = Callable[..., bytes]


def _waves(height: int, width: int) -> NDArray[np.uint8]:
    """Waves of different periods along and across, and a rise to the lower right: any shift or turn changes it."""
    y_H1, x_1W = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    across, along = np.sin(2 * np.pi * 23 * x_1W), np.cos(2 * np.pi * 17 * y_H1)
    grey_HW: NDArray[np.float64] = 128 + 45 * across + 35 * along + 40 * (x_1W * y_H1)
    return grey_HW.round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def make_jpeg() -> MakeJpeg:
    """Return make_jpeg(height, width, mode="L", **options of Pillow's encoder) -> the JPEG of a pattern of waves."""

    def make(height: int, width: int, mode: str = "L", **options: object) -> bytes:
        file = io.BytesIO()
        settings: dict[str, object] = {"quality": 95, **options}
        Image.fromarray(_waves(height, width)).convert(mode).save(file, "JPEG", **settings)
        return file.getvalue()

    return make
