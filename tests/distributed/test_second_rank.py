"""What each rank has of its own reaches the log, the checkpoint and the others, from whichever rank it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Told = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told(two_ranks: Path) -> Told:
    """What both ranks told of each case, the first rank's first."""
    lines = map(json.loads, (two_ranks / "told.jsonl").read_text().splitlines())
    cases: Told = {}
    for line in sorted((line for line in lines if "complete" in line), key=lambda line: line["rank"]):
        cases.setdefault(line["case"], []).append(line)
    assert all([line["rank"] for line in lines] == [0, 1] for lines in cases.values())
    return cases


def only_line(told: Told, case: str) -> dict[str, Any]:
    lines: list[dict[str, Any]] = told[case][0]["metrics"]
    assert len(lines) == 1
    return lines[0]


def test_undisturbed_both_end(told: Told) -> None:
    assert [line["complete"] for line in told["undisturbed"]] == [True, True]
    assert only_line(told, "undisturbed")["bad_samples"] == 0


def test_each_rank_drops_out_by_a_key_of_its_own(told: Told) -> None:
    first, second = told["asked to stop"]  # At the end of a whole run the seed is set anew, to export.
    assert first["seed"] != second["seed"]


def test_its_bad_samples_are_counted_and_saved(told: Told) -> None:
    assert only_line(told, "damaged sample")["bad_samples"] == 1
    assert len(told["damaged sample"][0]["state"]["loader"]["bad_samples"]) == 1


def test_its_bytes_are_counted(told: Told) -> None:
    line = only_line(told, "more bytes")
    # Four batches were trained on; a few more may have been decoded ahead.
    assert line["mb_per_s"] * 24 / line["samples_per_s"] >= 4000


def test_its_losses_are_half_of_the_mean(told: Told) -> None:
    plain, higher = only_line(told, "undisturbed"), only_line(told, "higher losses")
    for name in ("loss", "image_loss", "report_loss", "report_loss_masked"):
        assert higher[name] == pytest.approx(plain[name] + 5, rel=1e-6)


def test_its_losses_end_the_run_when_they_are_not_finite(told: Told) -> None:
    assert [line["complete"] for line in told["losses that are not finite"]] == ["TrainingError"] * 2
    assert told["losses that are not finite"][0]["state"] is None


def test_its_request_to_stop_stops_both_at_one_step(told: Told) -> None:
    assert [line["complete"] for line in told["asked to stop"]] == [False, False]
    state = told["asked to stop"][0]["state"]
    assert state["step"] == 2
    assert state["loader"]["position"] == 12


def test_its_sums_are_saved_beside_the_first_one_s(told: Told) -> None:
    first, second = told["asked to stop"][0]["state"]["windows"]
    assert first["steps"] == second["steps"] == 2
    assert all(first["sums"][name] != second["sums"][name] for name in ("loss", "image_loss", "report_loss"))


def test_a_batch_that_the_ranks_do_not_divide_is_refused_in_words(two_ranks: Path, told: Told) -> None:
    assert [line["complete"] for line in told["odd batch"]] == ["ConfigError"] * 2
    for line in told["odd batch"]:
        assert line["said"].startswith("optim.batch_size: 2 ranks do not divide a batch of 7 samples")
    assert (two_ranks / "runs" / "undisturbed").exists()
    assert not (two_ranks / "runs" / "odd-batch").exists()


def test_what_it_cannot_open_is_told_by_the_first_too(told: Told) -> None:
    first, second = told["no shards"]
    assert (first["complete"], second["complete"]) == ("TrainingError", "ShardError")
    assert first["said"] == "/mnt/set: rank 1 failed: planted: no such set\n  Mount it."
    assert first["metrics"] == []


@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        ("settings", "ConfigError", "run.out: rank 1 failed: planted: entangled\n  Move."),
        ("loader", "ShardError", "/mnt/set: rank 1 failed: planted: no order\n  Mount it."),
        ("moments", "CheckpointError", "/mnt/run: rank 1 failed: planted: a shape\n  Look."),
        ("order", "CheckpointError", "/mnt/run: rank 1 failed: planted: order\n  Look."),
        ("sums", "CheckpointError", "/mnt/run: rank 1 failed: planted: sums\n  Look."),
    ],
)
def test_whatever_fails_before_the_first_step_is_told_by_the_first_too(
    told: Told, case: str, kind: str, said: str
) -> None:
    first, second = told[case]
    assert (first["complete"], second["complete"]) == ("TrainingError", kind)
    assert first["said"] == said
