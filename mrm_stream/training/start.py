"""How a run begins or is resumed: everything that can be refused is, before anything but a cache is written.

A run that is found in the directory must stay what it is while its continuation can still be refused, and a mistake in
a new one must leave no directory behind. So the checks, the data, the checkpoint and the model come first, in the order
of how fast they can fail, and `prepare_run` writes last. Each rank opens for itself, on its own machine, and what only
one of them lacks ends them all: `Ranks.all` tells the cause on every rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mrm_stream.config.base import TrainConfig
from mrm_stream.decode.device import Handover
from mrm_stream.distributed.ranks import Ranks
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import CheckpointError, MrmStreamError
from mrm_stream.stream.loader import Loader, LoaderOptions
from mrm_stream.stream.source import SampleSource
from mrm_stream.training.checkpoint import Checkpoint, load_weights, newest_checkpoint, open_checkpoint
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.run_directory import check_paths
from mrm_stream.training.task import B, Batches, Task


def connect_ranks(config: TrainConfig, runtime: Runtime) -> Ranks:
    """Join the other ranks, unless the settings are wrong on this machine: then the others are told.

    Raises:
        MrmStreamError: What is wrong with them, here or elsewhere.
    """
    return Ranks(runtime, run=config.run.out, connect_s=config.run.connect_s, refusal=_refusal(config, runtime.world))


def choose_checkpoint(ranks: Ranks, out: Path) -> Checkpoint | None:
    """Return the checkpoint to resume from, the same on every rank; None for a run that begins.

    One rank chooses: ranks that each looked for themselves could continue from different steps.

    Raises:
        CheckpointError: All that there are are damaged.
    """

    def choose() -> Path | None:
        newest = newest_checkpoint(out)
        return newest.directory if newest is not None else None

    directory = ranks.first(choose)
    return ranks.all(lambda: open_checkpoint(directory) if directory is not None else None)


def initial_model(task: Task[Any], source: SampleSource, checkpoint: Checkpoint | None) -> nn.Module:
    """Return the task's model with the weights to go on from: a checkpoint's, those of `run.init`, or fresh ones.

    Raises:
        CheckpointError: They are another model's, or belong to other data.
    """
    model = task.make_model(source)
    if checkpoint is not None:
        # Checkpoints of before there were other tasks do not tell theirs.
        if checkpoint.state.get("task", "pretraining") != task.name:
            raise CheckpointError(
                f"is of another task: {checkpoint.state['task']}, not {task.name}",
                where=checkpoint.directory,
                remedy="Choose another run.out.",
            )
        task.check_identity(checkpoint.state, source, checkpoint.directory)
        load_weights(model, checkpoint.weights(), checkpoint.directory)
    elif task.config.run.init:
        task.start_from(model, Path(task.config.run.init))
    return model


def make_loader(
    config: TrainConfig, source: SampleSource, batches: Batches[B], runtime: Runtime
) -> Loader[Handover[B]]:
    """Return the loader of this rank's part of each step."""
    options = LoaderOptions(
        seed=config.seed,
        batch_size=config.optim.batch_size,
        window=config.data.window,
        prefetch=config.data.prefetch,
        max_bad_samples=config.data.max_bad_samples,
    )
    return Loader(source, batches, options, rank=runtime.rank, world=runtime.world)


def _refusal(config: TrainConfig, world: int) -> MrmStreamError | None:
    """Return what is wrong with the settings on this machine, if anything is."""
    try:
        check_paths(config)
        batch_sizes(config.optim, world)
    except MrmStreamError as error:
        return error
    return None
