from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from mrm_stream.distributed.orphan import ERROR_FILE, Process, launchers_above
from tests.training.runs import ENVIRONMENT

RANK = """
import os, signal, sys, time
from mrm_stream.distributed.orphan import end_with_launcher
signal.signal(signal.SIGTERM, lambda *_: None)
end_with_launcher()
print(os.getpid(), flush=True)
time.sleep(5)
print("went on", flush=True)
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.Popen(sys.argv[1:]).wait())"


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, with pipes to and from it."""
    inherited = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("TORCHELASTIC")}
    return subprocess.Popen(
        command, env={**inherited, **environment}, stdin=-1, stdout=-1, text=True, start_new_session=True
    )


def output_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def launched(folder: Path, *names: str, between: tuple[str, ...] = (), rank: str = RANK) -> list[str]:
    """A rank below launchers of these names, the outermost first."""
    command = []
    for name in names:
        (folder / name).write_text(LAUNCHER)
        command += [sys.executable, str(folder / name)]
    return [*command, *between, sys.executable, "-c", rank]


@pytest.mark.parametrize(
    ("names", "between", "environment"),
    [
        (("torchrun",), (), {}),
        (("torchrun",), ("sh", "-c", '"$@"; exit', "sh"), {}),
        (("deepspeed", "own.py"), (), {}),
        (("own.py",), (), {"TORCHELASTIC_RUN_ID": "none"}),
    ],
    ids=["torchrun", "a shell between", "the runner above DeepSpeed's launcher", "a program that uses torch's agent"],
)
def test_a_rank_ends_when_a_launcher_above_it_is_killed(
    tmp_path: Path, names: tuple[str, ...], between: tuple[str, ...], environment: dict[str, str]
) -> None:
    with start(*launched(tmp_path, *names, between=between), **environment) as process:
        assert output_of(process).readline().strip().isdecimal()
        process.kill()
        assert output_of(process).read() == ""  # Which returns when all that could write to it have ended.


def test_a_rank_that_was_asked_to_stop_too_is_left_to_save(tmp_path: Path) -> None:
    with start(*launched(tmp_path, "deepspeed")) as process:
        rank = int(output_of(process).readline())
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
        assert output_of(process).readline() == "went on\n"
        os.kill(rank, signal.SIGKILL)


def test_a_rank_that_is_done_ends_while_its_launcher_lives(tmp_path: Path) -> None:
    with start(*launched(tmp_path, "torchrun", rank=RANK.partition("print")[0])) as process:
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()  # And a rank that has not ended ends with it.


def test_a_shell_that_ends_takes_no_rank_with_it() -> None:
    with start("sh", "-c", '"$@" & read line', "sh", sys.executable, "-c", RANK) as process:
        rank = int(output_of(process).readline())
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=20)
        assert output_of(process).readline() == "went on\n"
        os.kill(rank, signal.SIGKILL)


def test_a_rank_ends_when_its_launcher_closes_the_pipe() -> None:
    with start(sys.executable, "-c", RANK, **{ERROR_FILE: "error.json"}) as process:
        assert output_of(process).readline().strip().isdecimal()
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 1


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ("/opt/bin/python3 /opt/bin/torchrun --standalone train.py", True),
        ("/opt/bin/python3.11 -u -X dev -m torch.distributed.run --nproc_per_node=2 train.py", True),
        ("python /opt/bin/deepspeed mrm_stream/train.py", True),
        ("/opt/bin/python -u -m deepspeed.launcher.launch --world_info=e30= mrm_stream/train.py", True),
        ("slurmstepd: [4711.0]", True),
        ("/opt/bin/torchrun train.py", True),
        ("bash -c torchrun", False),
        ("sh start.sh torchrun", False),
        ("python start.py deepspeed", False),
        ("python", False),
        ("/usr/bin/vim /opt/bin/torchrun", False),
        ("", False),
    ],
)
def test_a_launcher_is_known_by_its_program(tmp_path: Path, command: str, is_launcher: bool) -> None:
    for number, parent, line in ((1, 0, "init"), (7, 1, command), (8, 7, "bash"), (9, 8, "python train.py")):
        (tmp_path / str(number)).mkdir()
        fields = ["R", str(parent), *["0"] * 17, str(100 + number), "0"]
        (tmp_path / str(number) / "stat").write_text(f"{number} (a) (b) {' '.join(fields)}")
        (tmp_path / str(number) / "cmdline").write_text(line.replace(" ", "\0") + "\0")
    assert launchers_above(9, tmp_path) == ([Process(7, 107)] if is_launcher else [])


def test_without_a_list_of_processes_no_launcher_is_found(tmp_path: Path) -> None:
    assert launchers_above(os.getpid(), tmp_path) == []
