"""Where packing and decoding meet: what one makes, the other takes."""

from __future__ import annotations

from mrm_stream.decode import jpeg
from mrm_stream.packing.images.checks import MAX_PIXELS, MAX_SIDE
from mrm_stream.packing.images.sizes import target_size
from mrm_stream.packing.options import PackOptions


def test_the_largest_image_that_is_packed_by_default_is_one_that_is_decoded() -> None:
    """An image is shrunk by its short side alone: a strip may be as long as packing allows."""
    short_side = PackOptions().short_side
    strip = (short_side, MAX_SIDE)
    assert strip[0] * strip[1] <= MAX_PIXELS
    height, width = target_size(strip, short_side)
    assert height * width <= jpeg.MAX_PIXELS
