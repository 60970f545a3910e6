"""Our model against what the reference implementation computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from mrm_stream.config.pretrain import MethodConfig, ModelConfig, PretrainDataConfig, ReportDecoderConfig, ViTConfig
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.model.patches import inverse_order, patch_order
from mrm_stream.pretrained.reference import load_reference, reference_name, to_reference
from mrm_stream.records import Batch


@dataclass(frozen=True)
class Reference:
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {n.removeprefix("param."): value for n, value in self.tensors.items() if n.startswith("param.")}

    def model(self, *, load: bool = True, **method: Any) -> MaskedRecordModel:
        size = self.settings
        sizes = ModelConfig(
            image_encoder=ViTConfig(size["dim"], size["depth"], size["heads"]),
            image_decoder=ViTConfig(size["ddim"], size["ddepth"], size["dheads"]),
            report_decoder=ReportDecoderConfig(depth=size["layers"], heads=size["bheads"], dropout=size["dropout"]),
        )
        assert size["norm_pix_loss"]
        data = PretrainDataConfig(report_length=self.tensors["in.ids"].shape[1])
        method = {"mask_ratio": size["mask_ratio"], **method}
        model = MaskedRecordModel(sizes, MethodConfig(**method), data, vocabulary=size["vocab"])
        if load:
            load_reference(model, self.parameters)
        return model.eval()

    def batch(self) -> Batch:
        image_BCHW = self.tensors["in.image_gray"].float()
        low_BCHW = functional.interpolate(image_BCHW, scale_factor=0.5, mode="bicubic", antialias=False)
        torch.testing.assert_close(low_BCHW, self.tensors["out.low_resolution_gray"], rtol=0, atol=1e-5)
        return Batch(
            image_hr_BCHW=image_BCHW,
            image_lr_BCHW=low_BCHW,
            patch_noise_BN=self.tensors["in.noise"],
            token_ids_BL=self.tensors["in.labels"],
            token_is_masked_BL=self.tensors["in.token_is_masked"],
        )


@pytest.fixture(scope="module")
def reference(shared: Path) -> Iterator[Reference]:
    with safe_open(shared / "reference" / "official_small.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["config"])
        yield Reference(settings, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def test_a_fresh_model_has_the_references_positions_bit_for_bit(reference: Reference) -> None:
    fresh = to_reference(reference.model(load=False))
    for name in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(fresh[name], reference.parameters[name]), name


def test_names_and_tensors_go_in_and_out_unchanged(reference: Reference) -> None:
    saved = to_reference(reference.model())
    assert saved.keys() == reference.parameters.keys()
    for name, value in reference.parameters.items():
        assert torch.equal(saved[name], value), name


def test_losses_agree(reference: Reference) -> None:
    losses = reference.model()(reference.batch())
    for name, key in (
        ("image_loss", "image_loss"),
        ("report_loss", "report_loss_all_tokens"),
        ("report_loss_masked", "report_loss_masked_tokens"),
    ):
        assert losses[name].item() == pytest.approx(reference.tensors[f"out.{key}"].item(), rel=1e-5)
    total = reference.tensors["out.image_loss"] + reference.tensors["out.report_loss_all_tokens"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_masked_only_report_loss_agrees(reference: Reference) -> None:
    losses = reference.model(report_loss_over="masked")(reference.batch())
    expected = reference.tensors["out.report_loss_masked_tokens"].item()
    assert losses["report_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["report_loss_masked"].item() == losses["report_loss"].item()


def test_inputs_are_masked_alike(reference: Reference) -> None:
    batch, tensors = reference.batch(), reference.tensors
    masked_BL = batch.token_ids_BL.masked_fill(batch.token_is_masked_BL, 3)
    assert torch.equal(masked_BL, tensors["in.ids"])
    assert torch.equal((batch.token_ids_BL != 0).long(), tensors["in.attention_mask"])
    assert torch.equal(inverse_order(patch_order(batch.patch_noise_BN)), tensors["out.ids_restore"])
    assert torch.equal(reference.model().reconstruct(batch).is_visible_BN, tensors["out.mask"] == 0)


@torch.no_grad()
def test_latents_and_predictions_agree(reference: Reference) -> None:
    model, batch = reference.model(), reference.batch()
    order_BN = patch_order(batch.patch_noise_BN)
    latent_BVD = model.image_encoder(batch.image_lr_BCHW, order_BN[:, : model.visible])
    torch.testing.assert_close(latent_BVD, reference.tensors["out.latent"], rtol=1e-4, atol=1e-4)
    assert model.image_decoder is not None
    pixels_BKP = model.image_decoder(latent_BVD, order_BN, torch.arange(0, 196, 14).expand(3, -1))
    torch.testing.assert_close(pixels_BKP, reference.tensors["out.pred_every_14th"], rtol=1e-4, atol=1e-4)


def test_every_gradient_agrees(reference: Reference) -> None:
    model = reference.model()
    model(reference.batch())["loss"].backward()
    found = {reference_name(name): parameter.grad for name, parameter in model.named_parameters()}
    # The reference ties the output bias to another name.
    found["bert_encoder.model.cls.predictions.bias"] = found.pop("bert_encoder.model.cls.predictions.decoder.bias")
    expected = reference.settings["grad_norms"]
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None, name
        # A bias on all keys shifts every score alike, so its gradient is rounding alone, about 1e-8.
        assert gradient.norm().item() == pytest.approx(expected[name], rel=1e-3, abs=1e-7), name
