"""Ranks that meet, or do not: as threads of one process, and as the real script where signals are concerned."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrm_stream.distributed import rendezvous
from mrm_stream.distributed.rendezvous import Meeting, meet
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import ConfigError, MrmStreamError, TrainingError
from tests.training.runs import ENVIRONMENT, Run, free_port

pytestmark = pytest.mark.alone

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Where the ranks of a test meet."""
    number = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return number


def together(*ranks: Callable[[], Meeting]) -> list[Meeting | MrmStreamError]:
    """What becomes of some ranks that start at once; no meeting ends before all of them have."""
    ended: dict[int, Meeting | MrmStreamError] = {}

    def run(number: int, rank: Callable[[], Meeting]) -> None:
        try:
            ended[number] = rank()
        except MrmStreamError as error:
            ended[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [ended[number] for number in range(len(ranks))]


def rank(number: int, world: int, run: str = "runs/a", device: torch.device = CPU, limit_s: float = 20) -> Meeting:
    return meet(Runtime(number, world, number, device), run, limit_s)


def test_ranks_meet_and_meet_again() -> None:
    def both(number: int) -> Meeting:
        meeting = rank(number, 3)
        meeting.gather("imported")
        return meeting

    assert all(isinstance(met, Meeting) for met in together(*(lambda n=n: both(n) for n in (2, 1, 0))))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ranks_meet_at_an_address_of_ipv6_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "::1")
    assert all(isinstance(met, Meeting) for met in together(*(lambda n=n: rank(n, 2, limit_s=5) for n in (1, 0))))


@pytest.mark.parametrize("number", [0, 2])
def test_one_that_cannot_take_part_is_heard_by_all(number: int) -> None:
    error = ConfigError("planted", where="data.shards", remedy="Mount it.")

    def refuse() -> Meeting:
        return meet(Runtime(number, 3, number, CPU), "runs/a", 20, error)

    others = [n for n in range(3) if n != number]
    own, *heard = together(refuse, *(lambda n=n: rank(n, 3) for n in others))
    assert own is error
    said = f"data.shards: rank {number} failed: planted\n  Mount it."
    assert [str(told) for told in heard] == [said, said]


def test_one_that_cannot_take_part_says_so_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_TELLING_S", 0.5)
    errors = [ConfigError(f"planted {number}") for number in range(3)]
    for number in (0, 1):  # nobody else is there
        with pytest.raises(ConfigError, match=f"planted {number}"):
            meet(Runtime(number, 3, number, CPU), "runs/a", 20, errors[number])
    with pytest.raises(ConfigError, match="planted 0"):
        meet(Runtime(0, 1, 0, CPU), "runs/a", 20, errors[0])
    asked = [lambda n=n: meet(Runtime(n, 3, n, CPU), "runs/a", 20, errors[n]) for n in range(3)]
    assert together(*asked) == errors


def test_one_alone_needs_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "nothing")
    rank(0, 1).gather("imported")


@pytest.mark.parametrize(
    ("number", "what"), [(0, r"1 of 3 ranks have come; missing: 1, 2"), (2, "the first rank is not there")]
)
def test_one_whose_peers_do_not_come_says_so_and_gives_up(
    port: int, caplog: pytest.LogCaptureFixture, number: int, what: str
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match=f"{what}.*, after 2 s") as caught:
        rank(number, 3, limit_s=1.5)
    assert caught.value.where == f"127.0.0.1:{port}"
    (said,) = caplog.messages  # As a warning: the log of every rank but the first holds nothing less.
    assert said.startswith(f"rank {number} waits at 127.0.0.1:{port} since {time.strftime('%H:')}")
    assert "missing: 1, 2" in said or "Connection refused" in said


def test_what_it_waits_for_is_told_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    waiting = rendezvous._Waiting(Runtime(1, 2, 1, CPU), 1000)
    for seconds in range(300):
        waiting._began = time.monotonic() - seconds
        waiting.for_more("one rank", "here:1")
    assert 4 <= len(caplog.messages) <= 8


def test_a_rank_that_dies_between_two_stages_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    def first() -> Meeting:
        meeting = rank(0, 2)
        meeting._limit_s = 1.5
        meeting.gather("imported")
        return meeting

    error, _ = together(first, lambda: rank(1, 2))
    assert isinstance(error, TrainingError)
    assert error.what == "1 of 2 ranks have come; missing: 1, after 2 s"


