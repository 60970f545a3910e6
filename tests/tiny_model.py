"""Fixtures for tests of models: four patches a side, reports of ten tokens, small enough to be made for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch

from mrm_stream.config.pretrain import MethodConfig, ModelConfig, PretrainDataConfig, ReportDecoderConfig, ViTConfig
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.records import Batch

VOCABULARY = 40


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from threads, and wait long for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model() -> Callable[..., MaskedRecordModel]:
    """Method settings to a seeded model without dropout, in evaluation mode."""

    def make(
        dropout: float = 0.0, seed: int = 0, positions: Literal["mae", "reference"] = "reference", **method: Any
    ) -> MaskedRecordModel:
        report = ReportDecoderConfig(width=16, depth=2, heads=2, feed_forward=32, dropout=dropout, positions=12)
        sizes = ModelConfig(
            patch=8,
            positions=positions,
            image_encoder=ViTConfig(16, 2, 2),
            image_decoder=ViTConfig(12, 1, 3),
            report_decoder=report,
        )
        torch.manual_seed(seed)
        data = PretrainDataConfig(hr_size=64, lr_size=32, report_length=10)
        return MaskedRecordModel(sizes, MethodConfig(**method), data, vocabulary=VOCABULARY).eval()

    return make


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    token_ids_BL = torch.randint(4, VOCABULARY, (3, 10), generator=generator)
    token_ids_BL[:, 0] = 2
    token_ids_BL[1, 7:] = 0
    is_masked_BL = torch.rand(3, 10, generator=generator) < 0.5
    is_masked_BL[:, 0] = False
    is_masked_BL[:, 1] = True
    is_masked_BL[:, 2] = False
    return Batch(
        image_hr_BCHW=torch.randn(3, 1, 64, 64, generator=generator),
        image_lr_BCHW=torch.randn(3, 1, 32, 32, generator=generator),
        patch_noise_BN=torch.rand(3, 16, generator=generator),
        token_ids_BL=token_ids_BL,
        token_is_masked_BL=is_masked_BL & (token_ids_BL != 0),
    )
