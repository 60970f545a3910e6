"""`mrm-stream train`: the short way, to its end and stopped on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrm_stream.distributed.launch import _wait
from mrm_stream.distributed.launched import error_left
from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.tasks.pretrain_launch import launch_pretraining as start
from tests.training.runs import ENVIRONMENT, STEPS, Run, wait_until


def command(run: Run, *overrides: str) -> list[str]:
    place = ["--config", str(run.config), "--shards", str(run.shards), "--out", str(run.out), "--ranks", "2"]
    settings = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "mrm_stream.cli", "train", *place, *settings]


def launch(run: Run, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(run, *overrides), {**ENVIRONMENT, **environment}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_ranks_do_not_outlive_a_launcher_that_is_killed(run: Run) -> None:
    arguments = command(run, "optim.epochs=4000", "run.save_every=100000")
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until(lambda: bool(run.metrics()), process)
    assert len(run.processes()) == 4  # The launcher, torchrun, two ranks.
    process.kill()
    process.wait()
    wait_until(lambda: not run.processes(), seconds=20)
    # A stopped run that has saved nothing may have other settings; nothing keeps the directory from it.
    result = launch(run)
    assert result.returncode == 0, result.stderr


def test_ranks_do_not_outlive_torchrun_that_is_killed(run: Run) -> None:
    process = run.launch_and_hold(11)
    process.kill()
    process.wait()
    wait_until(lambda: not run.processes(), seconds=20)
    result = run.launch()
    assert result.returncode == 0, result.stderr
    assert f"continuing at step 8 of {STEPS}" in result.stderr


def test_what_can_be_told_at_once_is_told_in_two_lines_and_leaves_nothing_behind(run: Run) -> None:
    result = launch(run, "method.mask_ratio=0.999")
    assert result.returncode == 1
    assert result.stderr == "Error: method.mask_ratio: masks all of the 16 patches\n  Choose a smaller one.\n"
    assert not run.out.exists()


def test_more_ranks_than_gpus_are_refused_before_any_is_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--ranks: 3 ranks, but 2 GPU\(s\).*\n  Give --ranks 2"):
        start(run.config, shards=str(run.shards), out=str(run.out), overrides=(), ranks=3)
    assert not run.out.exists()


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_that_ends_before_its_last_step_is_no_success_whatever_its_status(
    run: Run, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Ranks that were asked to stop by somebody else have saved, and end as they should."""
    monkeypatch.setattr("mrm_stream.distributed.launch._wait", lambda *_: (status, False))
    with pytest.raises(TrainingError, match=rf"has stopped before its end \(exit status {status}\)"):
        start(run.config, shards=str(run.shards), out=str(run.out), overrides=(), ranks=1)


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, time\nos.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)\n")
    launcher = [sys.executable, "-m", "mrm_stream.distributed.torchrun", "--standalone", "--nproc_per_node=2"]
    environment = {**ENVIRONMENT, ERROR_FILE: str(tmp_path / "error.json")}
    with subprocess.Popen([*launcher, str(script)], env=environment, stdin=-1, stderr=-1, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=120) == 1
    assert "Traceback" not in said
    assert "exitcode" not in said  # Of torchrun's own table.
    error = error_left(tmp_path / "error.json")
    assert error is not None
    assert "rank 1 was ended by SIGKILL" in str(error)


def test_a_request_to_stop_reaches_the_ranks_and_the_same_command_continues(run: Run) -> None:
    process = subprocess.Popen(command(run, "run.save_every=1000"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(run.metrics()), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run was asked to stop" in said
    assert "Traceback" not in said
    assert len(list((run.out / "checkpoints").glob("step-*"))) == 1

    changed = launch(run, "optim.base_lr=0.2")
    assert changed.returncode == 1
    assert "holds a run with other settings: optim.base_lr was 0.1, is 0.2" in changed.stderr
    assert len(changed.stderr.splitlines()) == 2

    temporary = run.out.with_name("temporary")
    temporary.mkdir()
    result = launch(run, TMPDIR=str(temporary))
    assert result.returncode == 0, result.stderr
    # But for torch's own cache, one for all of a user's runs.
    assert [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
    assert "continuing at step" in result.stderr
    assert str(run.out / "encoder.safetensors") in result.stdout
    assert json.loads((run.out / "complete.json").read_text())["step"] == STEPS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("is_ignored", [False, True], ids=["heard", "ignored"])
def test_a_signal_that_is_ignored_as_below_nohup_stops_nothing(
    tmp_path: Path, number: signal.Signals, is_ignored: bool
) -> None:
    # Asked again and again: the first request may come before anybody listens.
    script = "import os, time\nfor _ in range({}): os.kill(os.getppid(), {}); time.sleep(0.2)"
    asks = [sys.executable, "-c", script.format(1 if is_ignored else 300, int(number))]
    before = signal.SIG_IGN if is_ignored else (lambda *_: None)
    found = signal.signal(number, before)
    try:
        ended = _wait(asks, tmp_path / "error.json")
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, found)
    assert ended == ((0, False) if is_ignored else (-signal.SIGTERM, True))


def test_a_launch_that_fails_beside_a_complete_run_is_no_success(run: Run) -> None:
    run.out.mkdir()
    (run.out / "complete.json").write_text("{}")
    (run.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    result = launch(run)
    assert result.returncode == 1
    assert result.stderr.count("all checkpoints are damaged") == 1
    assert result.stderr.count("Error:") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("missing", ["--shards", "--out"])
def test_the_script_itself_asks_for_its_directories(run: Run, missing: str) -> None:
    arguments = run.arguments()
    place = arguments.index(missing)
    short = [sys.executable, *arguments[:place], *arguments[place + 2 :]]
    result = subprocess.run(short, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert f"Give {missing} DIR" in result.stderr
