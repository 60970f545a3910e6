"""The directory of a run: what lies in it, and whether a run found there may be continued.

RUN/config.yaml           every setting, as resolved
    metrics.jsonl         losses, learning rate, samples/s, share of time waiting for data
    tensorboard/          the same as curves
    checkpoints/          see checkpoint.py
    encoder.safetensors   what is kept, once the run is complete
    complete.json         left last: the run is complete
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mrm_stream.config import Config
from mrm_stream.config_file import dump_config, load_config, with_absolute_places
from mrm_stream.errors import ConfigError
from mrm_stream.publish import FILE_MODE, make_private_folder, publish_bytes

CONFIG, ENCODER, COMPLETE = "config.yaml", "encoder.safetensors", "complete.json"
_LOCK = ".lock"

# These say where and how fast, not what is trained: they may change when a run is continued. That the shards are the
# same ones is checked by their fingerprint.
_MAY_CHANGE = (
    "data.shards",
    "data.cache",  # and cache_gb
    "data.backend",
    "data.threads",
    "data.prefetch",
    "data.max_bad_samples",
    "engine.",
    "run.",
)


def check_places(config: Config) -> None:
    """Raise ConfigError if the data set or the run's directory is not set."""
    for name, value in (("data.shards", config.data.shards), ("run.out", config.run.out)):
        if not value:
            raise ConfigError("is not set", where=name, remedy=f"Give --{name.split('.')[1]} DIR.")


def check_run(out: Path, config: Config) -> None:
    """Raise what `prepare_run` would raise of a run that is found here, and change nothing.

    Raises:
        ConfigError: Another process trains in this directory, or the run here has other settings.
    """
    if (out / _LOCK).exists():
        _locked(out).close()
    _check_settings(out, config)


def prepare_run(out: Path, config: Config) -> IO[bytes]:
    """Create a run's directory, or check that the run found there is this one; then save the settings.

    Only its owner can look inside: weights and losses tell of the patients that they come from. The settings are saved
    with absolute paths, so that the run can be used from any folder.

    Returns:
        A lock on the directory: it lasts as long as this file is open.

    Raises:
        ConfigError: Another process trains in it; or the run there has saved something and has other settings, each
            of which is named.
        StorageError: It cannot be written to.
    """
    make_private_folder(out)
    lock = _locked(out)
    _check_settings(out, config)
    publish_bytes(out / CONFIG, dump_config(with_absolute_places(config)).encode())
    return lock


def _locked(out: Path) -> IO[bytes]:
    try:
        lock = os.fdopen(os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, FILE_MODE), "r+b")
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=out, remedy="Choose another run.out."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ConfigError(
            "another process is training in this directory", where=out, remedy="Wait for it, or choose another run.out."
        ) from error
    return lock


def _check_settings(out: Path, config: Config) -> None:
    path = out / CONFIG
    if path.exists() and any((out / "checkpoints").glob("step-*")):
        earlier = _flat(asdict(load_config(path)))
        changed = [
            f"{name} was {earlier[name]!r}, is {value!r}"
            for name, value in _flat(asdict(config)).items()
            if earlier[name] != value and not name.startswith(_MAY_CHANGE)
        ]
        if changed:
            raise ConfigError(
                f"holds a run with other settings: {'; '.join(changed)}",
                where=out,
                remedy="Take the settings back to continue it, or choose another run.out.",
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
