"""`mrm-stream train`: the short way, to its end and stopped on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.training.runs import ENVIRONMENT, STEPS, Run


def command(run: Run, *overrides: str) -> list[str]:
    place = ["--config", str(run.config), "--shards", str(run.shards), "--out", str(run.out), "--ranks", "2"]
    settings = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "mrm_stream.cli", "train", *place, *settings]


def test_a_request_to_stop_reaches_the_ranks_and_the_same_command_continues(run: Run) -> None:
    process = subprocess.Popen(command(run, "run.save_every=1000"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not run.metrics():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run was asked to stop" in said
    assert len(list((run.out / "checkpoints").glob("step-*"))) == 1

    result = subprocess.run(command(run), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    assert "continuing at step" in result.stderr
    assert str(run.out / "encoder.safetensors") in result.stdout
    assert json.loads((run.out / "complete.json").read_text())["step"] == STEPS


def test_a_launch_that_fails_beside_a_complete_run_is_no_success(run: Run) -> None:
    run.out.mkdir()
    (run.out / "complete.json").write_text("{}")
    (run.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    result = subprocess.run(command(run), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 1
    assert "all checkpoints are damaged" in result.stderr


@pytest.mark.parametrize("missing", ["--shards", "--out"])
def test_the_script_itself_asks_for_its_directories(run: Run, missing: str) -> None:
    arguments = run.arguments()
    place = arguments.index(missing)
    short = [sys.executable, *arguments[:place], *arguments[place + 2 :]]
    result = subprocess.run(short, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert f"Give {missing} DIR" in result.stderr
