"""Checks a run before its ranks are started, and tells whether they came to the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrm_stream.config.file import load_config, with_paths
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.launch import gpus, run_on_ranks
from mrm_stream.distributed.torchrun import REMEDY
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.pretrained.files import check_is_file
from mrm_stream.storage.access import is_there
from mrm_stream.stream.opening import open_data
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.run_directory import COMPLETE, check_paths, check_run
from mrm_stream.training.trainer import make_model

_SCRIPT = Path(__file__).parents[1] / "train.py"


def launch(config: Path, *, shards: str | None, out: str | None, overrides: Sequence[str], ranks: int | None) -> Path:
    """Run `train.py` on some ranks of this machine, once all that they would refuse was looked at here.

    Args:
        config: YAML file of settings.
        shards: Overrides data.shards.
        out: Overrides run.out.
        overrides: As for `load_config`.
        ranks: Processes; None: one a GPU, or 1 without one.

    Returns:
        The run's directory; the run there is complete.

    Raises:
        ConfigError: A setting is wrong; this and the next are found before any rank is started.
        ShardError: There is no such data set, or its tokenizer is another.
        TrainingError: The run ended early: what a rank said, or that it was asked to stop.
    """
    settings = with_paths(load_config(PretrainConfig, config, overrides), shards=shards, out=out)
    count = ranks or max(1, gpus())
    _check(settings, count)
    arguments = ["--config", str(config), "--shards", settings.data.shards, "--out", settings.run.out]
    ended = run_on_ranks(
        _SCRIPT, [*arguments, *(word for override in overrides for word in ("--set", override))], count
    )
    if ended.was_asked:
        raise TrainingError(
            "the run was asked to stop", where=settings.run.out, remedy="The same command continues it, where it saved."
        )
    if ended.error is not None:
        raise ended.error
    if ended.status != 0 or not is_there(Path(settings.run.out) / COMPLETE):
        raise TrainingError(
            f"the run has stopped before its end (exit status {ended.status})", where=settings.run.out, remedy=REMEDY
        )
    return Path(settings.run.out)


def _check(settings: PretrainConfig, ranks: int) -> None:
    """Refuse now what the ranks would refuse half a minute later."""
    import torch

    if 0 < (count := gpus()) < ranks:
        raise ConfigError(
            f"{ranks} ranks, but {count} GPU(s): no two may share one",
            where="--ranks",
            remedy=f"Give --ranks {count}, or set CUDA_VISIBLE_DEVICES= to train on the CPU.",
        )
    check_paths(settings)
    batch_sizes(settings.optim, ranks)
    if not check_run(Path(settings.run.out), settings) and settings.run.init:
        check_is_file(Path(settings.run.init))
    shards = open_data(settings.data)
    shards.tokenizer_file()
    shards.close()
    with torch.device("meta"):  # Shapes without numbers: no time, no memory.
        make_model(settings, shards.reports.vocabulary)
