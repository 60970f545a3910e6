"""Checks a run before its ranks are started, and tells whether they came to the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrm_stream.distributed.launch import gpus, run_on_ranks
from mrm_stream.distributed.torchrun import REMEDY
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.storage.access import is_there
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.run_directory import COMPLETE, check_paths, check_run
from mrm_stream.training.task import Task


def launch(task: Task[Any], script: Path, arguments: Sequence[str], ranks: int | None) -> Path:
    """Run a script on some ranks of this machine, once all that they would refuse was looked at here.

    Args:
        task: That the script trains.
        script: Python file that each rank runs.
        arguments: Of the script.
        ranks: Processes; None: one a GPU, or 1 without one.

    Returns:
        The run's directory; the run there is complete.

    Raises:
        ConfigError: A setting is wrong; this and the next are found before any rank is started.
        ShardError: There is no such data set, or its tokenizer is another.
        TrainingError: The run ended early: what a rank said, or that it was asked to stop.
    """
    out = Path(task.config.run.out)
    count = ranks or max(1, gpus())
    _check(task, count)
    ended = run_on_ranks(script, arguments, count)
    if ended.was_asked:
        raise TrainingError(
            "the run was asked to stop", where=out, remedy="The same command continues it, where it saved."
        )
    if ended.error is not None:
        raise ended.error
    if ended.status != 0 or not is_there(out / COMPLETE):
        raise TrainingError(
            f"the run has stopped before its end (exit status {ended.status})", where=out, remedy=REMEDY
        )
    return out


def _check(task: Task[Any], ranks: int) -> None:
    """Refuse now what the ranks would refuse half a minute later."""
    import torch

    if 0 < (count := gpus()) < ranks:
        raise ConfigError(
            f"{ranks} ranks, but {count} GPU(s): no two may share one",
            where="--ranks",
            remedy=f"Give --ranks {count}, or set CUDA_VISIBLE_DEVICES= to train on the CPU.",
        )
    config = task.config
    check_paths(config)
    batch_sizes(config.optim, ranks)
    if not check_run(Path(config.run.out), config) and config.run.init:
        task.check_weights(Path(config.run.init))
    source = task.open_source()
    try:
        with torch.device("meta"):  # Shapes without numbers: no time, no memory.
            task.make_model(source)
    finally:
        source.close()
