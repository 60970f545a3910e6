"""Whole runs as real processes on the CPU: ended, killed, stopped, continued."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mrm_stream.training.metrics import read_metrics
from tests.training.runs import ENVIRONMENT, STEPS, Run, deepspeed, new_run, torchrun, torchrun_command


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on two ranks that nothing disturbs."""
    run = new_run(tmp_path_factory.mktemp("alone"), packed)
    result = run.launch()
    assert result.returncode == 0, result.stderr
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


def test_deepspeed_s_launcher_trains_the_same(alone: Run, run: Run) -> None:
    result = deepspeed(run.arguments(), ranks=2)
    assert result.returncode == 0, result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


def test_a_run_that_lacks_its_encoder_alone_exports_it_and_logs_nothing_twice(alone: Run, run: Run) -> None:
    shutil.copytree(alone.out, run.out)
    for name in ("complete.json", "encoder.safetensors"):
        (run.out / name).unlink()
    result = run.launch()
    assert result.returncode == 0, result.stderr
    assert (run.out / "complete.json").exists()
    # Byte for byte, though the run lies elsewhere: no path of its machine is written into an encoder.
    assert (run.out / "encoder.safetensors").read_bytes() == (alone.out / "encoder.safetensors").read_bytes()
    assert run.metrics() == alone.metrics()


def test_a_run_that_is_killed_and_continued_is_bit_identical_to_one_left_alone(alone: Run, run: Run) -> None:
    # Past the checkpoint of step 8, in which two of a line's three steps are summed, and past that line, of step 9.
    run.launch_and_kill(11)
    assert [line["step"] for line in run.metrics()] == [3, 6, 9]
    result = run.launch()
    assert result.returncode == 0, result.stderr
    assert f"continuing at step 8 of {STEPS}" in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


def test_a_run_that_is_asked_to_stop_saves_first_and_loses_nothing(alone: Run, run: Run) -> None:
    run.launch_and_signal(signal.SIGTERM, lambda: bool(run.metrics()), "run.save_every=1000")
    # Nothing but the request to stop can have saved: a thousand steps are more than there are.
    saved = [int(path.name.removeprefix("step-")) for path in (run.out / "checkpoints").glob("step-*")]
    assert len(saved) == 1
    assert 3 <= saved[0] < STEPS
    result = run.launch()
    assert f"continuing at step {saved[0]} " in result.stderr
    assert run.metrics() == alone.metrics()
    assert same(weights(run), weights(alone))


def test_a_run_goes_on_with_other_ranks_and_another_zero_stage(packed: Path, tmp_path: Path) -> None:
    """Other ranks add up the same gradients in another order, so the losses agree closely, not exactly."""
    exact = ("engine.precision=fp32", "model.report_decoder.dropout=0.0")
    one, moved = new_run(tmp_path / "one", packed), new_run(tmp_path / "moved", packed)
    assert one.launch(*exact, "engine.zero_stage=0", ranks=1).returncode == 0
    moved.launch_and_kill(11, *exact, "engine.zero_stage=2")
    result = moved.launch(*exact, "engine.zero_stage=0", ranks=1)
    assert result.returncode == 0, result.stderr
    assert f"continuing at step 8 of {STEPS}" in result.stderr
    for line, other in zip(moved.metrics(), one.metrics(), strict=True):
        # A mean over masked tokens is taken on each rank, which have different numbers of them.
        assert line.pop("report_loss_masked") == pytest.approx(other.pop("report_loss_masked"), rel=1e-2)
        assert line == pytest.approx(other, rel=1e-4)


def test_every_zero_stage_takes_up_its_own_state_bit_for_bit() -> None:
    result = torchrun([str(Path(__file__).with_name("zero_stages.py"))], ranks=2)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == [
        f"stage-{stage}-rank-{rank}-same" for stage in range(4) for rank in range(2)
    ]


def test_a_batch_that_the_ranks_do_not_divide_is_refused_in_words(run: Run) -> None:
    result = run.launch("optim.batch_size=7", ranks=2)
    assert result.returncode != 0
    assert "optim.batch_size: 2 ranks do not divide a batch of 7 samples" in result.stderr
    assert "Traceback" not in result.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]
    assert not run.out.exists()


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
