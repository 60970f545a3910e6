"""The device side of a loader: a CUDA stream of its own, and the hand-over of tensors from it to another stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class Handover(Generic[T]):
    """What was enqueued on the loader's stream, perhaps not yet run; `take` makes it safe to use on another."""

    _made: T
    _done: torch.cuda.Event | None
    """Reached once all of it is there; None on the CPU, where it is there already."""
    _device: torch.device

    def take(self) -> T:
        """Return it, for use on the stream that is current now. Nothing waits for the GPU but that stream itself.

        The memory belongs to the loader's stream. Without `record_stream` the allocator would hand it out again as soon
        as the last reference to it is dropped, which the step does long before the GPU has run it.
        """
        if self._done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            for field in fields(self._made):
                value = getattr(self._made, field.name)
                # All or nothing: a tensor inside a list or the like would be missed silently.
                assert isinstance(value, Tensor), f"{field.name} is no tensor"
                value.record_stream(stream)
        return self._made


class DeviceSide:
    """Where a loader's thread makes its batches; on the CPU its methods do nothing beyond what they return.

    On a GPU all of it is enqueued on a stream of its own, so that copies and conversions overlap the training step
    rather than queue behind it.

    Args:
        device: Where batches are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        # Of high priority: as soon as any multiprocessor is free, small kernels of the next batch go before the step's.
        self._stream = (
            torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )
        self._device = device if self._stream is None else self._stream.device

    @contextmanager
    def making(self) -> Iterator[None]:
        """Enqueue what the block does on this side's stream."""
        if self._stream is None:
            yield
            return
        # The device too: a thread begins on GPU 0, whatever the main thread has set. `stream` alone would go back to
        # GPU 0 at the end, and so make a context of half a gigabyte there, for every rank of the machine.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def copied(self, array: NDArray[np.generic]) -> Tensor:
        """Return an array, (...), as a tensor of the same shape on the device; on the CPU it shares the array's memory.

        To be called inside `making`. From pageable memory the copy would block the thread. torch keeps pinned memory
        that has been freed until the copies from it have run.
        """
        tensor = torch.from_numpy(array)
        return tensor if self._stream is None else tensor.pin_memory().to(self._device, non_blocking=True)

    def handover(self, made: T) -> Handover[T]:
        """Return what was made, a dataclass of tensors, to be taken on another stream; inside `making`."""
        if self._stream is None:
            return Handover(made, None, self._device)
        return Handover(made, self._stream.record_event(), self._device)
