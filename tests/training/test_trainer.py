"""The order in which a run reports, saves and ends."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mrm_stream.config.base import RunConfig
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.training import trainer


class Told:
    """A run that only tells what it is asked to do."""

    def __init__(self, steps: int, step: int, stop_at: int | None) -> None:
        self.steps, self.step, self.stop_at = steps, step, stop_at
        self.source: list[int] = []
        self.events: list[str] = []
        self.reported_at = step
        self.ranks = SimpleNamespace(any=lambda flag: flag, first=lambda action: action())
        self.engine = SimpleNamespace(state=SimpleNamespace(weights=lambda: {"of": self.step}))

    @property
    def is_at_the_end(self) -> bool:
        return self.step >= self.steps

    def train_step(self) -> None:
        self.step += 1
        if self.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def report(self) -> None:
        assert self.step > self.reported_at
        self.reported_at = self.step
        self.events.append(f"report {self.step}")

    def save(self) -> dict[str, int]:
        self.events.append(f"save {self.step}")
        return {"of": self.step}

    def finish(self, weights: dict[str, int]) -> None:
        self.events.append(f"export {weights['of']}")

    def close(self) -> None:
        self.events.append("close")


@pytest.mark.parametrize(
    ("step", "stop_at", "expected"),
    [
        (0, None, ["report 5", "save 7", "report 10", "report 14", "save 14", "export 14", "close"]),
        (7, None, ["report 10", "report 14", "save 14", "export 14", "close"]),
        (14, None, ["export 14", "close"]),
        (0, 6, ["report 5", "save 6", "close"]),
        (10, 14, ["report 14", "save 14", "export 14", "close"]),
    ],
    ids=["alone", "continued", "all but exported", "asked to stop", "asked to stop at its last step"],
)
def test_all_is_reported_before_it_is_saved_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, step: int, stop_at: int | None, expected: list[str]
) -> None:
    run = Told(14, step, stop_at)
    monkeypatch.setattr(trainer, "Trainer", lambda *_: run)
    config = replace(PretrainConfig(), run=RunConfig(log_every=5, save_every=7))
    complete = trainer.train(Pretraining(config), cast(Any, Runtime)(0, 1, 0, None))
    assert run.events == expected
    assert complete == ("export 14" in expected)
