"""What each setting of the method changes, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from mrm_stream.config.pretrain import (
    RECIPES,
    MethodConfig,
    ModelConfig,
    PretrainDataConfig,
    ReportDecoderConfig,
    ViTConfig,
)
from mrm_stream.errors import ConfigError
from mrm_stream.model.image_encoder import ImageEncoder
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.model.patches import patch_order, patchify, take_patches
from mrm_stream.records import Batch

Maker = Callable[..., MaskedRecordModel]


def _inputs_of(module: nn.Module | None, call: Callable[[], Any]) -> tuple[Any, ...]:
    """Return the arguments that `call` makes `module` be called with."""
    seen: list[tuple[Any, ...]] = []
    assert module is not None
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    call()
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def _losses(model: MaskedRecordModel, batch: Batch) -> dict[str, float]:
    return {name: value.item() for name, value in model(batch).items()}


def _with_hr_patches_changed(batch: Batch, model: MaskedRecordModel, visible: bool) -> Batch:
    """Return the batch with noise over all visible, or all masked, patches of its target and of its input."""
    is_visible_BN = model.reconstruct(batch).is_visible_BN.reshape(-1, 1, 4, 4)
    images = []
    for image, side in ((batch.image_hr_BCHW, 16), (batch.image_lr_BCHW, 8)):
        here = is_visible_BN.repeat_interleave(side, 2).repeat_interleave(side, 3) == visible
        images.append(torch.where(here, torch.randn_like(image), image))
    return replace(batch, image_hr_BCHW=images[0], image_lr_BCHW=images[1])


# Recipes and gradients


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_each_recipe_trains_every_parameter(make_model: Maker, batch: Batch, recipe: str) -> None:
    model = make_model(**RECIPES[recipe].get("method", {}))
    losses = model(batch)
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in losses.values())
    assert set(losses) == {"loss", "image_loss", "report_loss", "report_loss_masked"}
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_losses_fall_when_trained(make_model: Maker, batch: Batch) -> None:
    model = make_model(dropout=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = _losses(model.eval(), batch)
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()
    after = _losses(model.eval(), batch)
    assert after["image_loss"] < 0.97 * before["image_loss"]
    assert after["report_loss_masked"] < 0.7 * before["report_loss_masked"]


# Loss weights


def test_loss_is_the_weighted_sum(make_model: Maker, batch: Batch) -> None:
    losses = _losses(make_model(image_loss_weight=0.5, report_loss_weight=3.0), batch)
    assert losses["loss"] == pytest.approx(0.5 * losses["image_loss"] + 3 * losses["report_loss"], rel=1e-6)
    plain = _losses(make_model(), batch)
    assert losses["image_loss"] == plain["image_loss"]
    assert losses["report_loss"] == plain["report_loss"]


@pytest.mark.parametrize(("weight", "absent"), [("image_loss_weight", "image"), ("report_loss_weight", "report")])
def test_weight_of_zero_leaves_the_decoder_out(make_model: Maker, batch: Batch, weight: str, absent: str) -> None:
    model = make_model(**{weight: 0.0})
    losses = model(batch)
    assert not any(name.startswith(absent) for name in losses)
    assert not any(name.startswith(f"{absent}_decoder") for name in model.state_dict())
    other = "report" if absent == "image" else "image"
    assert losses["loss"].item() == losses[f"{other}_loss"].item()
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.image_encoder.parameters())
    reconstruction = model.reconstruct(batch)
    assert (reconstruction.image_BCHW is None) == (absent == "image")
    assert (reconstruction.token_ids_BL is None) == (absent == "report")


# Image masking


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.0, 16)])
def test_mask_ratio_sets_what_the_encoder_sees(make_model: Maker, batch: Batch, ratio: float, visible: int) -> None:
    model = make_model(mask_ratio=ratio, pixel_target="pixels")
    seen_BV = _inputs_of(model.image_encoder, lambda: model(batch))[1]
    assert torch.equal(seen_BV, batch.patch_noise_BN.argsort(dim=1)[:, :visible])
    assert model.reconstruct(batch).is_visible_BN.sum(dim=1).tolist() == [visible] * 3
    wanted_BK = _inputs_of(model.image_decoder, lambda: model(batch))[2]
    assert wanted_BK.shape == (3, 16 - visible if visible < 16 else 16)


def test_masked_patches_do_not_reach_the_encoder_and_visible_ones_are_not_compared(
    make_model: Maker, batch: Batch
) -> None:
    model = make_model(pixel_target="pixels", report_loss_weight=0.0)
    latent_BVD = _inputs_of(model.image_decoder, lambda: model(batch))[0]
    masked_changed = _with_hr_patches_changed(batch, model, visible=False)
    assert torch.equal(_inputs_of(model.image_decoder, lambda: model(masked_changed))[0], latent_BVD)
    assert _losses(model, masked_changed) != _losses(model, batch)
    visible_changed = _with_hr_patches_changed(batch, model, visible=True)
    assert not torch.equal(_inputs_of(model.image_decoder, lambda: model(visible_changed))[0], latent_BVD)
    visible_target_changed = replace(batch, image_hr_BCHW=visible_changed.image_hr_BCHW)
    assert _losses(model, visible_target_changed) == _losses(model, batch)


def test_visible_patches_are_embedded_as_by_timm_on_three_channels(batch: Batch) -> None:
    encoder = ImageEncoder(ViTConfig(16, 1, 2), image_size=32, patch=8, positions="mae")
    theirs = PatchEmbed(img_size=32, patch_size=8, in_chans=3, embed_dim=16)
    theirs.load_state_dict(encoder.patch_embed.state_dict())
    visible_BV = batch.patch_noise_BN.argsort(dim=1)[:, :4]
    expected_BVD = take_patches(theirs(batch.image_lr_BCHW.expand(-1, 3, -1, -1)), visible_BV)
    found_BVD = encoder.patch_embed(take_patches(patchify(batch.image_lr_BCHW, 8), visible_BV))
    torch.testing.assert_close(found_BVD, expected_BVD)


# Image target


@pytest.mark.parametrize("ratio", [0.75, 0.0])
@pytest.mark.parametrize("target", ["pixels", "patch_normalized", "image_normalized"])
@pytest.mark.parametrize("super_resolution", [True, False])
def test_image_loss_is_the_mean_square_over_masked_patches_in_three_channels(
    make_model: Maker, batch: Batch, ratio: float, target: str, super_resolution: bool
) -> None:
    model = make_model(mask_ratio=ratio, pixel_target=target, super_resolution=super_resolution)
    image, side = (batch.image_hr_BCHW, 16) if super_resolution else (batch.image_lr_BCHW, 8)
    target_BNP = patchify(image.expand(-1, 3, -1, -1), side)
    if target == "pixels":
        target_BNP = target_BNP * 0.2449 + 0.4978
    elif target == "patch_normalized":
        variance = target_BNP.var(dim=-1, keepdim=True)
        target_BNP = (target_BNP - target_BNP.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    assert model.image_decoder is not None
    latent_BVD, order_BN, *_ = _inputs_of(model.image_decoder, lambda: model(batch))
    pixels_BNP = model.image_decoder(latent_BVD, order_BN, torch.arange(16).expand(3, -1))
    assert pixels_BNP.shape == target_BNP.shape
    is_compared_BN = torch.ones(3, 16, dtype=torch.bool)
    if ratio:
        is_compared_BN = ~model.reconstruct(batch).is_visible_BN
    expected = (pixels_BNP - target_BNP)[is_compared_BN].square().mean()
    assert _losses(model, batch)["image_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_normalised_target_is_blind_to_brightness_and_contrast(make_model: Maker, batch: Batch) -> None:
    other = replace(batch, image_hr_BCHW=batch.image_hr_BCHW * 2 + 1)
    normalised, pixels = make_model(), make_model(pixel_target="pixels")
    assert _losses(normalised, other)["image_loss"] == pytest.approx(_losses(normalised, batch)["image_loss"], rel=1e-4)
    assert _losses(pixels, other)["image_loss"] > 1.5 * _losses(pixels, batch)["image_loss"]


def test_without_super_resolution_the_large_image_is_not_looked_at(make_model: Maker, batch: Batch) -> None:
    other = replace(batch, image_hr_BCHW=torch.full_like(batch.image_hr_BCHW, math.nan))
    model = make_model(super_resolution=False)
    assert _losses(model, other) == _losses(model, batch)
    assert math.isnan(_losses(make_model(), other)["image_loss"])


# Report


def test_report_decoder_does_not_see_masked_tokens(make_model: Maker, batch: Batch) -> None:
    model = make_model()
    assert model.report_decoder is not None
    head = model.report_decoder.head
    hidden_BLD = _inputs_of(head, lambda: model(batch))[0]
    other_ids_BL = batch.token_ids_BL.masked_fill(batch.token_is_masked_BL, 5)
    masked_changed = replace(batch, token_ids_BL=other_ids_BL)
    assert torch.equal(_inputs_of(head, lambda: model(masked_changed))[0], hidden_BLD)
    visible_changed = replace(batch, token_ids_BL=batch.token_ids_BL.clone())
    visible_changed.token_ids_BL[:, 2] = 9
    assert not torch.equal(_inputs_of(head, lambda: model(visible_changed))[0], hidden_BLD)


def test_image_reaches_every_position_and_padding_no_other(make_model: Maker, batch: Batch) -> None:
    model = make_model()
    assert model.report_decoder is not None
    head = model.report_decoder.head
    hidden_BLD = _inputs_of(head, lambda: model(batch))[0]
    other_image = replace(batch, image_lr_BCHW=batch.image_lr_BCHW + 1)
    difference_BL = (_inputs_of(head, lambda: model(other_image))[0] - hidden_BLD).abs().amax(dim=-1)
    assert (difference_BL > 0).all()
    with torch.no_grad():
        model.report_decoder.embeddings.word_embeddings.weight[0] += 1
    other_padding_BLD = _inputs_of(head, lambda: model(batch))[0]
    is_padding_BL = batch.token_ids_BL == 0
    assert torch.equal(other_padding_BLD[~is_padding_BL], hidden_BLD[~is_padding_BL])
    assert not torch.equal(other_padding_BLD[is_padding_BL], hidden_BLD[is_padding_BL])


def test_report_loss_over_all_or_masked(make_model: Maker, batch: Batch) -> None:
    over_all, over_masked = make_model(), make_model(report_loss_over="masked")
    assert over_all.report_decoder is not None
    hidden_BLD = _inputs_of(over_all.report_decoder.head, lambda: over_all(batch))[0]
    log_p_BLV = over_all.report_decoder.head(hidden_BLD).log_softmax(dim=-1)
    entropy_BL = -log_p_BLV.gather(2, batch.token_ids_BL[..., None])[..., 0]
    masked_mean = entropy_BL[batch.token_is_masked_BL].mean().item()
    losses = _losses(over_all, batch)
    assert losses["report_loss"] == pytest.approx(entropy_BL.mean().item(), rel=1e-5)
    assert losses["report_loss_masked"] == pytest.approx(masked_mean, rel=1e-5)
    losses = _losses(over_masked, batch)
    assert losses["report_loss"] == losses["report_loss_masked"] == pytest.approx(masked_mean, rel=1e-5)


def test_masked_only_head_has_the_gradients_of_the_full_one(make_model: Maker, batch: Batch) -> None:
    full, masked = make_model(), make_model(report_loss_over="masked", image_loss_weight=0.0)
    assert full.report_decoder is not None
    hidden_BLD = _inputs_of(full.report_decoder.head, lambda: full(batch))[0]
    logits_BLV = full.report_decoder.head(hidden_BLD)
    picked = batch.token_is_masked_BL
    loss: Tensor = nn.functional.cross_entropy(logits_BLV[picked], batch.token_ids_BL[picked])
    torch.autograd.backward(loss)
    masked.load_state_dict(full.state_dict(), strict=False)
    masked(batch)["loss"].backward()
    expected = dict(full.named_parameters())
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-7, msg=name)


def test_masked_only_head_computes_only_masked_positions(make_model: Maker, batch: Batch) -> None:
    model = make_model(report_loss_over="masked")
    assert model.report_decoder is not None
    (hidden_MD,) = _inputs_of(model.report_decoder.head, lambda: model(batch))
    assert len(hidden_MD) == batch.token_is_masked_BL.sum()


def test_a_batch_without_masked_tokens_costs_nothing_but_keeps_every_gradient(make_model: Maker, batch: Batch) -> None:
    nothing = replace(batch, token_is_masked_BL=torch.zeros_like(batch.token_is_masked_BL))
    model = make_model(report_loss_over="masked")
    losses = model(nothing)
    assert losses["report_loss"].item() == losses["report_loss_masked"].item() == 0
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    over_all = _losses(make_model(), nothing)
    assert over_all["report_loss_masked"] == 0
    assert over_all["report_loss"] > 1


def test_dropout_belongs_to_training(make_model: Maker, batch: Batch) -> None:
    model = make_model(dropout=0.5)
    assert _losses(model, batch) == _losses(model, batch)
    model.train()
    assert _losses(model, batch)["report_loss"] != _losses(model, batch)["report_loss"]
    assert _losses(model, batch)["image_loss"] == _losses(model, batch)["image_loss"]
    model = make_model().train()
    assert _losses(model, batch) == _losses(model, batch)


# What passes between the two


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_of_the_visible_patches_without_cls(make_model: Maker, batch: Batch, pooling: str) -> None:
    model = make_model(pooling=pooling)
    latent_BVD = model.image_encoder(batch.image_lr_BCHW, patch_order(batch.patch_noise_BN)[:, :4])
    feature_BD = _inputs_of(model.report_decoder, lambda: model(batch))[0]
    patches_BVD = latent_BVD[:, 1:]
    expected_BD = patches_BVD.sum(dim=1) / 4 if pooling == "mean" else patches_BVD.max(dim=1).values
    torch.testing.assert_close(feature_BD, expected_BD)


def test_hybrid_features_bring_visible_tokens_to_the_image_decoder(make_model: Maker, batch: Batch) -> None:
    def image_losses(model: MaskedRecordModel) -> list[float]:
        masked_changed = batch.token_ids_BL.masked_fill(batch.token_is_masked_BL, 5)
        visible_changed = batch.token_ids_BL.clone()
        visible_changed[:, 2] = 9
        batches = [replace(batch, token_ids_BL=ids) for ids in (batch.token_ids_BL, masked_changed, visible_changed)]
        return [_losses(model, each)["image_loss"] for each in batches]

    plain, same, still_same = image_losses(make_model())
    assert plain == same == still_same
    plain, same, other = image_losses(make_model(hybrid_features=True))
    assert plain == same
    assert plain != other
    model = make_model(hybrid_features=True)
    assert model.report_decoder is not None
    feature_BD = _inputs_of(model.image_decoder, lambda: model(batch))[3]
    ids_BL, is_masked_BL = batch.token_ids_BL, batch.token_is_masked_BL
    embedded_BLD = model.report_decoder.embeddings(ids_BL.masked_fill(is_masked_BL, 3))
    for row in range(3):
        visible_VD = embedded_BLD[row][~is_masked_BL[row] & (ids_BL[row] != 0)]
        torch.testing.assert_close(feature_BD[row], visible_VD.mean(dim=0))


# Precision and start


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_half_precision_is_finite_and_near(make_model: Maker, batch: Batch, recipe: str) -> None:
    method = RECIPES[recipe].get("method", {})
    model, exact = make_model(**method), _losses(make_model(**method), batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    assert all(value.dtype == torch.float32 for value in losses.values())
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    half = _losses(make_model(**method).bfloat16(), batch)
    for name, value in exact.items():
        assert losses[name].item() == pytest.approx(value, rel=0.03)
        assert half[name] == pytest.approx(value, rel=0.03)


def test_weights_start_as_the_references(make_model: Maker) -> None:
    torch.manual_seed(0)
    sizes = ModelConfig(
        image_encoder=ViTConfig(48, 2, 4),
        image_decoder=ViTConfig(48, 1, 3),
        report_decoder=ReportDecoderConfig(depth=1),
    )
    model = MaskedRecordModel(sizes, MethodConfig(), PretrainDataConfig(), vocabulary=512)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert isinstance(weight, Tensor)
            columns = weight[0].numel()
            limit = math.sqrt(6 / (len(weight) + columns))
            assert 0.98 * limit < weight.abs().max() <= limit, name
            assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05), name
            if isinstance(module, nn.Linear):
                assert module.bias.abs().max() == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.report_decoder is not None
    assert model.image_decoder is not None
    assert model.report_decoder.embeddings.word_embeddings.weight[0].abs().max() == 0
    for token in (model.image_encoder.cls_token, model.image_decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.4)
    one, same, other = (make_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("method", "data", "where"),
    [
        ({}, {"lr_size": 36, "hr_size": 72}, "model.patch"),
        ({}, {"lr_size": 4, "hr_size": 8}, "model.patch"),
        ({"mask_ratio": 0.99}, {}, "method.mask_ratio"),
        # 0.96 of the 16 patches: less than one whole patch would be visible.
        ({"mask_ratio": 0.94}, {}, "method.mask_ratio"),
        ({}, {"report_length": 101}, "data.report_length"),
        ({"hybrid_features": True, "report_loss_weight": 0.0}, {}, "method.hybrid_features"),
        ({"hybrid_features": True, "image_loss_weight": 0.0}, {}, "method.hybrid_features"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: dict[str, Any], data: dict[str, Any], where: str) -> None:
    sizes = ModelConfig(patch=8, image_encoder=ViTConfig(16, 1, 2), image_decoder=ViTConfig(16, 1, 2))
    full_data = PretrainDataConfig(**{"lr_size": 32, "hr_size": 64, **data})
    with pytest.raises(ConfigError) as caught:
        MaskedRecordModel(sizes, MethodConfig(**method), full_data, vocabulary=10)
    assert caught.value.where == where
