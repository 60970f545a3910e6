from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.distributed.launched import error_left, telling_launcher
from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.distributed.ranks import FirstRankFailedError
from mrm_stream.errors import ConfigError, TrainingError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launcher looks."""
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    return tmp_path / "error.json"


def test_the_first_error_is_left_whole_and_the_rest_are_silent(place: Path) -> None:
    for what in ("one", "two"):
        with pytest.raises(FirstRankFailedError), telling_launcher():
            raise ConfigError(what, where="here", remedy="Mend it.")
    error = error_left(place)
    assert error is not None
    assert str(error) == "here: one\n  Mend it."


def test_without_a_launcher_an_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)
    with pytest.raises(TrainingError, match="one"), telling_launcher():
        raise TrainingError("one")


def test_half_an_error_is_none(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"what": "o')
    assert error_left(tmp_path / "error.json") is None
    assert error_left(tmp_path / "absent") is None
