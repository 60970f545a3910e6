"""An error of the operating system that nothing in a run has told: in words, below every launcher."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.launched import error_left
from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.distributed.ranks import FirstRankFailedError
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import StorageError
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.train import main
from mrm_stream.training import trainer


def refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/locked/file")


def broken(*_: object) -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_the_script_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrm_stream.distributed.runtime.start_runtime", refused)
    (tmp_path / "config.yaml").write_text("")
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "config.yaml")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: /locked/file: fails: permission denied\n")
    assert "Traceback" not in result.output


def train() -> None:
    trainer.train(Pretraining(PretrainConfig()), Runtime(0, 1, 0, torch.device("cpu")))


def test_the_launcher_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    monkeypatch.setattr(trainer, "Trainer", refused)
    with pytest.raises(FirstRankFailedError):
        train()
    assert str(error_left(tmp_path / "error.json")).startswith("/locked/file: fails: permission denied\n")


@pytest.mark.parametrize(("what", "kind"), [(refused, StorageError), (broken, BrokenPipeError)])
def test_without_a_launcher_only_what_names_a_file_is_told(
    what: Callable[..., None], kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)
    monkeypatch.setattr(trainer, "Trainer", what)
    with pytest.raises(kind):
        train()
