"""Encoded radiographs to the two views that the model trains on."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrm_stream.decode.cpu import TurboJpegDecoder
from mrm_stream.decode.crops import Crops
from mrm_stream.decode.decoder import Decoder
from mrm_stream.decode.pair import make_lr_hr_pair, normalise

_SPARE = 4
"""Batches whose memory is kept: one that is made, two that are ready, one in use."""


class ViewMaker:
    """Decodes a batch to both of its views.

    With libjpeg-turbo on the CPU, each image goes through all steps while it is in the CPU's cache, and into the memory
    of batches that nobody holds any more: clearing fresh pages takes the system longer than the arithmetic. With
    anything else it is the decoder, then `normalise` and `make_lr_hr_pair`.

    Args:
        decoder: Who decodes; remains the caller's to close.
        mean: Of grey values in [0, 1].
        std: Of the same.
        lr_size: Side of the low-resolution view in pixels; must divide the crop's.
        antialias: Low-pass before down-sampling. The reference code did not.
    """

    def __init__(
        self, decoder: Decoder, *, mean: float, std: float, lr_size: int = 224, antialias: bool = False
    ) -> None:
        self._decoder = decoder
        self._mean, self._std = mean, std
        self._lr_size, self._antialias = lr_size, antialias
        self._one_by_one = (
            decoder
            if isinstance(decoder, TurboJpegDecoder)
            and decoder.device.type == "cpu"
            and decoder.size % lr_size == 0
            and decoder.size != lr_size
            and not antialias
            else None
        )
        self._table = normalise(torch.arange(256, dtype=torch.uint8), mean, std).numpy()
        self._memory = _Recycled()

    def __call__(self, jpegs: Sequence[bytes | memoryview], crops: Crops) -> tuple[Tensor, Tensor]:
        """Return (lr, hr), each (B, 1, side, side), float32, on the decoder's device.

        The high-resolution view is that of the plain steps bit for bit, the low-resolution one to 1e-6 at the default
        `std`, and to more where `std` is smaller. Its memory is reused once no tensor shares it any more.

        Args:
            jpegs: As `Decoder.decode` takes them.
            crops: One for each.

        Raises:
            DamagedSamplesError: Some cannot be decoded.
            ValueError: A crop leaves its image, or lr_size does not divide the crop's side.
        """
        decoder, size = self._one_by_one, self._lr_size
        if decoder is None:
            image_BCHW = normalise(self._decoder.decode(jpegs, crops), self._mean, self._std)
            return make_lr_hr_pair(image_BCHW, lr_size=size, antialias=self._antialias)
        hr_BCHW = self._memory.tensor((len(jpegs), 1, decoder.size, decoder.size))
        lr_BCHW = self._memory.tensor((len(jpegs), 1, size, size))
        hr_BHW, lr_BHW = hr_BCHW[:, 0].numpy(), lr_BCHW[:, 0].numpy()

        def take(slot: int, image_HW: NDArray[np.uint8]) -> None:
            self._fill(image_HW, hr_BHW[slot], lr_BHW[slot])

        decoder.decode_each(jpegs, crops, take)
        return lr_BCHW, hr_BCHW

    def _fill(self, image_HW: NDArray[np.uint8], hr_HW: NDArray[np.float32], lr_HW: NDArray[np.float32]) -> None:
        cv2.LUT(image_HW, self._table, dst=hr_HW)
        # The same filter as torch's: a = -0.75, half-pixel centres, edges repeated.
        cv2.resize(hr_HW, lr_HW.shape, dst=lr_HW, interpolation=cv2.INTER_CUBIC)


class _Recycled:
    """Memory that is reused once no tensor shares it any more."""

    def __init__(self) -> None:
        self._spare: deque[NDArray[np.float32]] = deque(maxlen=2 * _SPARE)

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """Return a float32 tensor of this shape, not cleared."""
        # Every tensor that shares the storage keeps `lent`, a view, alive. When the last of them is gone it is
        # finalised, and `owner`, which the finaliser holds, is spare again.
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
