"""The visible patches of a radiograph to their embeddings: a ViT, with timm's parameter names."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from mrm_stream.config.pretrain import ViTConfig
from mrm_stream.model.patches import COLOURS, patchify, sincos_positions, take_patches


def make_blocks(config: ViTConfig) -> nn.ModuleList:
    """Return a stack of pre-norm transformer blocks, with MAE's epsilon and biases on query, key and value."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    return nn.ModuleList(Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth))


def initialise_linears(module: nn.Module) -> None:
    """Draw the weights of every linear layer below `module` Xavier-uniform and clear the biases, as the reference."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class PatchProjection(nn.Conv2d):
    """A ViT's patch embedding for patches that are cut already and hold one channel.

    The weights are those of a convolution over three channels, so that checkpoints fit. As all three channels hold the
    same grey values, the weights are summed over the channels and applied once, at a third of the cost.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(COLOURS, width, kernel_size=patch, stride=patch)
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(self, grey_BNP: Tensor) -> Tensor:
        """Embed grey patches (B, N, patch * patch) as (B, N, D)."""
        weight = self.weight.sum(dim=1).flatten(1)
        return functional.linear(grey_BNP.to(weight.dtype), weight, self.bias)


class PatchEmbedding(nn.Module):
    """The projection under timm's parameter names (`patch_embed.proj`), so that the weights load into timm by name."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = PatchProjection(width, patch)

    def forward(self, grey_BNP: Tensor) -> Tensor:
        """Embed grey patches (B, N, patch * patch) as (B, N, D)."""
        embedded_BND: Tensor = self.proj(grey_BNP)
        return embedded_BND


class ImageEncoder(nn.Module):
    """ViT that computes only the visible patches: at a mask ratio of 0.75, a quarter of the tokens.

    Args:
        config: Size of the stack.
        image_size: Side of the image in pixels.
        patch: Side of a patch in pixels.
        positions: Kind of the fixed positions.
    """

    pos_embed: Tensor

    def __init__(
        self, config: ViTConfig, *, image_size: int, patch: int, positions: Literal["mae", "reference"]
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = PatchEmbedding(config.width, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("pos_embed", sincos_positions(config.width, image_size // patch, positions))
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        nn.init.normal_(self.cls_token, std=0.02)
        initialise_linears(self.blocks)

    def forward(self, image_BCHW: Tensor, visible_BV: Tensor) -> Tensor:
        """Embed the visible patches.

        Args:
            image_BCHW: Normalised radiograph, one channel, (B, 1, H, H).
            visible_BV: Indexes of the visible patches, (B, V), in any order.

        Returns:
            (B, 1 + V, D): CLS, then the patches in the order of `visible_BV`.
        """
        # Patches are chosen before they are embedded, so that masked ones cost nothing at all. Each then gets the
        # position that it has in the image: without it the encoder could not tell where a visible patch lies.
        grey_BVP = take_patches(patchify(image_BCHW, self.patch), visible_BV)
        positions_BND = self.pos_embed[:, 1:].expand(len(grey_BVP), -1, -1)
        tokens_BVD = self.patch_embed(grey_BVP) + take_patches(positions_BND, visible_BV)
        cls_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(len(grey_BVP), -1, -1)
        tokens_BVD = torch.cat([cls_B1D, tokens_BVD], dim=1)
        for block in self.blocks:
            tokens_BVD = block(tokens_BVD)
        latent_BVD: Tensor = self.norm(tokens_BVD)
        return latent_BVD
