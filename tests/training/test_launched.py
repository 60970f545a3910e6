from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrm_stream.errors import ConfigError, TrainingError
from mrm_stream.training.launched import ERROR_FILE, bound_to_launcher, error_left
from mrm_stream.training.ranks import FirstRankFailedError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launcher looks; standard input stays open."""
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    monkeypatch.setattr("mrm_stream.training.launched.end_with_launcher", lambda: None)
    return tmp_path / "error.json"


def test_the_first_error_is_left_whole_and_the_rest_are_silent(place: Path) -> None:
    for what in ("one", "two"):
        with pytest.raises(FirstRankFailedError), bound_to_launcher():
            raise ConfigError(what, where="here", remedy="Mend it.")
    error = error_left(place)
    assert error is not None
    assert str(error) == "here: one\n  Mend it."


def test_without_a_launcher_an_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)
    with pytest.raises(TrainingError, match="one"), bound_to_launcher():
        raise TrainingError("one")


def test_half_an_error_is_none(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"what": "o')
    assert error_left(tmp_path / "error.json") is None
    assert error_left(tmp_path / "absent") is None


def test_a_process_ends_when_its_launcher_closes_the_pipe() -> None:
    code = "import time; from mrm_stream.training.launched import *; end_with_launcher(); print('up', flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(120)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, ERROR_FILE: "error.json"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == 1
    process.stdout.close()
