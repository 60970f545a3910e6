from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from mrm_stream.errors import StorageError
from mrm_stream.training.metrics import MetricsLog, read_metrics


def test_a_run_that_begins_again_leaves_no_point_of_the_one_that_was_killed(tmp_path: Path) -> None:
    for loss, steps, begun_at in ((9.0, (3, 6, 9), 0), (5.0, (3, 6), 0), (1.0, (6, 9), 3)):
        log = MetricsLog(tmp_path, resumed_at=begun_at)
        for step in steps:
            log.write(step, {"loss": loss})
        log.close()
    expected = [(3, 5.0), (6, 1.0), (9, 1.0)]
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == expected
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == expected


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resumed_at=0)
    log.write(1, {"loss": 1.0})
    log.close()
    written = list(tmp_path.rglob("*"))
    assert any("tfevents" in path.name for path in written)
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


def test_what_the_system_writes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    log = MetricsLog(tmp_path, resumed_at=0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda number, data: write(number, data[:7]))
        for step in (1, 2):
            log.write(step, {"loss": 0.5 * step})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_one_error_and_nothing_waits_for_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    log = MetricsLog(tmp_path, resumed_at=0)
    log.write(1, {"loss": 1.0})
    write, descriptor = os.write, {file._path: file._descriptor for file in log._files}
    (filled,) = (number for path, number in descriptor.items() if full in str(path))

    def refuse(number: int, data: bytes) -> int:
        if number == filled:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(number, data)

    monkeypatch.setattr(os, "write", refuse)
    for step in range(2, 30):  # More than TensorBoard's own writer would queue.
        with pytest.raises(StorageError, match=rf"{full}.*: cannot be written: No space left on device"):
            log.write(step, {"loss": 1.0})
    log.close()
