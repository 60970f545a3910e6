"""What the model predicts, made visible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.model.patches import patchify, take_patches
from mrm_stream.records import Batch

Maker = Callable[..., MaskedRecordModel]


class _Oracle(nn.Module):
    """An image decoder that knows the answer."""

    def __init__(self, target_BNP: Tensor) -> None:
        super().__init__()
        self.target_BNP = target_BNP

    def forward(self, _latent: Tensor, _order: Tensor, wanted_BK: Tensor, _feature: Tensor | None) -> Tensor:
        return take_patches(self.target_BNP, wanted_BK).repeat_interleave(3, dim=-1)


@pytest.mark.parametrize("target", ["pixels", "patch_normalized", "image_normalized"])
@pytest.mark.parametrize("super_resolution", [True, False])
def test_a_perfect_prediction_reconstructs_the_radiograph(
    make_model: Maker, batch: Batch, target: str, super_resolution: bool
) -> None:
    model = make_model(pixel_target=target, super_resolution=super_resolution)
    image_BCHW = batch.image_hr_BCHW if super_resolution else batch.image_lr_BCHW
    grey_BCHW = image_BCHW * 0.2449 + 0.4978
    target_BNP = patchify(grey_BCHW if target == "pixels" else image_BCHW, 16 if super_resolution else 8)
    if target == "patch_normalized":
        target_BNP = (target_BNP - target_BNP.mean(-1, True)) / target_BNP.std(-1, keepdim=True)
    model.image_decoder = _Oracle(target_BNP)  # type: ignore[assignment]
    reconstructed_BCHW = model.reconstruct(batch).image_BCHW
    # The unbiased variance of one channel is a little larger than that of three equal ones.
    torch.testing.assert_close(reconstructed_BCHW, grey_BCHW.clamp(0, 1), rtol=0, atol=0.02)
    assert model(batch)["image_loss"].item() < 1e-3


def test_reconstruction_is_of_the_batch_and_leaves_the_model_as_it_was(make_model: Maker, batch: Batch) -> None:
    model = make_model(dropout=0.5, hybrid_features=True).train()
    first, second = model.reconstruct(batch), model.reconstruct(batch)
    assert model.training
    assert model.report_decoder is not None
    assert model.report_decoder.training
    assert first.image_BCHW is not None
    assert first.token_ids_BL is not None
    assert first.image_BCHW.shape == (3, 1, 64, 64)
    assert not first.image_BCHW.requires_grad
    assert 0 <= first.image_BCHW.min() < first.image_BCHW.max() <= 1
    assert torch.equal(first.image_BCHW, second.image_BCHW)  # type: ignore[arg-type]
    assert torch.equal(first.is_visible_BN, second.is_visible_BN)
    model.eval()
    logits_BLV: list[Tensor] = []
    model.report_decoder.head.register_forward_hook(lambda _module, _inputs, output: logits_BLV.append(output))
    model(batch)
    assert torch.equal(first.token_ids_BL, logits_BLV[0].argmax(dim=-1))
