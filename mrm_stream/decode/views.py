"""8-bit crops to the two views, on the CPU at a quarter of the time of `normalise` and `make_lr_hr_pair`."""

from __future__ import annotations

import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrm_stream.decode.pair import make_lr_hr_pair, normalise

_SPARE = 4
"""Batches whose memory is kept: one that is made, two that are ready, one in use."""


class ViewMaker:
    """Makes both views of a batch of crops.

    On the CPU each image is taken through both steps while it lies in the cache, in threads, and into memory of
    batches that nobody holds any more: clearing fresh pages takes the system longer than the arithmetic. Elsewhere,
    and with a low-pass, it is `normalise` and `make_lr_hr_pair`.

    Args:
        mean: Of grey values in [0, 1].
        std: Of the same.
        lr_size: Side of the low-resolution view in pixels; must divide the crop's.
        antialias: Low-pass before down-sampling. The reference code did not.
        threads: CPU threads that share the images.

    Example:
        >>> maker = ViewMaker(mean=0.5, std=0.25, threads=1)
        >>> lr, hr = maker(torch.zeros((2, 1, 448, 448), dtype=torch.uint8))
        >>> lr.shape, hr.unique().tolist()
        (torch.Size([2, 1, 224, 224]), [-2.0])
        >>> maker.close()
    """

    def __init__(self, *, mean: float, std: float, lr_size: int = 224, antialias: bool = False, threads: int) -> None:
        self._mean, self._std = mean, std
        self._lr_size, self._antialias = lr_size, antialias
        self._table = normalise(torch.arange(256, dtype=torch.uint8), mean, std).numpy()
        self._memory = _Recycled()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="views")

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (lr, hr) of uint8 crops of shape (B, 1, H, H), as `make_lr_hr_pair` does after `normalise`.

        The high-resolution view is theirs bit for bit, the low-resolution one to 1e-6. A view stays as it is for as
        long as any tensor shares its memory.

        Raises:
            ValueError: As `make_lr_hr_pair`.
        """
        batch, channels, height, width = image_BCHW.shape
        size = self._lr_size
        if image_BCHW.device.type != "cpu" or self._antialias or height != width or height % size or height == size:
            image = normalise(image_BCHW, self._mean, self._std)
            return make_lr_hr_pair(image, lr_size=size, antialias=self._antialias)
        assert channels == 1
        hr_BCHW = self._memory.tensor((batch, 1, height, width))
        lr_BCHW = self._memory.tensor((batch, 1, size, size))
        filled = self._pool.map(self._fill, image_BCHW[:, 0].numpy(), hr_BCHW[:, 0].numpy(), lr_BCHW[:, 0].numpy())
        deque(filled, maxlen=0)
        return lr_BCHW, hr_BCHW

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _fill(self, image_HW: NDArray[np.uint8], hr_HW: NDArray[np.float32], lr_HW: NDArray[np.float32]) -> None:
        cv2.LUT(image_HW, self._table, dst=hr_HW)
        # The same filter as torch's: a = -0.75, half-pixel centres, edges repeated.
        cv2.resize(hr_HW, lr_HW.shape, dst=lr_HW, interpolation=cv2.INTER_CUBIC)


class _Recycled:
    """Memory that is handed out again once every tensor that shares it is gone."""

    def __init__(self) -> None:
        self._spare: deque[NDArray[np.float32]] = deque(maxlen=2 * _SPARE)

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """Return a float32 tensor with whatever is in it."""
        # The storage holds this view, and with it dies the last tensor's; a weak reference to it tells.
        owner = self._take(prod(shape))
        lent = owner.view()
        weakref.finalize(lent, self._spare.append, owner).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _take(self, count: int) -> NDArray[np.float32]:
        for _ in range(len(self._spare)):
            with suppress(IndexError):  # two threads may share a maker
                owner = self._spare.popleft()
                if owner.size == count:
                    return owner
                self._spare.append(owner)
        # numpy asks the system for huge pages, torch does not: four times as long to clear.
        return np.empty(count, np.float32)
