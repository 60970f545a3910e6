"""The directory of a run: what lies in it, and whether a run found there may be continued.

RUN/config.yaml           every setting, as resolved
    metrics.jsonl         losses, learning rate, samples/s, share of time waiting for data
    tensorboard/          the same as curves
    checkpoints/          see checkpoint.py
    encoder.safetensors   what the task keeps (pre-training: this), once the run is complete
    complete.json         left last: the run is complete
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mrm_stream.config.base import DataConfig, TrainConfig
from mrm_stream.config.file import dump_config, load_config, with_absolute_paths
from mrm_stream.config.resume import changes
from mrm_stream.errors import CheckpointError, ConfigError
from mrm_stream.formats.folder import set_around
from mrm_stream.storage.access import is_there, refuse_barred
from mrm_stream.storage.locks import try_lock
from mrm_stream.storage.paths import parse_path
from mrm_stream.storage.publish import FILE_MODE, check_folder, make_private_folder, publish_bytes
from mrm_stream.stream.opening import fingerprint_of
from mrm_stream.training.checkpoint import EARLIER, checkpoints_in, read_state

CONFIG, COMPLETE = "config.yaml", "complete.json"
_LOCK = ".lock"

log = logging.getLogger(__name__)


def check_paths(config: TrainConfig) -> None:
    """Raise ConfigError if the data set or the run's directory is not set, or one lies in the other."""
    for name, value in (("data.shards", config.data.shards), ("run.out", config.run.out)):
        if not value:
            raise ConfigError("is not set", where=name, remedy=f"Give --{name.split('.')[1]} DIR.")
    out = Path(config.run.out)
    for name, folder in (("run.out", out), ("data.cache", Path(config.data.cache) if config.data.cache else None)):
        found = set_around(folder) if folder is not None else None
        if found is not None:
            raise _entangled(f"{folder} is, or lies in, the packed set {found}", name)
    for path in map(parse_path, (config.data.shards, *config.data.mixture)):
        if isinstance(path, Path) and path.resolve().is_relative_to(out.resolve()):
            raise _entangled(f"the packed set {path} lies in it", "run.out")
    if config.data.cache and out.resolve().is_relative_to(Path(config.data.cache).resolve()):
        raise _entangled("is, or lies in, data.cache, whose files are removed when room is short", "run.out")


def _entangled(what: str, setting: str) -> ConfigError:
    return ConfigError(what, where=setting, remedy="Choose a directory of its own.")


def check_run(out: Path, config: TrainConfig) -> list[Path]:
    """Raise what keeps a run from this directory, and change nothing; return the checkpoints that are there.

    Raises:
        ConfigError: Another process trains in this directory, or the run here has other settings or other data.
        ShardError: There is a run here, and no packed set to resume it with.
        StorageError: The directory cannot be made, or written to.
    """
    check_folder(out)
    if is_there(out / _LOCK):
        _locked(out).close()
    _changed(out, config)
    _check_data(out, config.data)
    return checkpoints_in(out)


def prepare_run(out: Path, config: TrainConfig, seen: Sequence[Path]) -> IO[bytes]:
    """Create a run's directory, or check that the run found there is this one; then save the settings.

    The first step of a run that writes, and so the last before it trains: whatever else can be refused was before.
    Only its owner can look inside: weights and losses tell of the patients that they come from. The settings are saved
    with absolute paths, so that the run can be used from any folder.

    Args:
        out: The run's directory.
        config: Of the run.
        seen: Checkpoints that were there when one of them was loaded.

    Returns:
        A lock on the directory: it lasts as long as this file is open.

    Raises:
        ConfigError: Another process trains in it, or has since the checkpoint was loaded; or the run there has saved
            something and has other settings, each of which is named.
        StorageError: It cannot be written to.
    """
    make_private_folder(out)
    lock = _locked(out)
    if checkpoints_in(out) != list(seen):
        lock.close()
        raise ConfigError(
            "another process has trained in this directory just now", where=out, remedy="Start this one again."
        )
    for warning in _changed(out, config):
        log.warning("resumed with another setting: %s", warning)
    publish_bytes(out / CONFIG, dump_config(with_absolute_paths(config)).encode())
    return lock


def _locked(out: Path) -> IO[bytes]:
    try:
        lock = os.fdopen(os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, FILE_MODE), "r+b")
    except OSError as error:
        refuse_barred(error, out / _LOCK)
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=out, remedy="Choose another run.out."
        ) from error
    try:
        if not try_lock(lock):
            log.warning("%s: its file system has no locks; see that no other process trains there", out)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise ConfigError(
                f"cannot be locked: {error.strerror}", where=out, remedy="Choose a run.out on another disk."
            ) from error
        raise ConfigError(
            "another process is training in this directory", where=out, remedy="Wait for it, or choose another run.out."
        ) from error
    return lock


def _changed(out: Path, config: TrainConfig) -> tuple[str, ...]:
    """Return the settings to warn of; ConfigError names those that may not be other than those of the run here."""
    path = out / CONFIG
    if not (is_there(path) and checkpoints_in(out)):
        return ()
    found = changes(load_config(type(config), path), config)
    if found.refused:
        raise ConfigError(
            f"holds a run with other settings: {'; '.join(found.refused)}",
            where=out,
            remedy="Take the settings back to continue it, or choose another run.out.",
        )
    return found.warned


def _check_data(out: Path, data: DataConfig) -> None:
    for directory in checkpoints_in(out):
        try:
            state = read_state(directory)
            saved = state["loader"]["fingerprint"]
        except (CheckpointError, KeyError, TypeError):
            continue  # Damaged, and told so when it is opened: an older one is resumed then.
        if state["version"] == EARLIER:
            raise ConfigError(
                "holds a run of an earlier release, which had other positions and another loss over masked tokens",
                where=out,
                remedy="Begin another in a directory of its own; `mrm-stream export` still saves this one's encoder.",
            )
        if saved != fingerprint_of(data):
            raise ConfigError(
                "holds a run of other data: of another packed set or split, or of sets in another order",
                where=out,
                remedy="Give the sets that it was begun with (they may lie elsewhere), or choose another run.out.",
            )
        return
