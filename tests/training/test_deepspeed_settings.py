"""What DeepSpeed is told, whole: its own defaults clip gradients and round them to bf16 on their way."""

from __future__ import annotations

from typing import Any

import pytest

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.training.engine import deepspeed_settings


def told(world: int, *overrides: str) -> dict[str, Any]:
    config = load_config(PretrainConfig, None, overrides)
    return deepspeed_settings(config.optim, config.engine, world)


def test_by_default() -> None:
    assert told(8) == {
        "train_batch_size": 256,
        "train_micro_batch_size_per_gpu": 32,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": 25_000_000,
            "allgather_bucket_size": 25_000_000,
            "memory_efficient_linear": False,
            "overlap_comm": False,  # There is no GPU to overlap with here.
        },
        "timers": {"throughput": {"enabled": False}},
        "steps_per_print": 2**62,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("engine.precision=fp32", {"torch_autocast": None}),
        (
            "engine.communication=bf16",
            {"communication_data_type": "bf16", "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        ),
        ("optim.gradient_clip=0.5", {"gradient_clipping": 0.5}),
        ("optim.micro_batch_size=8", {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4}),
        ("optim.batch_size=64", {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}),
        ("engine.compile=true", {}),
        ("optim.weight_decay=0.1", {}),
    ],
)
def test_a_setting_changes_its_own_part_and_no_other(override: str, changed: dict[str, Any]) -> None:
    default = told(8)
    expected = {name: value for name, value in (default | changed).items() if value is not None}
    assert told(8, override) == expected


@pytest.mark.parametrize("world", [1, 2, 16])
def test_the_number_of_ranks_changes_shares_and_nothing_else(world: int) -> None:
    """One rank, too, adds up gradients: those of its micro-batches."""
    shares = {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 32 // world}
    assert told(world, "optim.micro_batch_size=8") == told(8) | shares


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_zero_stage_is_told(stage: int) -> None:
    default = told(8)
    assert told(8, f"engine.zero_stage={stage}") == default | {
        "zero_optimization": default["zero_optimization"] | {"stage": stage}
    }
