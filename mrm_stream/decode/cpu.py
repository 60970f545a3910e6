"""Decodes on the CPU: libjpeg-turbo, then an exact bicubic resize, four times as fast as torch's own call."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mrm_stream.decode.crops import Crops
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.errors import DamagedSamplesError


class TurboJpegDecoder:
    """A pool of threads, each of which decodes, cuts and resizes one image at a time; all of it releases the GIL.

    The whole image is decoded. libjpeg-turbo's scaled decoding at a half, where a window is at least twice the output,
    saves a quarter of the time for a third of the samples, but moves grey values by 0.7 on average and by up to 58
    (0.1 % of them by 6 or more): not worth it, as entropy decoding takes most of the time either way.

    Args:
        size: Side of the output in pixels.
        threads: That decode at the same time.
        device: Where the output lies; it is copied to a GPU through pinned memory, on the current stream.
    """

    def __init__(self, *, size: int, threads: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def decode(self, jpegs: Sequence[bytes | memoryview], crops: Crops) -> Tensor:
        """Return the windows, resized; see `Decoder.decode`.

        Against torchvision's crop, bicubic resize and flip of the same window of the PIL image, on 20 radiographs x 4
        windows: a mean difference of 0.023 grey levels, 99.9 % within 1, at most 5. Nearly all of it is Pillow 13's,
        which for some shapes resizes rows first and so rounds in another place. The decoded image is the same.

        Raises:
            DamagedSamplesError: Some cannot be decoded whole: cut short, or libjpeg-turbo warned of damage. A flipped
                bit that leaves the codes valid is not noticed: that is what the shards' checksums are for.
            ValueError: A window leaves its image.
        """
        if not crops.fit(jpeg_sizes(jpegs)):
            raise ValueError("a window leaves its image")
        image_BCHW = torch.empty(
            (len(jpegs), 1, self._size, self._size), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        columns = crops.top, crops.left, crops.height, crops.width, crops.flip
        windows = (column.tolist() for column in columns)
        found = self._pool.map(_decode_into, image_BCHW[:, 0].numpy(), jpegs, *windows)
        reasons = {slot: reason for slot, reason in enumerate(found) if reason is not None}
        if reasons:
            raise DamagedSamplesError(reasons)
        return image_BCHW.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _decode_into(
    out_HW: NDArray[np.uint8],
    jpeg: bytes | memoryview,
    top: int,
    left: int,
    height: int,
    width: int,
    flip: bool,
) -> str | None:
    """Fill `out_HW` with the resized window; return why it cannot be done, or None."""
    try:
        # Strict: libjpeg-turbo warns of missing or damaged data, and fills the gap with grey.
        grey_HW = simplejpeg.decode_jpeg(jpeg, "GRAY", strict=True)[:, :, 0]
    except ValueError as error:
        return f"JPEG does not decode: {error}"
    resized_HW = resize_bicubic(grey_HW[top : top + height, left : left + width], len(out_HW))
    out_HW[:] = cv2.flip(resized_HW, 1) if flip else resized_HW
    return None


def resize_bicubic(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the image as (size, size), by the antialiased bicubic filter of torch and PIL.

    Bit for bit what torch makes of 8-bit images: each row is resampled first, then each column, and both passes are
    rounded to 8 bits. 0.5 ms for 800 x 800 to 448 x 448 on one core; torch takes 2.0 ms in one call, and PIL 3.8 ms.
    """
    narrow_WH = _resample_rows(cv2.transpose(image_HW), size)
    return _resample_rows(cv2.transpose(narrow_WH), size)


def _resample_rows(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the image with `size` rows, its columns as they were."""
    height, width = image_HW.shape
    if width % 4:
        image_HW = cv2.copyMakeBorder(image_HW, 0, 0, 0, -width % 4, cv2.BORDER_REPLICATE)
    # torch's vectorised kernel works on four interleaved channels, and spreads out anything less: four neighbours in a
    # row, which do not mix in a pass along the columns, stand in for them.
    image_1CHW = torch.from_numpy(image_HW).view(1, height, -1, 4).permute(0, 3, 1, 2)
    out_1CHW = functional.interpolate(image_1CHW, (size, image_1CHW.shape[3]), mode="bicubic", antialias=True)
    return np.ascontiguousarray(out_1CHW.permute(0, 2, 3, 1).reshape(size, -1)[:, :width].numpy())
