"""Masked record modelling: most of a radiograph and of its report is masked, and reconstructed from the rest.

    visible patches, low resolution ─> image encoder ─┬─> image decoder ─> pixels of the masked patches, high resolution
                                                      └─> mean ─> report decoder <─ visible tokens; ─> masked tokens

Both decoders see the radiograph through the encoder alone, so the two losses meet there: it has to encode anatomy in
enough detail to draw it sharper than it came (super-resolution), and findings as a report would word them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrm_stream.config.pretrain import MethodConfig, ModelConfig, PretrainDataConfig
from mrm_stream.errors import ConfigError
from mrm_stream.model.image_decoder import ImageDecoder
from mrm_stream.model.image_encoder import ImageEncoder
from mrm_stream.model.patches import (
    COLOURS,
    normalise_patches,
    patch_order,
    patchify,
    take_patches,
    unpatchify,
    visible_count,
)
from mrm_stream.model.report_decoder import ReportDecoder, report_losses, visible_mean
from mrm_stream.records import Batch


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the model predicts for a batch, for pictures."""

    image_BCHW: Tensor | None
    """Grey values in [0, 1], one channel, every patch as predicted; None without an image decoder.

    Where the targets are normalised patches, the model predicts neither brightness nor contrast: as in MAE's figures,
    those of the true patch are used. Only the masked patches were trained."""
    is_visible_BN: Tensor
    """bool, True where the encoder saw the patch."""
    token_ids_BL: Tensor | None
    """int64, the most probable token at each position, visible or not; None without a report decoder."""


