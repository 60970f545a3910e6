"""Steps of two ranks and more, against one process that does not use DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import torchrun

SCRIPT = str(Path(__file__).with_name("gradients.py"))


def launch(ranks: int, *checks: str) -> dict[str, list[dict[str, Any]]]:
    """Return the lines that each check printed."""
    result = torchrun([SCRIPT, *checks], ranks=ranks)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {check: [line for line in lines if line["check"] == check] for check in checks}


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, list[dict[str, Any]]]:
    """All checks in one launch: what takes long is to import DeepSpeed."""
    return launch(2, "sharing", "communication", "skipping")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_losses_and_gradients_do_not_depend_on_ranks_and_micro_batches(
    ranks: int, request: pytest.FixtureRequest
) -> None:
    """Samples have 0 to 9 masked tokens: a mean of each rank or micro-batch would weigh them differently."""
    lines = (request.getfixturevalue("two_ranks") if ranks == 2 else launch(ranks, "sharing"))["sharing"]
    assert len(lines) == 2 * 2 * 2
    for line in lines:
        assert line["losses"] < 1e-6, line
        assert line["gradient"] < 1e-6, line


def test_gradients_are_added_up_in_float32_at_every_zero_stage_unless_asked_otherwise(
    two_ranks: dict[str, list[dict[str, Any]]],
) -> None:
    lines = two_ranks["communication"]
    assert len(lines) == 4 * 2
    for line in lines:
        # What a rank computes is the same; bf16 has 8 significant bits.
        assert line["losses"] < 1e-6, line
        low, high = (0, 1e-6) if line["case"].endswith("fp32") else (1e-4, 1e-2)
        assert low <= line["gradient"] < high, line


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    two_ranks: dict[str, list[dict[str, Any]]],
) -> None:
    lines = two_ranks["skipping"]
    assert len(lines) == (4 * 2 + 2) * 2
    assert [line["skipped"] for line in lines] == [1] * len(lines)
    told = [line for line in lines if "unchanged" in line]
    assert len(told) == 4 * 2 + 2
    for line in told:
        assert line["unchanged"], line
        assert line["trains on"], line
