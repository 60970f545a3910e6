"""Steps of two ranks and more, against one process that does not use DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.distributed.ranks import Ranks
from tests.training import gradients
from tests.training.runs import torchrun

SCRIPT = str(Path(__file__).with_name("gradients.py"))
Lines = list[dict[str, Any]]


def lines_of(check: str, told: str) -> Lines:
    """The lines that a check printed."""
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("check") == check]


@pytest.fixture(scope="module")
def told(two_ranks: Path) -> str:
    return (two_ranks / "told.jsonl").read_text()


def launched(ranks: int) -> Lines:
    result = torchrun([SCRIPT, "sharing"], ranks=ranks)
    assert result.returncode == 0, result.stderr
    return lines_of("sharing", result.stdout)


# One rank and two: a division by a number that is no rank's own, or a mean of means, is wrong on one of them.
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.campaign)])
def test_losses_and_gradients_do_not_depend_on_ranks_and_micro_batches(
    ranks: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples have 0 to 9 masked tokens: a mean of each rank or micro-batch would weigh them differently."""
    if ranks == 1:
        runtime = request.getfixturevalue("runtime")
        Ranks(runtime)
        gradients.check(runtime, "sharing")
        lines = lines_of("sharing", capsys.readouterr().out)
    else:
        lines = lines_of("sharing", request.getfixturevalue("told")) if ranks == 2 else launched(ranks)
    assert len(lines) == 2 * 2 * 2
    for line in lines:
        assert line["losses"] < 1e-6, line
        assert line["gradient"] < 1e-6, line


def test_gradients_are_added_up_in_float32_at_every_zero_stage_unless_asked_otherwise(
    told: str,
) -> None:
    lines = lines_of("communication", told)
    assert len(lines) == 4 * 2
    for line in lines:
        # What a rank computes is the same; bf16 has 8 significant bits.
        assert line["losses"] < 1e-6, line
        low, high = (0, 1e-6) if line["case"].endswith("fp32") else (1e-4, 1e-2)
        assert low <= line["gradient"] < high, line


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    told: str,
) -> None:
    lines = lines_of("skipping", told)
    assert len(lines) == (4 * 2 + 2) * 2
    assert [line["skipped"] for line in lines] == [1] * len(lines)
    first = [line for line in lines if "unchanged" in line]
    assert len(first) == 4 * 2 + 2
    for line in first:
        assert line["unchanged"], line
        assert line["trains on"], line


@pytest.mark.parametrize("stage", range(4))
def test_every_zero_stage_resumes_its_own_state_bit_for_bit(told: str, stage: int) -> None:
    lines = [json.loads(line) for line in told.splitlines() if line.startswith('{"zero stage"')]
    assert sorted((line["rank"], line["same"]) for line in lines if line["zero stage"] == stage) == [
        (0, True),
        (1, True),
    ]
