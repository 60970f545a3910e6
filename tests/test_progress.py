"""Rates and times left are of what this run does, not of what it found done."""

from __future__ import annotations

import sys
import time

import pytest

from mrm_stream.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for the test to change."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_was_kept_is_no_work(
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    is_terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with caplog.at_level("INFO"), progress("packing", "records") as advance:
        clock[0] += 50  # 900 of 1,000 are looked at, and kept
        advance(900, 1000, "", 900)
        clock[0] += 20
        advance(920, 1000, "a note", 900)
    said = caplog.text if not is_terminal else capsys.readouterr().err
    assert "a note" in said
    assert ("1.0/s, 80 s left" if not is_terminal else "1/s") in said
    assert not is_terminal or "0:01:20" in said


def test_without_anything_kept_all_counts(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), progress("packing", "records") as advance:
        clock[0] += 20
        advance(40, 100, "")
        advance(100, 100, "")
    assert "40/100 records, 2.0/s, 30 s left" in caplog.text
    assert "100/100 records, 5.0/s\n" in caplog.text
