"""Images to patches and back; normalised patches, fixed positions, and the choice of the visible ones.

Pure functions. Patches are numbered row by row: index n of an image of G x G patches is row n // G, column n % G. In
the low- and the high-resolution view of a crop the same index covers the same field.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

COLOURS = 3
"""Channels of the encoder's input and the decoder's output, so that weights of MAE and timm fit, which are trained on
photographs in colour; for a radiograph all three hold the same grey values."""


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """Cut an image into squares, row by row.

    Args:
        image_BCHW: Shape (B, C, H, W).
        patch: Side of a square in pixels; must divide H and W.

    Returns:
        Shape (B, N, patch * patch * C); values of a square run by row, column, channel, as in MAE.

    Raises:
        ValueError: The squares do not fill the image.

    Example:
        >>> patchify(torch.arange(16).reshape(1, 1, 4, 4), 2)[0, 1].tolist()
        [2, 3, 6, 7]
    """
    batch, channels, height, width = image_BCHW.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} pixels do not fill an image of {height} x {width}")
    # (B, C, rows, patch, columns, patch) -> (B, rows, columns, patch, patch, C): channels last, as MAE's checkpoints
    # have them; with channels first the weights would load without a word, and mean something else.
    squares = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BNP: Tensor, patch: int) -> Tensor:
    """Assemble a square image from its patches: the inverse of `patchify`.

    Args:
        patches_BNP: Shape (B, N, patch * patch * C), N a square number.
        patch: Side of a square in pixels.

    Returns:
        Shape (B, C, H, H).

    Raises:
        ValueError: The patches do not make a square image.

    Example:
        >>> image = torch.rand(2, 3, 8, 8)
        >>> torch.equal(unpatchify(patchify(image, 4), 4), image)
        True
    """
    batch, count, values = patches_BNP.shape
    grid, channels = math.isqrt(count), values // patch**2
    if grid**2 != count or channels * patch**2 != values:
        raise ValueError(f"{count} patches of {values} values do not make a square image of {patch}-pixel patches")
    squares = patches_BNP.reshape(batch, grid, grid, patch, patch, channels)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid * patch, grid * patch)


def normalise_patches(grey_BNP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each patch mean 0 and variance 1: MAE's `norm_pix_loss`.

    So that the loss rewards local structure (ribs, vessels) rather than the brightness of large areas.

    The reference code takes the unbiased variance of a patch's values in three equal channels: 3 P values, where the
    grey patch here has P. The factor 3 P / (3 P - 1) gives the same number from the one channel.

    Args:
        grey_BNP: Patches of one channel, shape (B, N, P).

    Returns:
        (normalised (B, N, P), means (B, N, 1), standard deviations (B, N, 1)), float32.
    """
    grey_BNP = grey_BNP.float()
    values = COLOURS * grey_BNP.shape[-1]
    mean_BN1 = grey_BNP.mean(dim=-1, keepdim=True)
    variance_BN1 = grey_BNP.var(dim=-1, keepdim=True, unbiased=False) * (values / (values - 1))
    # A patch of one grey value (a collimated border) has variance 0: 1e-6, as in MAE, avoids a division by 0.
    std_BN1 = (variance_BN1 + 1e-6).sqrt()
    return (grey_BNP - mean_BN1) / std_BN1, mean_BN1, std_BN1


_LONGEST = {"mae": 10_000.0, "reference": 10.0}
"""Longest wavelength of each kind of position encoding, in units of 2 pi patches."""


def sincos_positions(width: int, grid: int, kind: Literal["mae", "reference"]) -> Tensor:
    """Return the fixed 2-D sine-cosine position encoding of CLS (zeros) and of each patch.

    The first half of the width encodes the column, the second the row; each is sines, then cosines, of the
    coordinate, at wavelengths in geometric progression from 2 pi patches up. MAE's go up to 10,000 * 2 pi. The
    reference code divides its exponents by four times as much, and 10,000^(1/4) is 10: its wavelengths are short, and
    distinguish neighbours better. At width 768 the cosine similarity of two adjacent patches is .986 (MAE) or .948, of
    two that are four apart .884 or .550. Loading a checkpoint replaces the positions by the checkpoint's.

    Args:
        width: Of a token; a multiple of 4.
        grid: Patches along a side.
        kind: "mae", or "reference" as the reference code has them, bit for bit.

    Returns:
        Shape (1, 1 + grid * grid, width), float32.

    Source:
        Vaswani et al., 2017, section 3.5; in two dimensions as in MoCo v3 and MAE.
    """
    frequencies = _LONGEST[kind] ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line.repeat(grid, 1)
    rows = line.repeat_interleave(grid, dim=0)
    positions = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, width), positions.float()])[None]


def visible_count(patches: int, mask_ratio: float) -> int:
    """Return how many patches stay visible: rounded down in floating point, as MAE and the reference code do.

    Where the exact product is a whole number, the result may be one less: 100 * (1 - 0.9) is just below 10.

    Example:
        >>> visible_count(196, 0.75), visible_count(196, 0.9), visible_count(100, 0.9)
        (49, 19, 9)
    """
    return int(patches * (1 - mask_ratio))


def patch_order(noise_BN: Tensor) -> Tensor:
    """Return the indexes of the patches from least to most noise, int64 (B, N); the first ones stay visible.

    Sorting noise draws a random subset of the same size for every sample, so that a batch needs no padding. The sort
    is stable: with equal noise every device chooses the same patches.
    """
    return torch.argsort(noise_BN, dim=1, stable=True)


def inverse_order(order_BN: Tensor) -> Tensor:
    """Return the inverse permutations of `order_BN`, (B, N): at which position in the order each patch is.

    Example:
        >>> inverse_order(torch.tensor([[2, 0, 1]])).tolist()
        [[1, 2, 0]]
    """
    return torch.argsort(order_BN, dim=1)


def take_patches(tokens_BND: Tensor, indexes_BK: Tensor) -> Tensor:
    """Return the tokens at `indexes_BK`, (B, K, D); each sample has indexes of its own."""
    return tokens_BND.gather(1, indexes_BK[..., None].expand(-1, -1, tokens_BND.shape[-1]))
