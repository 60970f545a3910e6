"""PNGs to pixels, by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.packing.images.checks import ImageError, check_size

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def is_png(data: bytes) -> bool:
    """Return whether the file begins as a PNG does."""
    return data.startswith(_PNG_MAGIC)


def read_png(data: bytes, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Decode a PNG in full and return what `convert` makes of it.

    Raises:
        ImageError: The PNG is damaged, cut short or too large, or `convert` refuses it.
        MemoryError: The machine is short of it: the image is not to blame.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                check_size(image.height, image.width)
                image.load()
                return convert(image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image-too-large", "the PNG has more pixels than a radiograph") from error
    except Exception as error:  # Pillow lets struct, zlib and index errors of hostile files through, among others.
        if "out of memory" in str(error).lower():  # what Pillow's decoders say; the size has been checked
            raise MemoryError from None
        if "truncated" in str(error).lower():
            raise ImageError("image-truncated", "the PNG is cut short") from error
        raise ImageError("image-damaged", f"the PNG is damaged ({type(error).__name__})") from error


def grey_of_png(image: Image.Image) -> NDArray[np.uint8]:
    """Return the grey of a PNG of any kind: through its palette, alpha dropped, 16 bits to 8."""
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    # Through the palette where there is one, and without compositing alpha.
    return np.asarray(image.convert("L"))


def _from_16_bit(wide_HW: NDArray[np.integer]) -> NDArray[np.uint8]:
    if int(wide_HW.max()) < 1 << 12:
        # 12 bits in a 16-bit file would keep 16 grey levels; nothing in the file says which range was meant.
        raise ImageError("image-grey-range", "a 16-bit image whose values use less than a sixteenth of the range")
    return ((wide_HW.astype(np.uint32) + 128) // 257).astype(np.uint8)
