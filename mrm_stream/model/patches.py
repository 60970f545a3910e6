"""Patches of an image: cut, put back, normalised, placed, and chosen to be seen."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

COLOURS = 3
"""Channels that the networks speak, as their pre-trained kin do; a radiograph fills all three with the same grey."""


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
    squares = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BNP: Tensor, patch: int) -> Tensor:
    """Put the squares of a square image back: the inverse of `patchify`.

    Args:
        patches_BNP: Shape (B, N, patch * patch * C), N a square number.
        patch: Side of a square in pixels.

    Returns:
        Shape (B, C, H, H).

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

    The reference code divides by the unbiased variance of a patch's values in three equal channels; a grey patch of P
    values stands for 3 P values there, which is what its own sum of squares is divided by here.

    Args:
        grey_BNP: Patches of one channel, shape (B, N, P).

    Returns:
        (normalised (B, N, P), means (B, N, 1), standard deviations (B, N, 1)), float32.
    """
    grey_BNP = grey_BNP.float()
    values = COLOURS * grey_BNP.shape[-1]
    mean_BN1 = grey_BNP.mean(dim=-1, keepdim=True)
    variance_BN1 = grey_BNP.var(dim=-1, keepdim=True, unbiased=False) * (values / (values - 1))
    # The summand keeps a patch of one grey value (a collimated border) finite; it is MAE's.
    std_BN1 = (variance_BN1 + 1e-6).sqrt()
    return (grey_BNP - mean_BN1) / std_BN1, mean_BN1, std_BN1


_LONGEST = {"mae": 10_000.0, "reference": 10.0}
"""Longest wavelength of each kind of positions, in 2 pi patches."""


def sincos_positions(width: int, grid: int, kind: Literal["mae", "reference"]) -> Tensor:
    """Return the fixed 2-D sine-cosine position of CLS (zeros) and of each patch.

    The first half of the width encodes the column, the second the row; each is sines, then cosines, of the
    coordinate, at wavelengths in geometric progression from 2 pi patches up. MAE's go up to 10,000 * 2 pi. The
    reference code divides its exponents by four times as much, and 10,000^(1/4) is 10: its waves are short, and tell
    neighbours apart better. At width 768 the cosine of two patches side by side is .986 (MAE) or .948, of two that
    are four apart .884 or .550. A checkpoint that is loaded brings positions of its own.

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
    """Return how many patches stay visible: cut off, in binary fractions, as MAE and the reference code do.

    So a ratio whose share of the patches is a whole number may yet leave one fewer: 100 * (1 - 0.9) is below 10.

    Example:
        >>> visible_count(196, 0.75), visible_count(196, 0.9), visible_count(100, 0.9)
        (49, 19, 9)
    """
    return int(patches * (1 - mask_ratio))


def patch_order(noise_BN: Tensor) -> Tensor:
    """Return the indexes of the patches from least to most noise, int64 (B, N); the first ones stay visible.

    Equal noise keeps the patches' own order, so that every device chooses the same ones.
    """
    return torch.argsort(noise_BN, dim=1, stable=True)


def restore_order(order_BN: Tensor) -> Tensor:
    """Return where in `order_BN` each patch is: its inverse permutation.

    Example:
        >>> restore_order(torch.tensor([[2, 0, 1]])).tolist()
        [[1, 2, 0]]
    """
    return torch.argsort(order_BN, dim=1)


def take_patches(tokens_BND: Tensor, indexes_BK: Tensor) -> Tensor:
    """Return the tokens at `indexes_BK`, each sample its own, shape (B, K, D)."""
    return tokens_BND.gather(1, indexes_BK[..., None].expand(-1, -1, tokens_BND.shape[-1]))
