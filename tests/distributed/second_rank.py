"""On two ranks: what happens on the second rank alone, one thing after another, and what the run makes of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import CheckpointError, ConfigError, DamagedSamplesError, MrmStreamError, ShardError
from mrm_stream.records import Batch
from mrm_stream.stream.loader import Loader
from mrm_stream.tasks import pretrain
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.tasks.pretrain_batches import BatchMaker
from mrm_stream.training import start
from mrm_stream.training.checkpoint import newest_checkpoint
from mrm_stream.training.engine import Engine
from mrm_stream.training.engine_state import EngineState
from mrm_stream.training.metrics import LossSums, read_metrics
from mrm_stream.training.trainer import train

make_batch, take_step, open_data = BatchMaker.__call__, Engine.step, vars(pretrain)["open_data"]


def undisturbed() -> None:
    """Leave all as it is."""


def damaged_sample() -> None:
    """The first sample of the first batch cannot be decoded."""
    is_first = True

    def make(self: BatchMaker, draws: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            raise DamagedSamplesError({0: "planted"})
        return make_batch(self, draws)

    BatchMaker.__call__ = make  # type: ignore[method-assign]


def more_bytes() -> None:
    """A gigabyte is decoded in each batch."""

    def make(self: BatchMaker, draws: Any) -> Any:
        self.bytes_decoded += 10**9
        return make_batch(self, draws)

    BatchMaker.__call__ = make  # type: ignore[method-assign]


def other_losses(change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """The losses that are logged are others."""

    def plant() -> None:
        def step(self: Engine[Batch], *arguments: Any, **named: Any) -> dict[str, Tensor]:
            return {name: change(value) for name, value in take_step(self, *arguments, **named).items()}

        Engine.step = step  # type: ignore[assignment, method-assign]

    return plant


def asked_to_stop(in_step: int) -> Callable[[], None]:
    """A signal comes while a step is taken."""

    def plant() -> None:
        def step(self: Engine[Batch], *arguments: Any, **named: Any) -> dict[str, Tensor]:
            if named["step"] == in_step:
                os.kill(os.getpid(), signal.SIGTERM)
            return take_step(self, *arguments, **named)

        Engine.step = step  # type: ignore[assignment, method-assign]

    return plant


def no_shards() -> None:
    """The machine does not have the data set."""

    def open_nothing(*_: object) -> Any:
        raise ShardError("planted: no such set", where="/mnt/set", remedy="Mount it.")

    vars(pretrain)["open_data"] = open_nothing


def failing(place: object, name: str, error: MrmStreamError) -> Callable[[], None]:
    """A function of a class or a module fails."""

    def plant() -> None:
        def fail(*_: object, **__: object) -> Any:
            raise error

        before = vars(place)[name]
        setattr(place, name, fail)
        undo.append(lambda: setattr(place, name, before))

    return plant


undo: list[Callable[[], None]] = []
PLANTS: dict[str, Callable[[], None]] = {
    "undisturbed": undisturbed,
    "damaged sample": damaged_sample,
    "more bytes": more_bytes,
    "higher losses": other_losses(lambda value: value + 10),
    "losses that are not finite": other_losses(lambda value: value * float("nan")),
    "asked to stop": asked_to_stop(1),
    "no shards": no_shards,
    "settings": failing(start, "check_paths", ConfigError("planted: entangled", where="run.out", remedy="Move.")),
    "loader": failing(Loader, "__init__", ShardError("planted: no order", where="/mnt/set", remedy="Mount it.")),
    "moments": failing(
        EngineState, "load_moments", CheckpointError("planted: a shape", where="/mnt/run", remedy="Look.")
    ),
    "order": failing(Loader, "load_state_dict", CheckpointError("planted: order", where="/mnt/run", remedy="Look.")),
    "sums": failing(LossSums, "load_state_dict", CheckpointError("planted: sums", where="/mnt/run", remedy="Look.")),
}
SHORT = ("optim.epochs=0.66", "optim.warmup_epochs=0", "run.log_every=4", "engine.precision=fp32")
"""Four steps."""
EXACT = ("engine.precision=fp32", "model.report_decoder.dropout=0.0")
"""Other ranks add up the same gradients in another order, and draw another dropout: what else differs would be seen."""
PLANTS["odd batch"] = undisturbed
PLANTS["for other ranks"] = asked_to_stop(7)
SETTINGS = {"odd batch": (*SHORT, "optim.batch_size=7"), "for other ranks": (*EXACT, "engine.zero_stage=2")}
RESUMED = dict.fromkeys(("moments", "order", "sums"), "asked to stop")
"""Cases that resume the run of another."""


def outcome(settings: Path, overrides: Sequence[str], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Train, and tell how that ended, what was logged, and what was saved."""
    said = None
    try:
        complete: object = train(
            Pretraining(load_config(PretrainConfig, settings, [*overrides, f"run.out={out}"])), runtime
        )
    except MrmStreamError as error:
        complete, said = type(error).__name__, str(error)
    saved = newest_checkpoint(out)
    return {
        "complete": complete,
        "said": said,
        "seed": torch.initial_seed(),
        "metrics": read_metrics(out),
        "state": saved.state if saved else None,
    }


def check(settings: Path, out: Path, runtime: Runtime) -> None:
    """Print a line for each case."""
    for name, plant in PLANTS.items():
        if runtime.rank == 1:
            plant()
        run = out / RESUMED.get(name, name).replace(" ", "-")
        told = {"case": name, "rank": runtime.rank, **outcome(settings, SETTINGS.get(name, SHORT), run, runtime)}
        while undo:
            undo.pop()()
        BatchMaker.__call__, Engine.step = make_batch, take_step  # type: ignore[method-assign]
        vars(pretrain)["open_data"] = open_data
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
