from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from mrm_stream.distributed.runtime import ended_by_signals, start_runtime


def ranks_of(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, str]:
    """What the environment holds once a process that was started with it knows which rank it is."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(os, "environ", dict(environment))
    start_runtime()
    return dict(os.environ)


def srun(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, str]:
    task = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "node1"}
    return ranks_of(monkeypatch, **{**task, **environment})


def test_each_step_of_each_slurm_job_meets_at_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [
        int(srun(monkeypatch, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))["MASTER_PORT"])
        for job in range(4_999_990, 5_000_010)
        for step in range(10)
    ]
    assert len(set(ports)) == len(ports)
    # Not privileged, and not among those that Linux gives to outgoing connections.
    assert min(ports) >= 1024
    assert max(ports) < 32768
    again = srun(monkeypatch, SLURM_JOB_ID="4999990", SLURM_STEP_ID="0", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert int(again["MASTER_PORT"]) == ports[0]


def test_a_port_that_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert srun(monkeypatch, SLURM_JOB_ID="7", MASTER_PORT="29600")["MASTER_PORT"] == "29600"
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
    assert ranks_of(monkeypatch, **launched)["MASTER_PORT"] == "29500"


def test_a_task_that_is_shown_its_own_gpu_only_takes_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    # DeepSpeed reads the variable too.
    assert srun(monkeypatch, SLURM_JOB_ID="7")["LOCAL_RANK"] == "0"
    assert chosen == [torch.device("cuda", 0)]


def test_signals_end_a_process_only_while_they_may() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
