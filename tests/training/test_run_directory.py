from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.config import Config
from mrm_stream.config_file import load_config
from mrm_stream.errors import ConfigError
from mrm_stream.training.run_directory import check_run, prepare_run


def config(*overrides: str) -> Config:
    return load_config(None, ["data.shards=shards/a", "run.out=runs/a", *overrides])


def test_the_settings_are_saved_with_paths_that_hold_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_run(Path("runs/a"), config()).close()
    saved = load_config(tmp_path / "runs/a/config.yaml")
    assert saved.data.shards == str(tmp_path / "shards/a")
    assert saved.run.out == str(tmp_path / "runs/a")
    assert saved.run.init == ""


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare_run(out, config()).close()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out, *out.iterdir()))


def test_a_check_finds_changed_settings_and_changes_nothing(tmp_path: Path) -> None:
    prepare_run(tmp_path, config()).close()
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"optim.base_lr was 0.00015, is 0.1\n"):
        check_run(tmp_path, config("optim.base_lr=0.1"))
    check_run(tmp_path, config("run.log_every=3"))
    assert (tmp_path / "config.yaml").read_bytes() == before
    check_run(tmp_path / "absent", config())
    assert not (tmp_path / "absent").exists()


def test_a_check_finds_a_run_in_progress_and_does_not_hold_it_up(tmp_path: Path) -> None:
    lock = prepare_run(tmp_path, config())
    with pytest.raises(ConfigError, match="another process is training"):
        check_run(tmp_path, config())
    lock.close()
    check_run(tmp_path, config())
    prepare_run(tmp_path, config()).close()
