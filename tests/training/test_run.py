"""Whole runs as real processes on the CPU: ended, killed, stopped, continued."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from mrm_stream.training.metrics import read_metrics
from tests.training.runs import ENVIRONMENT, STEPS, Run, deepspeed, new_run, torchrun_command, wait_until


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `mrm-stream train` on two ranks that nothing disturbs, in bf16 as by default."""
    run = new_run(tmp_path_factory.mktemp("alone"), packed)
    temporary = tmp_path_factory.mktemp("temporary")
    with mock.patch.object(tempfile, "tempdir", str(temporary)), mock.patch.dict(ENVIRONMENT, TMPDIR=str(temporary)):
        result = run.short_launch()
    assert result.exit_code == 0, result.output
    assert str(run.out / "encoder.safetensors") in result.stdout
    # But for torch's own cache, one for all of a user's runs.
    assert [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
    return run


def test_a_run_ends_with_everything_it_promises(alone: Run) -> None:
    assert json.loads((alone.out / "complete.json").read_text())["step"] == STEPS
    assert [line["step"] for line in alone.metrics()] == list(range(3, STEPS + 1, 3))
    assert any((alone.out / "tensorboard").iterdir())
    assert (alone.out / "encoder.safetensors").exists()
    first, *_, last = alone.metrics()
    assert last["report_loss"] < 0.95 * first["report_loss"]
    assert last["image_loss"] < first["image_loss"]


def test_only_the_owner_can_look_into_a_run(alone: Run) -> None:
    assert all(path.stat().st_mode & 0o077 == 0 for path in (alone.out, *alone.out.rglob("*")))


def test_a_run_that_is_asked_to_stop_saves_first_and_deepspeed_s_launcher_continues_it(alone: Run, run: Run) -> None:
    process = run.short_start("run.save_every=1000")
    wait_until(lambda: bool(run.metrics()), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run was asked to stop" in said
    assert "Traceback" not in said
    # Nothing but the request to stop can have saved: a thousand steps are more than there are.
    saved = [int(path.name.removeprefix("step-")) for path in (run.out / "checkpoints").glob("step-*")]
    assert len(saved) == 1
    assert 3 <= saved[0] < STEPS

    changed = run.short_launch("optim.base_lr=0.2")
    assert changed.exit_code == 1
    assert "holds a run with other settings: optim.base_lr was 0.1, is 0.2" in changed.stderr
    assert len(changed.stderr.splitlines()) == 2

    result = deepspeed(run.arguments(), ranks=2)
    assert result.returncode == 0, result.stderr
    assert f"continuing at step {saved[0]} " in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


def test_ranks_do_not_outlive_torchrun_that_is_killed_and_continued_are_bit_identical_to_a_run_left_alone(
    alone: Run, run: Run
) -> None:
    # Past the checkpoint of step 8, in which two of a line's three steps are summed, and past that line, of step 9.
    process = run.launch_and_hold(11)
    assert [line["step"] for line in run.metrics()] == [3, 6, 9]
    process.kill()
    process.wait()
    wait_until(lambda: not run.processes(), seconds=20)
    result = run.launch()
    assert result.returncode == 0, result.stderr
    assert f"continuing at step 8 of {STEPS}" in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


# A rank whose launcher is killed ends without a word to Python, as one that is killed does: what is left on disk is the
# same. Here every one is killed, and below, torchrun itself is asked to stop.
@pytest.mark.campaign
def test_a_run_whose_every_process_is_killed_and_continued_is_bit_identical_to_one_left_alone(
    alone: Run, run: Run
) -> None:
    run.launch_and_kill(11)
    assert [line["step"] for line in run.metrics()] == [3, 6, 9]
    result = run.launch()
    assert result.returncode == 0, result.stderr
    assert f"continuing at step 8 of {STEPS}" in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


@pytest.mark.campaign
def test_a_run_whose_torchrun_is_asked_to_stop_saves_first_and_loses_nothing(alone: Run, run: Run) -> None:
    run.launch_and_signal(signal.SIGTERM, lambda: bool(run.metrics()), "run.save_every=1000")
    saved = [int(path.name.removeprefix("step-")) for path in (run.out / "checkpoints").glob("step-*")]
    assert len(saved) == 1
    assert 3 <= saved[0] < STEPS
    result = run.launch()
    assert f"continuing at step {saved[0]} " in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


@pytest.mark.campaign
def test_deepspeed_s_launcher_trains_the_same_from_the_first_step(alone: Run, run: Run) -> None:
    result = deepspeed(run.arguments(), ranks=2)
    assert result.returncode == 0, result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


def test_a_disk_that_fills_while_the_log_is_written_ends_all_ranks_with_one_error(run: Run) -> None:
    # No file may grow beyond this: as where a disk is full, the log is the first to meet it.
    command = ["bash", "-c", 'ulimit -f 8; exec "$0" "$@"']
    arguments = run.arguments("optim.epochs=4000", "run.log_every=1", "run.save_every=100000")
    result = subprocess.run(
        [*command, *torchrun_command(arguments, ranks=2)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("cannot be written: File too large") == 1
    said = result.stderr.split("torch/distributed")[0]
    assert "Traceback" not in said
    assert read_metrics(run.out)  # Without the line that was cut off.
