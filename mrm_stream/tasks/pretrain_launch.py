"""Starts pre-training on this machine, as `mrm-stream train` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrm_stream.config.file import load_config, with_paths
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.training.launch import launch

_SCRIPT = Path(__file__).parents[1] / "train.py"


def launch_pretraining(
    config: Path, *, shards: str | None, out: str | None, overrides: Sequence[str], ranks: int | None
) -> Path:
    """Run `train.py` on some ranks; see `launch` for what is returned and raised.

    Args:
        config: YAML file of settings.
        shards: Overrides data.shards.
        out: Overrides run.out.
        overrides: As for `load_config`.
        ranks: Processes; None: one a GPU, or 1 without one.
    """
    settings = with_paths(load_config(PretrainConfig, config, overrides), shards=shards, out=out)
    arguments = ["--config", str(config), "--shards", settings.data.shards, "--out", settings.run.out]
    arguments += [word for override in overrides for word in ("--set", override)]
    return launch(Pretraining(settings), _SCRIPT, arguments, ranks)
