"""Pixels to the two views that the model trains on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def normalise(image_BCHW: Tensor, mean: float, std: float) -> Tensor:
    """Return 8-bit grey values, (B, C, H, W), as float32: scaled to [0, 1], less `mean`, in units of `std`.

    Example:
        >>> import torch
        >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), 0.5, 0.25).flatten().tolist()
        [-2.0, 2.0]
    """
    return image_BCHW.float().div_(255).sub_(mean).div_(std)


def make_lr_hr_pair(image_BCHW: Tensor, *, lr_size: int = 224, antialias: bool = False) -> tuple[Tensor, Tensor]:
    """Return the crop at the encoder's resolution, and as it is: the image decoder's target.

    Both show the same field: patch (r, c) of side p in the first lies over patch (r, c) of side p * H / lr_size in the
    second.

    Args:
        image_BCHW: Normalised crop, float, shape (B, C, H, H). Bicubic interpolation overshoots at edges, and here,
            as in the reference code, nothing is clipped.
        lr_size: Side of the low-resolution view in pixels; must divide H.
        antialias: Low-pass before down-sampling. The reference code did not.

    Returns:
        (lr, hr): lr is (B, C, lr_size, lr_size), of the same dtype and on the same device; hr is `image_BCHW` itself.

    Raises:
        ValueError: The crop is not square, or its side is not a multiple of lr_size.

    Source:
        Zhou et al., ICLR 2023, section 3.2. Within 1e-5 of the reference implementation's encoder input.

    Example:
        >>> import torch
        >>> lr, hr = make_lr_hr_pair(torch.zeros(2, 1, 448, 448))
        >>> lr.shape, hr.shape
        (torch.Size([2, 1, 224, 224]), torch.Size([2, 1, 448, 448]))
    """
    height, width = image_BCHW.shape[-2:]
    if height != width:
        raise ValueError(f"a crop must be square, not {height} x {width}")
    if height % lr_size:
        raise ValueError(f"side {height} is not a multiple of lr_size {lr_size}")
    if lr_size == height:
        return image_BCHW, image_BCHW
    lr_BCHW = functional.interpolate(
        image_BCHW, (lr_size, lr_size), mode="bicubic", align_corners=False, antialias=antialias
    )
    return lr_BCHW, image_BCHW
