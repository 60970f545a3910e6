"""Checkpoints that are either whole or not there, and that any number of ranks can resume from.

    RUN/checkpoints/step-00001000/
        model.safetensors      the model's weights, float32
        moments.safetensors    Adam's two moments of each, and its step
        state.json             step, order, counters, and the SHA-256 of all three

A checkpoint is written under a temporary name, synced, and renamed: a directory named `step-…` is complete, so the
newest one needs no pointer that could be wrong. One that the disk has damaged since is passed over, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrm_stream.errors import CheckpointError
from mrm_stream.storage.access import matching, refuse_barred
from mrm_stream.storage.publish import FILE_MODE, FOLDER_MODE, make_private_folder, sha256_of, sync_folder
from mrm_stream.strict import parse_json

FORMAT, VERSION = "mrm-stream-checkpoint", 2
EARLIER = 1
"""The version before: its state.json has no SHA-256 of its own. What it holds can be exported and looked at."""
_MODEL, _MOMENTS, _STATE = "model.safetensors", "moments.safetensors", "state.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole; the tensors are still on disk."""

    directory: Path
    state: dict[str, Any]
    """What `save_checkpoint` was given, `step` among it."""

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state by name, on the CPU."""
        return load_file(self.directory / _MODEL)

    def moments(self) -> dict[str, Tensor]:
        """Return Adam's state, as `EngineState.moments` names it."""
        return load_file(self.directory / _MOMENTS)


def save_checkpoint(
    run: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Publish a checkpoint below `run`, and remove all but the newest `keep`.

    Args:
        run: The run's directory.
        weights: The model's, whole, by name.
        moments: Adam's, whole, by name.
        state: JSON; must hold "step".
        keep: Checkpoints to leave, at least 1.

    Raises:
        CheckpointError: It could not be written; the earlier checkpoints are as they were.
    """
    folder = run / "checkpoints"
    final = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        make_private_folder(folder)
        for left in matching(folder, ".step-*.tmp"):  # Of a run that was killed while it saved.
            shutil.rmtree(left)
        temporary.mkdir(FOLDER_MODE)
        for name, tensors in ((_MODEL, weights), (_MOMENTS, moments)):
            save_file(dict(tensors), temporary / name)
        sums = {name: sha256_of(temporary / name) for name in (_MODEL, _MOMENTS)}
        content = {"format": FORMAT, "version": VERSION, **state, "sha256": sums}
        (temporary / _STATE).write_text(signed_state(content))
        for path in temporary.iterdir():
            path.chmod(FILE_MODE)
            _sync_file(path)
        sync_folder(temporary)
        # Of this step or later ones, while the run was continued from an earlier one: they were found damaged.
        for abandoned in [path for path in matching(folder, "step-*") if path.name >= final.name]:
            shutil.rmtree(abandoned)
        temporary.rename(final)
        sync_folder(folder)
        for old in matching(folder, "step-*")[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot be written: {error}", where=final, remedy="Free some space; the run continues from the last one."
        ) from error
    return final


def checkpoints_in(run: Path) -> list[Path]:
    """Return the directories of a run's checkpoints, the newest first; whether they are whole is not looked at."""
    return matching(run / "checkpoints", "step-*")[::-1]


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint below `run` that is whole, or None where there are none at all.

    Raises:
        CheckpointError: There are some, and every one of them is damaged.
    """
    damaged = []
    for directory in checkpoints_in(run):
        try:
            return open_checkpoint(directory)
        except CheckpointError as error:
            log.warning("passed over: %s", error)
            damaged.append(directory.name)
    if damaged:
        raise CheckpointError(
            f"all checkpoints are damaged: {', '.join(damaged)}",
            where=run / "checkpoints",
            remedy="Restore one from a backup, or start again in another directory.",
        )
    return None


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check a checkpoint's files against their SHA-256, and return it.

    Raises:
        CheckpointError: A file is absent or damaged, or of another format or version.
    """
    state = read_state(directory)
    try:
        for name in (_MODEL, _MOMENTS):
            if sha256_of(directory / name) != state["sha256"][name]:
                raise CheckpointError("is damaged: its SHA-256 is another", where=directory / name)
    except OSError as error:
        refuse_barred(error, directory / name)
        raise CheckpointError(f"cannot be read: {error}", where=directory) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{_STATE} lacks the SHA-256 of a file", where=directory) from error
    return Checkpoint(directory, state)


def signed_state(content: Mapping[str, Any]) -> str:
    """Return the text of a state.json whose own SHA-256 is the last of those in it.

    One digit that the disk has changed would else resume another run: a step, a position, a sum of losses.
    """
    own = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return json.dumps({**content, "sha256": {**content["sha256"], _STATE: own}}, indent=1)


def read_state(directory: Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides tensors; whether those are whole is not looked at.

    Raises:
        CheckpointError: The file is absent or damaged, or of another format or version.
    """
    try:
        text = (directory / _STATE).read_text()
        state = parse_json(text)
    except OSError as error:
        refuse_barred(error, directory / _STATE)
        raise CheckpointError(f"cannot be read: {error}", where=directory) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=directory) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError("is not a checkpoint of mrm_stream", where=directory / _STATE)
    # One of this release whose disk has turned a digit of the version carries a sum of its own, and is damaged.
    if state.get("version") == EARLIER and _STATE not in (state.get("sha256") or ()):
        return state
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"has version {state.get('version')!r}, not {EARLIER} or {VERSION}",
            where=directory / _STATE,
            remedy="Use the release that wrote it.",
        )
    sums = state.get("sha256")
    content = {
        **state,
        "sha256": {name: value for name, value in sums.items() if name != _STATE} if isinstance(sums, dict) else {},
    }
    if signed_state(content) != text:
        raise CheckpointError("is damaged: its SHA-256 is another", where=directory / _STATE)
    return content


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's weights into a model.

    Raises:
        CheckpointError: The two do not have the same tensors; the first that differs is named.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        holder = "the checkpoint" if name in weights else "the model"
        raise CheckpointError(
            f"{name} is only in {holder}", where=where, remedy="Use the configuration that it was trained with."
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weights[name].shape)}, the model's has {tuple(tensor.shape)}",
                where=where,
                remedy="Use the configuration, and shards with the tokenizer, that it was trained with.",
            )
    model.load_state_dict(weights)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
