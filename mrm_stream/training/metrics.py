"""What a run reports of itself: a JSON line and TensorBoard points for each stretch of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mrm_stream.errors import CheckpointError, TrainingError
from mrm_stream.publish import FILE_MODE, make_private_folder, publish_bytes
from mrm_stream.strict import parse_json

METRICS = "metrics.jsonl"


class Window:
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
        """Take up the sums of a checkpoint: this rank's own, or, on another number of ranks, the mean of all."""
        own = [states[rank]] if len(states) == dist.get_world_size() else states
        self.steps = own[0]["steps"]
        self._sums = {
            name: torch.tensor(sum(s["sums"][name] for s in own) / len(own), dtype=torch.float64, device=device)
            for name in own[0]["sums"]
        }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; an incomplete last one, of a run that writes or was killed, is left out.

    Raises:
        CheckpointError: A line is damaged.
    """
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
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
    """`metrics.jsonl` and TensorBoard's files below a run's directory."""

    def __init__(self, directory: Path, *, resumed_at: int) -> None:
        """Open both; what a killed run logged after the step it goes on from, 0 included, is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        path = directory / METRICS
        kept = [line for line in read_metrics(directory) if line["step"] <= resumed_at]
        publish_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        board = directory / "tensorboard"
        make_private_folder(board)
        self._board = SummaryWriter(str(board), purge_step=resumed_at + 1)
        for written in board.iterdir():
            written.chmod(FILE_MODE)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line and its points."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        self._file.close()
        self._board.close()
