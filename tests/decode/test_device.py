"""What holds on a GPU, shown without one: what is released when, and what a stream waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrm_stream.decode.crops import central_crops
from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.decode.device import DeviceSide
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.records import Batch
from tests.decode.fake_gpu import DEVICE, OTHER_PATIENT, Deferred, FakeGpu

MakeJpeg = Callable[..., bytes]
SIZE = 16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    made.install(monkeypatch)
    return made


class _Output:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def as_tensor(self) -> Any:
        tensor, self.tensor = self.tensor, None
        return tensor


class _Pipeline:
    """DALI's, which returns when the pixels are there."""

    def __init__(self, gpu: FakeGpu, pixels: np.ndarray) -> None:
        self._gpu, self._pixels = gpu, pixels

    def feed_input(self, name: str, data: Any) -> None:
        pass

    def run(self) -> tuple[_Output]:
        self._gpu.happened.append("DALI decodes")
        return (_Output(self._gpu.dali_tensor(self._pixels)),)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.arange(2 * SIZE * SIZE, dtype=np.uint32).astype(np.uint8).reshape(2, SIZE, SIZE, 1)


@pytest.fixture
def decoder(gpu: FakeGpu, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> DaliDecoder:
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(DaliDecoder, "_build", lambda self, capacity: _Pipeline(gpu, pixels))
    return DaliDecoder(size=SIZE, threads=1, device=DEVICE)


def test_dali_s_buffer_is_released_after_what_reads_it_has_run(
    gpu: FakeGpu, decoder: DaliDecoder, pixels: np.ndarray, make_jpeg: MakeJpeg
) -> None:
    jpegs = [make_jpeg(64, 64)] * 2
    side = DeviceSide(DEVICE)
    with side.making(), Deferred(gpu):
        # As it is used: the decoded image is dropped as soon as its conversion is enqueued.
        views = decoder.decode(jpegs, central_crops(jpeg_sizes(jpegs))).float()
        gpu.run(gpu.current)
    assert (views != OTHER_PATIENT).any()
    assert torch.equal(views, torch.from_numpy(pixels).reshape(2, 1, SIZE, SIZE).float())
    order = ["DALI decodes", "clone on loader", "record loader", "synchronise loader", "DALI fills the buffer anew"]
    assert gpu.happened == order


def test_what_was_decoded_is_not_in_dali_s_memory(gpu: FakeGpu, decoder: DaliDecoder, make_jpeg: MakeJpeg) -> None:
    jpegs = [make_jpeg(64, 64)] * 2
    image = decoder.decode(jpegs, central_crops(jpeg_sizes(jpegs)))
    assert image.data_ptr() not in gpu.blocks


def batch(**more: Any) -> dict[str, Tensor]:
    return {field.name: torch.zeros(2, 3) for field in fields(Batch)} | more


def test_a_batch_is_taken_by_the_stream_that_uses_it(gpu: FakeGpu) -> None:
    side = DeviceSide(DEVICE)
    with side.making():
        made = Batch(**batch())
        handover = side.handover(made)
    assert gpu.happened == ["record loader"]
    assert handover.take() is made
    uses = [f"step uses {getattr(made, field.name).data_ptr()}" for field in fields(Batch)]
    assert gpu.happened == ["record loader", "step waits for loader", *uses]
    assert len(set(uses)) == len(fields(Batch))


def test_it_is_the_stream_that_is_current_when_it_is_taken(gpu: FakeGpu) -> None:
    side = DeviceSide(DEVICE)
    with side.making():
        handover = side.handover(Batch(**batch()))
    with gpu._on_stream(type(gpu.default)(gpu, "another")):
        handover.take()
    assert gpu.happened[1] == "another waits for loader"
    assert all(line.startswith("another uses") for line in gpu.happened[2:])


def test_a_field_that_is_added_cannot_be_forgotten(gpu: FakeGpu) -> None:
    @dataclass(frozen=True)
    class More(Batch):
        weights_B: Tensor

    @dataclass(frozen=True)
    class Nested(Batch):
        tensors: list[Tensor]

    side = DeviceSide(DEVICE)
    with side.making():
        more = More(**batch(weights_B=torch.ones(2)))
        side.handover(more).take()
        assert gpu.happened[-1] == f"loader uses {more.weights_B.data_ptr()}"
        with pytest.raises(AssertionError, match="tensors is no tensor"):
            side.handover(Nested(**batch(tensors=[torch.ones(2)]))).take()  # type: ignore[arg-type]


def test_a_thread_makes_batches_on_its_own_gpu_and_leaves_no_trace(gpu: FakeGpu) -> None:
    side = DeviceSide(DEVICE)
    with side.making():
        assert (gpu.device, gpu.current.name) == (DEVICE.index, "loader")
    assert (gpu.device, gpu.current) == (0, gpu.default)


def test_arrays_are_copied_from_pinned_memory_without_waiting(gpu: FakeGpu) -> None:
    side = DeviceSide(DEVICE)
    with side.making():
        side.copied(np.zeros(3, np.int64))
    assert gpu.happened == ["copy pinned on loader of GPU 1"]


def test_on_the_cpu_nothing_is_copied_and_nothing_waits(gpu: FakeGpu) -> None:
    side = DeviceSide(torch.device("cpu"))
    array = np.arange(3)
    with side.making():
        made = Batch(**batch(token_ids_BL=side.copied(array)))
        assert side.handover(made).take() is made
    assert made.token_ids_BL.data_ptr() == array.ctypes.data
    assert gpu.happened == []
