"""What the parts of `mrm-stream bench gpu` share: sizes, where they work, and what they found."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class SkippedError(Exception):
    """A part cannot be tried here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a part works, and at which size."""

    out: Path
    tiny: bool
    """The same code at sizes that a CPU manages, whatever the device."""

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        import torch

        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def work(self) -> Path:
        """Folder of what is made on the way."""
        return self.out / ("tiny" if self.tiny else "full")

    @property
    def shards(self) -> Path:
        """The packed set that the part `data` makes."""
        return self.work / "shards"

    @property
    def threads(self) -> int:
        """CPU threads that decode."""
        return len(os.sched_getaffinity(0))

    @property
    def vocabulary(self) -> int:
        """Entries of the tokenizer of made-up reports."""
        return 500 if self.tiny else 30_000

    def settings(self, *more: str) -> list[str]:
        """Return settings of a run, as for `--set`: the default model, or a tiny one."""
        tiny = [
            *("data.hr_size=64", "data.lr_size=32", "data.report_length=24", "data.window=2", "model.patch=8"),
            *(f"model.{part}={{width: 32, depth: 1, heads: 2}}" for part in ("image_encoder", "image_decoder")),
            "model.report_decoder={width: 32, depth: 1, heads: 2, feed_forward: 32, dropout: 0.1}",
        ]
        return [*(tiny if self.tiny else []), f"data.threads={self.threads}", *more]


@dataclass(slots=True)
class Found:
    """What a part found."""

    numbers: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Keep a number; above the limit, or no number at all, it is a fault."""
        self.numbers[name] = value
        if not value <= limit:
            self.faults.append(f"{name} is {value:.3g}, at most {limit:g} is right")

    def holds(self, condition: bool, fault: str) -> None:
        """Keep the fault unless the condition holds."""
        if not condition:
            self.faults.append(fault)
