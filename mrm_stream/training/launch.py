"""Starts the ranks of a run on this machine, and tells whether they came to the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mrm_stream.config_file import load_config
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.stream.reader import ShardSet
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.run_directory import COMPLETE

_SCRIPT = Path(__file__).parents[1] / "train.py"


def launch(config: Path, *, shards: str | None, out: str | None, overrides: Sequence[str], ranks: int | None) -> Path:
    """Run `deepspeed mrm_stream/train.py` here, and wait for it.

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
        ShardError: There is no such data set.
        TrainingError: The run ended early; why, the ranks have said themselves.
    """
    named = [f"{name}={value}" for name, value in (("data.shards", shards), ("run.out", out)) if value is not None]
    settings = load_config(config, [*overrides, *named])
    for name, value in (("data.shards", settings.data.shards), ("run.out", settings.run.out)):
        if not value:
            raise ConfigError("is not set", where=name, remedy=f"Give --{name.split('.')[1]} DIR.")
    ShardSet.open(Path(settings.data.shards), settings.data.split)
    count = ranks or _devices()
    batch_sizes(settings.optim, count)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(count)]
    command += ["--master_port", str(_free_port()), str(_SCRIPT), "--config", str(config)]
    command += [word for override in (*overrides, *named) for word in ("--set", override)]
    status = _wait(command)
    # The launcher may exit with 0 though a rank was killed by a signal: only the mark of a complete run counts.
    if not (Path(settings.run.out) / COMPLETE).exists():
        raise TrainingError(
            f"the run has stopped before its end (the launcher's exit status is {status})",
            where=settings.run.out,
            remedy="Mend what is said above, if anything; the same command continues the run from its last checkpoint.",
        )
    return Path(settings.run.out)


def _wait(command: list[str]) -> int:
    """Run a command in a session of its own, pass SIGTERM and SIGINT on to it once, and return its exit status."""
    environment = dict(os.environ)
    if not _has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    # Its own session: an interrupt from the keyboard then reaches the ranks once, by us, and not twice.
    process = subprocess.Popen(command, env=environment, start_new_session=True)

    def pass_on(number: int, _: object) -> None:
        os.killpg(process.pid, number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _free_port() -> int:
    # The launcher's fixed 29500 lets two runs on one machine meet.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
