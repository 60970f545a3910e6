"""`mrm-stream bench gpu` on the CPU: the code of its parts runs, faults are found, and no part ends the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mrm_stream.bench import gpu, gpu_part, gpu_pixels, gpu_steps
from mrm_stream.bench.gpu import Part, bench_gpu, has_failed, summary
from mrm_stream.bench.gpu_setting import Found, Setting, SkippedError
from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = Setting(tmp_path_factory.mktemp("gpu"), tiny=True)
    assert gpu_pixels.check_data(made).faults == []
    return made


@pytest.mark.parametrize("check", [gpu_pixels.check_decoders, gpu_pixels.check_pixels])
def test_pixels_that_are_another_sample_s_are_found(
    setting: Setting, check: Callable[[Setting], Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali")
    assert check(setting).faults == []
    decode = DaliDecoder.decode
    monkeypatch.setattr(DaliDecoder, "decode", lambda self, *args: decode(self, *args).roll(1, 0))
    assert check(setting).faults


def test_one_square_and_one_token_of_another_batch_are_found() -> None:
    def readings() -> list[list[torch.Tensor]]:
        return [[torch.full((2, 1, 4, 4), 9.0), torch.ones(2, 1, 4, 4), torch.arange(6)] for _ in range(3)]

    def faults(plant: Callable[[list[list[torch.Tensor]]], object]) -> list[str]:
        found, ours = Found(), readings()
        plant(ours)
        gpu_pixels.compare_readings(found, "x", ours, readings())
        return found.faults

    assert faults(lambda ours: None) == []
    assert "x_grey_levels" in faults(lambda ours: ours[2][0][1, 0, 3, 3].add_(20))[0]
    assert "x_grey_levels" in faults(lambda ours: ours[0][1][0, 0, 0, 0].fill_(torch.nan))[0]
    assert "x_other_tensors" in faults(lambda ours: ours[1][2][5].add_(1))[0]


def test_a_gradient_that_is_wrong_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_steps.check_losses(setting).faults == []
    losses, calls = gpu_steps._losses, []

    def later_scaled(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        found, gradient = losses(*args, **kwargs)
        return found, gradient * (1 if len(calls) == 1 else 1.01)

    monkeypatch.setattr(gpu_steps, "_losses", later_scaled)
    assert gpu_steps.check_losses(setting).faults[0].startswith("fp32_gradient_relative")


def test_the_full_model_takes_76_gflop_a_sample() -> None:
    assert gpu_steps.flops_a_sample(load_config(PretrainConfig, None, []), 30_000) == pytest.approx(76.7e9, rel=0.01)


@pytest.mark.parametrize(
    ("raised", "outcome", "reason"),
    [
        (ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed"), "skipped", "deepspeed is not installed"),
        (SkippedError("no such thing here"), "skipped", "no such thing here"),
        (RuntimeError("CUDA error"), "failed", "RuntimeError: CUDA error"),
    ],
)
def test_how_a_part_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, outcome: str, reason: str
) -> None:
    def check(setting: Setting) -> Found:
        raise raised

    monkeypatch.setattr(gpu_part, "_function", lambda name: check)
    gpu_part.main("zero", str(tmp_path), "tiny")
    told = json.loads((tmp_path / "zero.json").read_text())
    assert told["outcome"] == outcome
    assert reason in told["reason"]


def test_a_part_that_hangs_or_has_no_data_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Part("data", "", 0.25), Part("pixels", "", 60, needs_data=True), Part("no-such", "", 60)
    monkeypatch.setattr(gpu, "PARTS", parts)
    result = bench_gpu(tmp_path / "out", tiny=True)
    found = result["parts"]
    assert "has not ended within 1 s" in found["data"]["reason"]
    assert found["pixels"] == {"outcome": "skipped", "reason": "there is no packed set: see data"}
    assert found["no-such"]["outcome"] == "failed"
    assert has_failed(result)
    assert summary(result).startswith("0 passed, 2 failed, 1 skipped")
    assert json.loads((tmp_path / "out" / "gpu.json").read_text()) == result


def test_without_a_gpu_full_sizes_are_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_device", lambda: {})
    with pytest.raises(ConfigError, match="--tiny"):
        bench_gpu(tmp_path / "out", tiny=False)
    assert not (tmp_path / "out").exists()


def test_the_script_runs_a_part_and_its_exit_status_tells(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "tools" / "gpu_check.sh"), str(tmp_path / "out"), "--tiny", "--only", "losses"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("losses    passed")
    assert "1 passed, 0 failed, 0 skipped" in done.stdout
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert result["parts"]["losses"]["numbers"]["fp32_loss_relative"] == 0
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    wrong = subprocess.run([*command[:-1], "loses"], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "losses" in wrong.stderr
