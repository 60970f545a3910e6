"""`mrm-stream train`: the short way, to its end and stopped on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mrm_stream.config.file import load_config, with_paths
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.launch import _wait
from mrm_stream.distributed.launched import error_left
from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.tasks.pretrain_launch import launch_pretraining as start
from mrm_stream.train import main as script
from mrm_stream.training.run_directory import check_run, prepare_run
from tests.training.runs import ENVIRONMENT, Run, wait_until


def test_ranks_do_not_outlive_a_launcher_that_is_killed(run: Run) -> None:
    process = run.short_start("optim.epochs=4000", "run.save_every=100000")
    wait_until(lambda: bool(run.metrics()), process)
    assert len(run.processes()) == 4  # The launcher, torchrun, two ranks.
    process.kill()
    process.communicate()
    wait_until(lambda: not run.processes(), seconds=20)
    # A stopped run that has saved nothing may have other settings; nothing keeps the directory from it.
    settings = with_paths(load_config(PretrainConfig, run.config, []), shards=str(run.shards), out=str(run.out))
    prepare_run(run.out, settings, check_run(run.out, settings)).close()


def test_what_can_be_told_at_once_is_told_in_two_lines_and_leaves_nothing_behind(run: Run) -> None:
    result = run.short_launch("method.mask_ratio=0.999")
    assert result.exit_code == 1
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


def test_a_launch_that_fails_beside_a_complete_run_is_no_success(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.out.mkdir()
    (run.out / "complete.json").write_text("{}")
    (run.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    result = run.short_launch()
    assert result.exit_code == 1
    said = result.stderr + capfd.readouterr().err  # The launcher's, and the ranks'.
    assert said.count("all checkpoints are damaged") == 1
    assert said.count("Error:") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("missing", ["--shards", "--out"])
def test_the_script_itself_asks_for_its_directories(run: Run, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    arguments = run.arguments()[1:]
    place = arguments.index(missing)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "0")  # Whatever the script sets is as before when this test ends.
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    result = CliRunner().invoke(script, [*arguments[:place], *arguments[place + 2 :]])
    torch.set_num_threads(threads)
    assert result.exit_code == 1
    assert f"Give {missing} DIR" in result.stderr