class MaskedRecordModel(nn.Module):
    """Image encoder, and a decoder for each loss whose weight is not 0.

    Args:
        model: Sizes of the networks.
        method: What is masked and compared.
        data: Sizes of the images and reports, and how grey values were normalised.
        vocabulary: Entries of the tokenizer.

    Raises:
        ConfigError: The settings do not fit each other.
    """

    def __init__(self, model: ModelConfig, method: MethodConfig, data: PretrainDataConfig, *, vocabulary: int) -> None:
        super().__init__()
        self.sizes, self.method, self.data = model, method, data
        grid = data.lr_size // model.patch
        _check(model, method, data, grid)
        self.visible = visible_count(grid**2, method.mask_ratio)
        self.target_patch = model.patch * data.hr_size // data.lr_size if method.super_resolution else model.patch
        self.image_encoder = ImageEncoder(
            model.image_encoder, image_size=data.lr_size, patch=model.patch, positions=model.positions
        )
        self.image_decoder: ImageDecoder | None = None
        self.report_decoder: ReportDecoder | None = None
        width = model.image_encoder.width
        if method.image_loss_weight:
            self.image_decoder = ImageDecoder(
                model.image_decoder,
                encoder_width=width,
                grid=grid,
                patch=self.target_patch,
                positions=model.positions,
                report_width=model.report_decoder.width if method.hybrid_features else None,
            )
        if method.report_loss_weight:
            self.report_decoder = ReportDecoder(model.report_decoder, image_width=width, vocabulary=vocabulary)

    def forward(self, batch: Batch, masked_tokens: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            batch: One micro-batch of one rank.
            masked_tokens: What a sum over masked tokens is divided by: their mean number over all micro-batches and
                ranks of a step, so that averaging the losses gives one mean over the step's tokens. A scalar; None:
                the batch's own number.

        Returns:
            float32 scalars: `loss` to train on; without gradient `image_loss`, `report_loss`, and
            `report_loss_masked`, the cross-entropy of the masked tokens whatever the loss is over. Losses whose decoder
            does not exist are absent.
        """
        order_BN, latent_BVD = self._encode(batch)
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=latent_BVD.device)
        report_feature_BD: Tensor | None = None
        if self.report_decoder is not None:
            token_ids_BL, is_masked_BL = batch.token_ids_BL, batch.token_is_masked_BL
            hidden_BLD, embedded_BLD = self.report_decoder(self._pool(latent_BVD), token_ids_BL, is_masked_BL)
            report_loss, losses["report_loss_masked"] = report_losses(
                self.report_decoder.head,
                hidden_BLD,
                token_ids_BL,
                is_masked_BL,
                over=self.method.report_loss_over,
                masked_tokens=is_masked_BL.sum().clamp(min=1) if masked_tokens is None else masked_tokens,
            )
            losses["report_loss"] = report_loss.detach()
            total = total + self.method.report_loss_weight * report_loss
            if self.method.hybrid_features:
                report_feature_BD = visible_mean(embedded_BLD, token_ids_BL, is_masked_BL)
        if self.image_decoder is not None:
            # Visible patches are not compared: copying them would be easy, and teach nothing. With a mask ratio of 0,
            # which makes a plain auto-encoder, all patches are.
            wanted_BK = order_BN[:, self.visible :] if self.visible < order_BN.shape[1] else order_BN
            pixels_BKP = self.image_decoder(latent_BVD, order_BN, wanted_BK, report_feature_BD)
            target_BKP = take_patches(self._targets(batch)[0], wanted_BK)
            # The decoder predicts three channels, over which the one grey target broadcasts: the same loss as with
            # three equal target channels.
            error = pixels_BKP.float().unflatten(-1, (-1, COLOURS)) - target_BKP[..., None]
            image_loss = error.square().mean()
            losses["image_loss"] = image_loss.detach()
            total = total + self.method.image_loss_weight * image_loss
        return {"loss": total, **losses}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Predict the whole radiograph and report of a batch, without dropout or gradients.

        Unlike `forward`, which predicts masked patches alone, it predicts every patch. Whether the model trains or
        evaluates is left as it was.
        """
        was_training = self.training
        self.eval()
        try:
            return self._reconstruct(batch)
        finally:
            self.train(was_training)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        order_BN = patch_order(batch.patch_noise_BN)
        return order_BN, self.image_encoder(batch.image_lr_BCHW, order_BN[:, : self.visible])

    def _pool(self, latent_BVD: Tensor) -> Tensor:
        patches_BVD = latent_BVD[:, 1:]
        return patches_BVD.mean(dim=1) if self.method.pooling == "mean" else patches_BVD.amax(dim=1)

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (targets (B, N, P), factor, summand): targets * factor + summand is grey in [0, 1].

        Factor and summand are scalars, or of shape (B, N, 1) where each patch was normalised by itself.
        """
        image_BCHW = batch.image_hr_BCHW if self.method.super_resolution else batch.image_lr_BCHW
        grey_BNP = patchify(image_BCHW.float(), self.target_patch)
        one = torch.ones((), device=grey_BNP.device)
        if self.method.pixel_target == "pixels":
            return grey_BNP * self.data.std + self.data.mean, one, 0 * one
        if self.method.pixel_target == "image_normalized":
            return grey_BNP, self.data.std * one, self.data.mean * one
        target_BNP, mean_BN1, std_BN1 = normalise_patches(grey_BNP)
        return target_BNP, std_BN1 * self.data.std, mean_BN1 * self.data.std + self.data.mean

    def _reconstruct(self, batch: Batch) -> Reconstruction:
        order_BN, latent_BVD = self._encode(batch)
        is_visible_BN = torch.zeros_like(order_BN, dtype=torch.bool).scatter(1, order_BN[:, : self.visible], True)
        image_BCHW = token_ids_BL = report_feature_BD = None
        if self.report_decoder is not None:
            report = batch.token_ids_BL, batch.token_is_masked_BL
            hidden_BLD, embedded_BLD = self.report_decoder(self._pool(latent_BVD), *report)
            token_ids_BL = self.report_decoder.head(hidden_BLD).argmax(dim=-1)
            if self.method.hybrid_features:
                report_feature_BD = visible_mean(embedded_BLD, *report)
        if self.image_decoder is not None:
            every_BN = torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
            pixels_BNP = self.image_decoder(latent_BVD, order_BN, every_BN, report_feature_BD)
            grey_BNP = pixels_BNP.float().unflatten(-1, (-1, COLOURS)).mean(dim=-1)
            _, factor, summand = self._targets(batch)
            image_BCHW = unpatchify((grey_BNP * factor + summand).clamp(0, 1), self.target_patch)
        return Reconstruction(image_BCHW, is_visible_BN, token_ids_BL)


def _check(model: ModelConfig, method: MethodConfig, data: PretrainDataConfig, grid: int) -> None:
    if grid * model.patch != data.lr_size or grid == 0:
        raise ConfigError(f"patches of {model.patch} do not fill {data.lr_size} pixels", where="model.patch")
    if visible_count(grid**2, method.mask_ratio) == 0:
        raise ConfigError(
            f"masks all of the {grid**2} patches", where="method.mask_ratio", remedy="Choose a smaller one."
        )
    if method.report_loss_weight and data.report_length > model.report_decoder.positions:
        raise ConfigError(
            f"is longer than the report decoder's {model.report_decoder.positions} positions",
            where="data.report_length",
            remedy="Shorten it, or raise model.report_decoder.positions.",
        )
    if method.hybrid_features and not (method.report_loss_weight and method.image_loss_weight):
        raise ConfigError("needs both decoders", where="method.hybrid_features", remedy="Give both losses a weight.")
