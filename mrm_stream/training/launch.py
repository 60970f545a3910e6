"""Starts the ranks of a run on this machine, and tells whether they came to the end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mrm_stream.config_file import load_config, with_places
from mrm_stream.errors import TrainingError
from mrm_stream.stream.reader import ShardSet
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.run_directory import COMPLETE, check_places

_SCRIPT = Path(__file__).parents[1] / "train.py"


def launch(config: Path, *, shards: str | None, out: str | None, overrides: Sequence[str], ranks: int | None) -> Path:
    """Run `train.py` on some ranks of this machine, below torchrun, and wait for it.

    torchrun rather than DeepSpeed's launcher: it keeps to CUDA_VISIBLE_DEVICES, finds a free port, passes a request to
    stop on to every rank, and waits until they have saved.

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
        TrainingError: The run ended early; why, the ranks have said themselves.
    """
    settings = with_places(load_config(config, overrides), shards=shards, out=out)
    check_places(settings)
    count = ranks or _devices()
    batch_sizes(settings.optim, count)
    ShardSet.open(Path(settings.data.shards), settings.data.split).tokenizer_file()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += [str(_SCRIPT), "--config", str(config)]
    command += ["--shards", settings.data.shards, "--out", settings.run.out]
    command += [word for override in overrides for word in ("--set", override)]
    status, asked = _wait(command)
    if asked:
        raise TrainingError(
            "the run was asked to stop", where=settings.run.out, remedy="The same command continues it, where it saved."
        )
    if status != 0 or not (Path(settings.run.out) / COMPLETE).exists():
        raise TrainingError(
            f"the run has stopped before its end (exit status {status})",
            where=settings.run.out,
            remedy="Mend what is said above, if anything; the same command continues the run from its last checkpoint.",
        )
    return Path(settings.run.out)


def _wait(command: list[str]) -> tuple[int, bool]:
    """Run a command, pass SIGTERM and SIGINT on to it; return its exit status, and whether there were any."""
    asked = False

    def pass_on(*_: object) -> None:
        nonlocal asked
        asked = True
        process.terminate()

    # Its own session: an interrupt from the keyboard reaches it through us alone.
    process = subprocess.Popen(command, start_new_session=True)
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait(), asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
