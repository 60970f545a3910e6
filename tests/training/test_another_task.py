"""The trainer trains whatever fits `Task`: here a straight line, which knows no radiograph and no masked word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrm_stream.config.base import DataConfig, EngineConfig, OptimConfig, RunConfig, TrainConfig
from mrm_stream.decode.device import DeviceSide, Handover
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import CheckpointError, StorageError
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.opening import open_data
from mrm_stream.stream.source import Needs, SampleSource
from mrm_stream.training import launch, trainer
from mrm_stream.training.checkpoint import newest_checkpoint
from mrm_stream.training.metrics import read_metrics
from mrm_stream.training.run_directory import COMPLETE
from mrm_stream.training.task import Task
from mrm_stream.training.trainer import Trainer, train


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each report, and what they are to be mapped to."""

    tokens_B: Tensor
    target_B: Tensor


closed: list[Batches] = []


class Batches:
    """Makes them; no image is decoded."""

    seconds_decoding, bytes_decoded = 0.0, 0

    def __call__(self, draws: Sequence[Draw]) -> Handover[Lengths]:
        tokens_B = torch.tensor([len(np.asarray(draw.sample.token_ids)) / 100 for draw in draws])
        return DeviceSide(torch.device("cpu")).handover(Lengths(tokens_B, 3 * tokens_B - 1))

    def close(self) -> None:
        closed.append(self)


class Line(nn.Module):
    """target = slope * tokens + offset, and the squared error of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, batch: Lengths, loss_items: Tensor) -> dict[str, Tensor]:
        error_B = self.layer(batch.tokens_B[:, None])[:, 0] - batch.target_B
        return {"loss": error_B.square().sum() / loss_items, "error": error_B.abs().mean().detach()}


@dataclass(frozen=True)
class Straight:
    """The task, whole."""

    config: TrainConfig
    name: ClassVar[str] = "line"
    exported: ClassVar[str] = "line.safetensors"
    shown_losses: ClassVar[Mapping[str, str]] = {"error": "off by"}

    def open_source(self) -> SampleSource:
        return open_data(self.config.data, Needs(reports=True))

    def make_batches(self, source: SampleSource, device: torch.device) -> Batches:
        return Batches()

    def make_model(self, source: SampleSource) -> nn.Module:
        assert source.sample(0).token_ids is not None, "what a model is like may depend on the samples"
        torch.manual_seed(self.config.seed)
        return Line()

    def check_weights(self, weights: Path) -> None:
        assert weights.is_file()

    def start_from(self, model: nn.Module, weights: Path) -> None:
        model.load_state_dict(load_file(weights))

    def loss_items(self, batch: Lengths) -> Tensor:
        return torch.tensor(len(batch.tokens_B), dtype=torch.float64)

    def identity(self, source: SampleSource) -> Mapping[str, Any]:
        return {"samples": len(source)}

    def check_identity(self, saved: Mapping[str, Any], source: SampleSource, where: Path) -> None:
        assert saved["samples"] == len(source)

    def export(self, model: nn.Module, path: Path) -> None:
        save_file(model.state_dict(), path)


def a_line(shards: Path, out: Path, epochs: float) -> Straight:
    return Straight(
        TrainConfig(
            data=DataConfig(shards=str(shards), window=2),
            optim=OptimConfig(batch_size=6, micro_batch_size=3, epochs=epochs, warmup_epochs=0, base_lr=5.0),
            engine=EngineConfig(precision="fp32", zero_stage=0),
            run=RunConfig(out=str(out), log_every=6, save_every=100),
        )
    )


def test_a_task_of_a_few_lines_is_trained_logged_saved_and_exported(
    packed: Path, tmp_path: Path, runtime: Runtime
) -> None:
    task: Task[Lengths] = a_line(packed, tmp_path / "run", epochs=20)
    closed.clear()
    assert train(task, runtime)
    assert len(closed) == 1
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["step"] == 20 * 36 / 6
    assert lines[-1]["error"] < lines[0]["error"] / 3
    assert json.loads((tmp_path / "run" / COMPLETE).read_text())["step"] == 120
    saved = newest_checkpoint(tmp_path / "run")
    assert saved is not None
    assert saved.state["samples"] == 36
    exported = load_file(tmp_path / "run" / Straight.exported)
    assert exported.keys() == saved.weights().keys() == {"layer.weight", "layer.bias"}
    assert all(torch.equal(exported[name], value) for name, value in saved.weights().items())


def test_it_resumes_as_if_it_had_been_left_alone(packed: Path, tmp_path: Path, runtime: Runtime) -> None:
    alone, twice = (a_line(packed, tmp_path / name, epochs=2) for name in ("alone", "twice"))
    assert train(alone, runtime)
    begun = Trainer(twice, runtime)
    for _ in range(5):
        begun.train_step()
    begun.save()
    begun.close()
    assert train(twice, runtime)
    for name, value in load_file(tmp_path / "alone" / Straight.exported).items():
        assert torch.equal(value, load_file(tmp_path / "twice" / Straight.exported)[name])


def test_it_starts_from_the_weights_that_it_is_given(packed: Path, tmp_path: Path, runtime: Runtime) -> None:
    given = {"layer.weight": torch.tensor([[3.0]]), "layer.bias": torch.tensor([-1.0])}
    save_file(given, tmp_path / "given.safetensors")
    task = a_line(packed, tmp_path / "run", epochs=1)
    run = replace(task.config.run, init=str(tmp_path / "given.safetensors"))
    optim = replace(task.config.optim, base_lr=1e-6)  # Adam's first steps are as long as the rate, however right it is.
    assert train(replace(task, config=replace(task.config, run=run, optim=optim)), runtime)
    assert read_metrics(tmp_path / "run")[-1]["error"] < 1e-5


def test_a_run_of_one_task_is_not_resumed_as_another_s(packed: Path, tmp_path: Path, runtime: Runtime) -> None:
    class Other(Straight):
        name = "curve"

    task = a_line(packed, tmp_path / "run", epochs=1)
    assert train(task, runtime)
    (tmp_path / "run" / COMPLETE).unlink()
    with pytest.raises(CheckpointError, match="is of another task: line, not curve"):
        train(Other(task.config), runtime)


def test_what_is_checked_before_ranks_are_launched_serves_it_too(packed: Path, tmp_path: Path) -> None:
    config = a_line(packed, tmp_path / "run", epochs=1).config
    data = replace(config.data, cache=str(tmp_path / "cache"))
    (tmp_path / "given.safetensors").write_bytes(b"")
    run = replace(config.run, init=str(tmp_path / "given.safetensors"))
    launch._check(Straight(replace(config, data=data, run=run)), 1)
    with pytest.raises(AssertionError):
        launch._check(Straight(replace(config, run=replace(run, init=str(tmp_path / "absent")))), 1)


def test_what_was_opened_is_closed_when_the_rest_cannot_be(
    packed: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageError("cannot be written: No space left on device")

    task = a_line(packed, tmp_path / "run", epochs=1)
    closed.clear()
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "MetricsLog", refuse)
        with pytest.raises(StorageError):
            train(task, runtime)
    assert len(closed) == 1
    assert train(task, runtime), "the directory is free again"
