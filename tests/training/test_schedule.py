from __future__ import annotations

import pytest

from mrm_stream.config.base import OptimConfig
from mrm_stream.training.schedule import learning_rate, total_steps

PAPER = OptimConfig(batch_size=512, epochs=200, warmup_epochs=40, base_lr=1.5e-4, min_lr=1e-6)


def test_it_rises_in_a_line_to_the_scaled_peak() -> None:
    assert learning_rate(0, PAPER) == 0
    assert learning_rate(10, PAPER) == pytest.approx(0.25 * 3e-4)
    assert learning_rate(40, PAPER) == pytest.approx(3e-4)


def test_it_falls_by_a_cosine_to_the_minimum() -> None:
    assert learning_rate(120, PAPER) == pytest.approx((3e-4 + 1e-6) / 2)
    assert learning_rate(200, PAPER) == pytest.approx(1e-6)
    rates = [learning_rate(epoch, PAPER) for epoch in range(40, 201)]
    assert rates == sorted(rates, reverse=True)


def test_past_the_end_it_stays_at_the_minimum() -> None:
    assert learning_rate(201, PAPER) == pytest.approx(1e-6)


def test_a_run_without_warm_up_begins_at_the_peak() -> None:
    assert learning_rate(0, OptimConfig(batch_size=256, warmup_epochs=0, base_lr=1.0)) == 1.0


@pytest.mark.parametrize(
    ("samples", "batch", "epochs", "steps"), [(10, 4, 1, 3), (10, 5, 2, 4), (3, 8, 4, 2), (7, 7, 0.5, 1)]
)
def test_steps_cover_every_epoch(samples: int, batch: int, epochs: float, steps: int) -> None:
    assert total_steps(samples, OptimConfig(batch_size=batch, epochs=epochs, warmup_epochs=0)) == steps
