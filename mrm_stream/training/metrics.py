"""What a run reports of itself: a JSON line and TensorBoard points for each stretch of steps."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mrm_stream.errors import CheckpointError, TrainingError
from mrm_stream.storage.access import reading
from mrm_stream.storage.publish import FILE_MODE, make_private_folder, naming, publish_bytes
from mrm_stream.strict import parse_json

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class LossSums:
    """Running sums of the model's scalars over the steps since the last line of the log.

    The sums stay on the device, so that no step waits for them; they are part of a checkpoint, so that a resumed run
    logs the same figures as one left alone.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the steps and over all ranks, which must all ask at the same step."""
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] for name in names]) / self.steps
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
        return dict(zip(names, stacked.tolist(), strict=True))

    def finite_means(self, step: int) -> dict[str, float]:
        """Return `means`; raise TrainingError if one is not a finite number."""
        means = self.means()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{', '.join(bad)} not finite in the {self.steps} steps before step {step}",
                where="training",
                remedy="Resume the run with optim.gradient_clip=1, or begin another with a smaller optim.base_lr.",
            )
        return means

    def clear(self) -> None:
        """Begin the next stretch."""
        self._sums, self.steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's sums as plain numbers."""
        return {"steps": self.steps, "sums": {name: value.item() for name, value in self._sums.items()}}

    def load_state_dict(self, states: list[dict[str, Any]], rank: int, device: torch.device) -> None:
        """Load the sums of a checkpoint: this rank's own, or, on another number of ranks, the mean of all."""
        own = [states[rank]] if len(states) == dist.get_world_size() else states
        self.steps = own[0]["steps"]
        self._sums = {
            name: torch.tensor(sum(s["sums"][name] for s in own) / len(own), dtype=torch.float64, device=device)
            for name in own[0]["sums"]
        }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; an incomplete last one, of a run that writes or was killed, is skipped.

    Raises:
        CheckpointError: A line is damaged.
    """
    path = run / METRICS
    try:
        with reading(path):
            lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    found = []
    for number, line in enumerate(lines, 1):
        if line.endswith("}\n"):
            try:
                found.append(parse_json(line))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(
                    f"is damaged: {error}", where=f"{path}, line {number}", remedy="Remove that line."
                ) from error
    return found


class MetricsLog:
    """`metrics.jsonl` and TensorBoard's files below a run's directory.

    TensorBoard's own writer has a thread, which a full disk ends, and whoever closes the writer may then wait for it
    for ever. Here both files are written at once, so that an error is raised where it can be told to all ranks.
    """

    def __init__(self, directory: Path, *, resumed_at: int) -> None:
        """Open both; what a killed run logged after the step it goes on from, 0 included, is dropped.

        Raises:
            StorageError: They cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event, self._summary = Event, Summary
        path = directory / METRICS
        kept = [line for line in read_metrics(directory) if line["step"] <= resumed_at]
        publish_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        board = directory / "tensorboard"
        make_private_folder(board)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._lines, points = _Appended(path), _Appended(board / name)
        self._files = self._lines, points
        self._board = RecordWriter(points)
        purge = {"wall_time": time.time(), "step": resumed_at + 1}
        self._board.write(Event(**purge, file_version="brain.Event:2").SerializeToString())
        self._board.write(Event(**purge, session_log=SessionLog(status=SessionLog.START)).SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line and its points.

        Raises:
            StorageError: The disk is full, or fails.
        """
        self._lines.write((json.dumps({"step": step, **values}) + "\n").encode())
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=points))
        self._board.write(event.SerializeToString())

    def close(self) -> None:
        """Close both."""
        for file in self._files:
            file.close()


class _Appended:
    """A file that grows, with no buffer whose rest would fail again when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)

    def write(self, data: bytes) -> None:
        remaining = memoryview(data)
        with naming(self._path):
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]

    def close(self) -> None:
        try:
            os.close(self._descriptor)
        except OSError as error:  # Over a network, what was written may be refused as late as this; the run is over.
            log.warning("%s: may lack its last lines: %s", self._path, error.strerror)
