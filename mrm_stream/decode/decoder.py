"""What decodes a batch: one interface, two backends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from mrm_stream.decode.cpu import TurboJpegDecoder
from mrm_stream.decode.crops import Crops
from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.errors import ConfigError

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Encoded radiographs and crops to pixels."""

    def decode(self, jpegs: Sequence[bytes | memoryview], crops: Crops) -> Tensor:
        """Return each crop as a grey square: cut, resized by an antialiased bicubic filter, then mirrored if asked.

        Args:
            jpegs: Baseline JPEGs, as a shard holds them; any number, which may change from call to call.
            crops: One for each.

        Returns:
            uint8, shape (B, 1, size, size), on the decoder's device. It stays as it is, whatever is decoded next. On a
            GPU it is ready for the stream that was current at the call: use it there.

        Raises:
            DamagedSamplesError: Some cannot be decoded; the others are not returned either.
            ValueError: A crop leaves its image.
        """
        ...

    def close(self) -> None:
        """Release threads and buffers."""
        ...


def make_decoder(
    backend: Literal["auto", "dali", "turbojpeg"], *, size: int, threads: int, device: torch.device
) -> Decoder:
    """Return what decodes to `device`.

    Args:
        backend: auto takes DALI with a GPU, and libjpeg-turbo without one, where it is 2 to 3 times as fast as DALI's
            CPU operators (two cores, short side 1,024: 543 against 264 images/s; 512: 1,867 against 567).
        size: Side of the output in pixels.
        threads: CPU threads that decode.
        device: Where the pixels are wanted.

    Raises:
        ConfigError: DALI is asked for and not installed.
    """
    if backend == "dali" or (backend == "auto" and device.type == "cuda"):
        try:
            return DaliDecoder(size=size, threads=threads, device=device)
        except ConfigError as error:
            if backend == "dali":
                raise
            log.warning("Decoding on the CPU: %s", error)
    return TurboJpegDecoder(size=size, threads=threads, device=device)
