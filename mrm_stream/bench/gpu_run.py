"""The whole of it in `mrm-stream bench gpu`: a run that is stopped and continued, and the tests that want a GPU."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from mrm_stream.bench.gpu_setting import Found, Setting, SkippedError
from mrm_stream.training.metrics import read_metrics
from mrm_stream.training.run_directory import COMPLETE

_ROOT = Path(__file__).parents[2]


def check_run(setting: Setting) -> Found:
    """Train by the command, stop it after a checkpoint, continue it to its end, and draw what it reconstructs."""
    config = _ROOT / "configs" / "smoke.yaml"
    if not config.exists():
        raise SkippedError(f"{config} is not there")
    run = setting.work / f"run-{time.time_ns()}"
    shards = ["--shards", str(setting.shards), "--out", str(run)]
    choices = [
        "optim.batch_size=16",
        "run.save_every=2",
        "run.log_every=2",
        *(["optim.epochs=20"] if setting.tiny else []),
    ]
    train = ["train", "--config", str(config), *shards, *(word for choice in choices for word in ("--set", choice))]
    found = Found()
    first = subprocess.Popen(_command(*train), start_new_session=True)
    while first.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.05)
    first.terminate()
    first.wait()
    saved = max((path.name for path in run.glob("checkpoints/step-*")), default="none")
    found.numbers["stopped_at"] = saved
    found.holds(saved != "none", "the run ended before it had saved a checkpoint")
    found.holds(not (run / COMPLETE).exists(), "the run was complete before it was stopped")
    second = subprocess.run(_command(*train), check=False)
    found.holds(second.returncode == 0, f"the continued run ended with exit status {second.returncode}")
    lines = read_metrics(run)
    found.holds(bool(lines) and all(math.isfinite(line["loss"]) for line in lines), "a loss is not finite")
    found.numbers |= {"steps": lines[-1]["step"], "loss": lines[-1]["loss"]} if lines else {}
    picture = run / "reconstructed.png"
    drawn = subprocess.run(_command("reconstruct", "--run", str(run), "--out", str(picture)), check=False)
    found.holds(drawn.returncode == 0 and picture.exists(), "the picture was not drawn")
    return found


def check_tests(setting: Setting) -> Found:
    """Run the tests of DALI's decoder on the device."""
    tests = _ROOT / "tests" / "decode" / "test_dali.py"
    if not tests.exists():
        raise SkippedError(f"{tests} is not there")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", setting.device.type]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stdout.write(done.stdout)
    if "No module named pytest" in done.stdout:
        raise SkippedError("the package pytest is not installed")
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    found = Found(dict(counts))
    found.holds(done.returncode == 0, "see tests.log")
    found.holds(counts.get("passed", 0) > 0, "none was run")
    return found


def _command(*words: str) -> list[str]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [sys.executable, "-m", "mrm_stream.cli", *words]
