"""A GPU made of nothing but its rules, so that a race on it shows on any machine.

Work is enqueued, not done, when it is called for; it is done when the host waits for it. DALI fills a buffer anew as
soon as nobody holds it, not caring what was enqueued elsewhere. What happened is listed, in order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OTHER_PATIENT = 255
"""What DALI decodes next, into a buffer that was released."""
DEVICE = torch.device("cuda", 1)


class FakeStream:
    """A queue of work."""

    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.device, self.name = DEVICE, name
        self.queue: list[Callable[[], object]] = []
        self._gpu = gpu

    def wait_event(self, event: FakeEvent) -> None:
        self._gpu.happened.append(f"{self.name} waits for {event.stream.name}")

    def record_event(self) -> FakeEvent:
        event = FakeEvent(self._gpu)
        event.record(self)
        return event


class FakeEvent:
    """A mark in a stream."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self.stream: FakeStream = gpu.default

    def record(self, stream: FakeStream) -> None:
        self.stream = stream
        self._gpu.happened.append(f"record {stream.name}")

    def synchronize(self) -> None:
        self._gpu.happened.append(f"synchronise {self.stream.name}")
        self._gpu.run(self.stream)


class FakeGpu:
    """What stands in for `torch.cuda`, once installed."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.default = FakeStream(self, "step")
        self.current = self.default
        self.device = 0
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        """DALI's memory by address; it is never given back to the system."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of what the code calls in torch."""
        patch.setattr(torch.cuda, "Stream", lambda device, priority: FakeStream(self, "loader"))
        patch.setattr(torch.cuda, "Event", lambda blocking=False: FakeEvent(self))
        patch.setattr(torch.cuda, "stream", self._on_stream)
        patch.setattr(torch.cuda, "device", self._on_device)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: self._used(tensor, stream))
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._pinned(tensor))
        to, empty = Tensor.to, torch.empty

        def copied(tensor: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
            if args and args[0] == DEVICE:
                kind = "pinned" if getattr(tensor, "is_pinned_here", False) else "pageable"
                waits = "" if non_blocking else ", waiting"
                self.happened.append(f"copy {kind} on {self.current.name} of GPU {self.device}{waits}")
                return tensor
            return to(tensor, *args, **kwargs)

        def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
            tensor = empty(*args, **kwargs)
            return self._pinned(tensor) if pin_memory else tensor

        patch.setattr(Tensor, "to", copied)
        patch.setattr(torch, "empty", made)

    def run(self, stream: FakeStream) -> None:
        """Do what was enqueued."""
        while stream.queue:
            stream.queue.pop(0)()

    def dali_tensor(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of one of DALI's buffers, which is filled anew once the view is gone."""
        block = pixels.copy()
        self.blocks[block.ctypes.data] = block

        def released() -> None:
            self.happened.append("DALI fills the buffer anew")
            block[:] = OTHER_PATIENT

        view = block.view()
        weakref.finalize(view, released)
        return view

    @contextmanager
    def _on_stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _on_device(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def _used(self, tensor: Tensor, stream: FakeStream) -> None:
        self.happened.append(f"{stream.name} uses {tensor.data_ptr()}")

    @staticmethod
    def _pinned(tensor: Tensor) -> Tensor:
        tensor.is_pinned_here = True  # type: ignore[attr-defined]
        return tensor


class Deferred(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Enqueues each operation that reads DALI's memory, as a kernel does: by address, holding on to nothing."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do the rest at once."""
        result = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], Tensor) else None
        block = self._gpu.blocks.get(source.data_ptr()) if source is not None else None
        if block is None or result.data_ptr() == block.ctypes.data:
            return result
        result.fill_(0)  # It has not run yet.
        stream = self._gpu.current
        self._gpu.happened.append(f"{func.__name__.split('.')[0]} on {stream.name}")
        stream.queue.append(lambda: result.copy_(torch.from_numpy(block).reshape(result.shape)))
        return result
