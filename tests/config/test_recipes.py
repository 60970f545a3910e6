"""What each recipe trains, written down a second time: a default that changes changes every published number."""

from __future__ import annotations

from typing import Any

import pytest

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import ON_RESUME, PretrainConfig
from mrm_stream.config.resume import flat_settings

REFERENCE: dict[str, Any] = {
    "seed": 0,
    "data.split": "train",
    "data.hr_size": 448,
    "data.lr_size": 224,
    "data.antialias": False,
    "data.crop_area": (0.2, 1.0),
    "data.crop_ratio": (3 / 4, 4 / 3),
    "data.flip": 0.5,
    "data.mean": 0.4978,
    "data.std": 0.2449,
    "data.report_length": 100,
    "data.window": 16,
    "data.backend": "auto",
    "model.patch": 16,
    "model.positions": "reference",
    "model.image_encoder.width": 768,
    "model.image_encoder.depth": 12,
    "model.image_encoder.heads": 12,
    "model.image_decoder.width": 768,
    "model.image_decoder.depth": 4,
    "model.image_decoder.heads": 6,
    "model.report_decoder.width": 384,
    "model.report_decoder.depth": 6,
    "model.report_decoder.heads": 6,
    "model.report_decoder.feed_forward": 1536,
    "model.report_decoder.dropout": 0.1,
    "model.report_decoder.positions": 100,
    "method.mask_ratio": 0.75,
    "method.report_mask_ratio": 0.5,
    "method.token_masking": "word",
    "method.pixel_target": "patch_normalized",
    "method.report_loss_over": "all",
    "method.image_loss_weight": 1.0,
    "method.report_loss_weight": 1.0,
    "method.pooling": "mean",
    "method.super_resolution": True,
    "method.hybrid_features": False,
    "optim.batch_size": 256,
    "optim.epochs": 200,
    "optim.warmup_epochs": 40,
    "optim.base_lr": 1.5e-4,
    "optim.min_lr": 0.0,
    "optim.weight_decay": 0.05,
    "optim.betas": (0.9, 0.95),
    "optim.gradient_clip": 0.0,
    "engine.precision": "bf16",
    "engine.communication": "fp32",
    "run.init": "",
}
PAPER = {
    "model.positions": "mae",
    "method.token_masking": "token",
    "method.pixel_target": "pixels",
    "method.report_loss_over": "masked",
}
"""Where the text says otherwise than the code."""


@pytest.mark.parametrize(("recipe", "expected"), [("reference", REFERENCE), ("paper", REFERENCE | PAPER)])
def test_a_recipe_trains_what_it_is_known_for(recipe: str, expected: dict[str, Any]) -> None:
    settings = flat_settings(load_config(PretrainConfig, None, [f"recipe={recipe}"]))
    decisive = {name: value for name, value in settings.items() if ON_RESUME[name].policy in ("refused", "warned")}
    assert decisive == expected


def test_the_published_configuration_is_the_reference_recipe() -> None:
    from pathlib import Path

    settings = flat_settings(load_config(PretrainConfig, Path(__file__).parents[2] / "configs" / "mrm_vit_b16.yaml"))
    assert {name: settings[name] for name in REFERENCE} == REFERENCE
