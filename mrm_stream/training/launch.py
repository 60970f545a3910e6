"""Starts the ranks of a run on this machine, and tells whether they came to the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mrm_stream.access import is_there
from mrm_stream.config import Config
from mrm_stream.config_file import load_config, with_places
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.model.checkpoint_file import check_is_file
from mrm_stream.stream.opening import open_data
from mrm_stream.training.engine import batch_sizes
from mrm_stream.training.launched import error_left
from mrm_stream.training.loop import make_model
from mrm_stream.training.orphan import ERROR_FILE
from mrm_stream.training.run_directory import COMPLETE, check_places, check_run
from mrm_stream.training.torchrun import REMEDY

_SCRIPT = Path(__file__).parents[1] / "train.py"
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(config: Path, *, shards: str | None, out: str | None, overrides: Sequence[str], ranks: int | None) -> Path:
    """Run `train.py` on some ranks of this machine, below torchrun, and wait for it.

    torchrun rather than DeepSpeed's launcher: it keeps to CUDA_VISIBLE_DEVICES, finds a free port, passes a request to
    stop on to every rank, and waits until they have saved. However this process ends, the ranks end with it.

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
    settings = with_places(load_config(config, overrides), shards=shards, out=out)
    count = ranks or _devices()
    _check(settings, count)
    with tempfile.TemporaryDirectory(prefix="mrm-stream-") as folder:
        command = [sys.executable, "-m", "mrm_stream.training.torchrun", "--standalone", f"--nproc_per_node={count}"]
        command += [f"--log-dir={folder}"]  # A folder of its own making would stay behind.
        command += [str(_SCRIPT), "--config", str(config)]
        command += ["--shards", settings.data.shards, "--out", settings.run.out]
        command += [word for override in overrides for word in ("--set", override)]
        error_file = Path(folder) / "error.json"
        status, asked = _wait(command, error_file)
        error = error_left(error_file)
    if asked:
        raise TrainingError(
            "the run was asked to stop", where=settings.run.out, remedy="The same command continues it, where it saved."
        )
    if error is not None:
        raise error
    if status != 0 or not is_there(Path(settings.run.out) / COMPLETE):
        raise TrainingError(
            f"the run has stopped before its end (exit status {status})", where=settings.run.out, remedy=REMEDY
        )
    return Path(settings.run.out)


def _check(settings: Config, ranks: int) -> None:
    """Refuse now what the ranks would refuse half a minute later."""
    import torch

    if 0 < (gpus := torch.cuda.device_count()) < ranks:
        raise ConfigError(
            f"{ranks} ranks, but {gpus} GPU(s): no two may share one",
            where="--ranks",
            remedy=f"Give --ranks {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU.",
        )
    check_places(settings)
    batch_sizes(settings.optim, ranks)
    if not check_run(Path(settings.run.out), settings) and settings.run.init:
        check_is_file(Path(settings.run.init))
    shards = open_data(settings.data)
    shards.tokenizer_file()
    shards.close()
    with torch.device("meta"):  # Shapes without numbers: no time, no memory.
        make_model(settings, shards.reports.vocabulary)


def _wait(command: list[str], error_file: Path) -> tuple[int, bool]:
    """Run a command, pass requests to stop on to it; return its exit status, and whether there were any."""
    asked = False

    def pass_on(*_: object) -> None:
        nonlocal asked
        asked = True
        process.terminate()

    environment = {**os.environ, ERROR_FILE: str(error_file)}
    # Its own session: an interrupt from the keyboard reaches it through us alone. The pipe closes when we end.
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True) as process:
        # What is ignored stays so: below nohup, a terminal that closes stops nothing.
        caught = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, pass_on) for number in caught}
        try:
            return process.wait(), asked
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
