"""Embeddings of the visible patches to pixels of the masked ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mrm_stream.config.pretrain import ViTConfig
from mrm_stream.model.image_encoder import initialise_linears, make_blocks
from mrm_stream.model.patches import COLOURS, inverse_order, sincos_positions, take_patches


class ImageDecoder(nn.Module):
    """Reconstructs patches of the radiograph from what the encoder saw.

    Args:
        config: Size of the stack.
        encoder_width: Width of the encoder's tokens.
        grid: Patches along a side.
        patch: Side in pixels of a patch that is reconstructed.
        positions: Kind of the fixed positions.
        report_width: Width of the report's feature that is added to every token; None: there is none.
    """

    pos_embed: Tensor

    def __init__(
        self,
        config: ViTConfig,
        *,
        encoder_width: int,
        grid: int,
        patch: int,
        positions: Literal["mae", "reference"],
        report_width: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, config.width)
        self.report_embed = nn.Linear(report_width, config.width) if report_width is not None else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("pos_embed", sincos_positions(config.width, grid, positions))
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.pred = nn.Linear(config.width, patch * patch * COLOURS)
        nn.init.normal_(self.mask_token, std=0.02)
        initialise_linears(self)

    def forward(
        self, latent_BVD: Tensor, order_BN: Tensor, wanted_BK: Tensor, report_feature_BD: Tensor | None = None
    ) -> Tensor:
        """Predict the pixels of the wanted patches.

        Args:
            latent_BVD: CLS and V visible patches from the encoder, (B, 1 + V, D).
            order_BN: Indexes of all patches, the visible ones first and in the order of `latent_BVD`, (B, N).
            wanted_BK: Indexes of the patches to reconstruct, (B, K).
            report_feature_BD: Mean of the report's visible tokens, (B, D); None for a decoder built without it.

        Returns:
            (B, K, patch * patch * 3), values by row, column, channel.
        """
        tokens_BVD = self.embed(latent_BVD)
        # The encoder never saw the masked patches. Here one learned token stands for each of them, and the inverse of
        # the order brings all tokens back to their positions in the image, so that the fixed positions fit again.
        masked = order_BN.shape[1] + 1 - tokens_BVD.shape[1]
        mask_BMD = self.mask_token.to(tokens_BVD.dtype).expand(len(tokens_BVD), masked, -1)
        patches_BND = take_patches(torch.cat([tokens_BVD[:, 1:], mask_BMD], dim=1), inverse_order(order_BN))
        tokens_BND = torch.cat([tokens_BVD[:, :1], patches_BND], dim=1) + self.pos_embed
        if self.report_embed is not None:
            assert report_feature_BD is not None
            tokens_BND = tokens_BND + self.report_embed(report_feature_BD)[:, None]
        # Self-attention over all positions is how a masked patch learns what its visible neighbours show.
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        # Only what is compared is projected to pixels: a quarter of the largest linear layer is saved.
        pixels_BKP: Tensor = self.pred(self.norm(take_patches(tokens_BND[:, 1:], wanted_BK)))
        return pixels_BKP