def test_an_address_that_nobody_knows_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    for number in (0, 1):
        with pytest.raises(ConfigError, match=r"^MASTER_ADDR: no-such-host.invalid cannot be found"):
            rank(number, 2)


@pytest.mark.parametrize("value", ["", "0", "65536", "-1", "http"])
def test_a_port_is_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MASTER_PORT", value)
    with pytest.raises(ConfigError, match=r"MASTER_PORT: .* is not a port"):
        rank(1, 2)


def test_a_port_that_is_taken_is_told_with_what_changes_it(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError) as caught:
        rank(0, 2)
    assert str(caught.value) == (
        f"MASTER_PORT: port {port} of this machine cannot be used: Address already in use\n"
        "  Choose another: `deepspeed --master_port N ...`, or MASTER_PORT=N with srun and torchrun."
    )


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "of another protocol"])
def test_what_listens_at_the_port_and_is_no_first_rank_holds_nobody_up(port: int, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                if answer:
                    peer.sendall(answer)
                    peer.close()
                kept.append(peer)

        kept: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(TrainingError, match="does not answer as a first rank does"):
            rank(1, 2, limit_s=1.5)
    for peer in kept:
        peer.close()


def test_ranks_of_another_run_are_sent_away_and_do_not_disturb_it(port: int) -> None:
    one, stranger, other = together(lambda: rank(0, 2), lambda: rank(1, 2, run="runs/b"), lambda: rank(1, 2))
    assert isinstance(one, Meeting)
    assert isinstance(other, Meeting)
    assert isinstance(stranger, ConfigError)
    assert stranger.what == "another run meets here: 2 ranks of runs/a"
    assert stranger.where == f"127.0.0.1:{port}"


def test_ranks_that_torchrun_starts_again_meet_anew_at_the_store_that_it_kept(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = rendezvous._open_store(port)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for restart in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        monkeypatch.setattr(os, "getpid", lambda restart=restart: 1000 + restart)  # They are other processes.
        assert all(isinstance(met, Meeting) for met in together(lambda: rank(0, 2), lambda: rank(1, 2)))
    del kept


def test_a_rank_that_is_there_twice_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", threading.get_native_id)  # The ranks of this test are threads.
    ended = together(lambda: rank(0, 3), lambda: rank(1, 3), lambda: rank(1, 3))
    assert all(isinstance(error, MrmStreamError) for error in ended)
    said = [error.what for error in ended if isinstance(error, ConfigError)]
    assert said
    for what in said:
        assert re.fullmatch(r"two processes are rank 1: process \d+ on \S+, and process \d+ on \S+", what)


def on_gpus(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> list[Meeting | MrmStreamError]:
    """What becomes of ranks that each see one GPU, as its number 0; threads have names of their own."""
    own = threading.local()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=own.uuid))

    def start(number: int) -> Meeting:
        own.uuid = uuids[number]
        return rank(number, len(uuids), device=torch.device("cuda", 0))

    return together(*(lambda n=n: start(n) for n in range(len(uuids))))


def test_tasks_that_are_each_shown_their_own_gpu_may_all_call_it_number_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(isinstance(met, Meeting) for met in on_gpus(monkeypatch, "GPU-a", "GPU-b"))


def test_two_ranks_on_one_gpu_are_refused_and_every_rank_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = on_gpus(monkeypatch, "GPU-a", "GPU-b", "GPU-a")
    for error in ended:
        assert isinstance(error, MrmStreamError)
    told = [error for error in ended if isinstance(error, ConfigError)]
    assert told
    for error in told:
        assert re.match(r"rank [02] and rank [02] have the same GPU, GPU-a on ", error.what)
        assert "as many ranks on a machine as it has GPUs" in str(error)


def test_the_script_says_what_it_waits_for_and_ends_when_it_is_asked_to(run: Run) -> None:
    script = [sys.executable, *run.arguments()]
    started = []
    for number, sent in ((0, signal.SIGTERM), (1, signal.SIGINT)):
        place = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        process = subprocess.Popen(script, env={**ENVIRONMENT, **place}, stderr=subprocess.PIPE, text=True)
        started.append((process, sent, place["MASTER_PORT"], "missing: 1" if number == 0 else "Connection refused"))
    for process, sent, port, missing in started:
        assert process.stderr is not None
        said = ""
        while "waits at" not in said:
            said = process.stderr.readline()
            assert said, "it has ended"
        assert f"waits at 127.0.0.1:{port} since" in said
        assert missing in said
        process.send_signal(sent)
        assert process.wait(timeout=2) == -sent
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
    assert not Path(run.out).exists()
