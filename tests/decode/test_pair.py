from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torchvision.transforms import v2

from mrm_stream.decode.pair import make_lr_hr_pair, normalise


def test_low_resolution_view_is_the_reference_implementations(shared: Path) -> None:
    path = shared / "reference" / "official_small.safetensors"
    with safe_open(path, "pt") as file:
        image, expected = file.get_tensor("in.image_gray").float(), file.get_tensor("out.low_resolution_gray")
    lr, hr = make_lr_hr_pair(image)
    assert hr is image
    torch.testing.assert_close(lr, expected, rtol=0, atol=1e-5)
    smoothed, _ = make_lr_hr_pair(image, antialias=True)
    assert (smoothed - expected).abs().max() > 0.01


@pytest.mark.parametrize("antialias", [False, True])
def test_low_resolution_view_is_torchvisions(antialias: bool) -> None:
    image = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0)) * 4 - 2
    lr, _ = make_lr_hr_pair(image, lr_size=32, antialias=antialias)
    expected = v2.functional.resize(image, [32, 32], interpolation=v2.InterpolationMode.BICUBIC, antialias=antialias)
    torch.testing.assert_close(lr, expected, rtol=0, atol=1e-6)


def test_patches_of_both_views_lie_over_each_other() -> None:
    image = torch.zeros(1, 1, 96, 96)
    image[..., 32:64, 64:96] = 1
    lr, _ = make_lr_hr_pair(image, lr_size=48)
    assert lr[..., 18:30, 34:46].min() > 0.99
    outside = lr.clone()
    outside[..., 14:34, 30:48] = 0
    assert outside.abs().max() < 1e-6


def test_normalising_is_torchvisions() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scaled = v2.functional.to_dtype(image, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, [0.4978], [0.2449])
    result = normalise(image, 0.4978, 0.2449)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert image.flatten().tolist() == list(range(256))


def test_no_down_sampling_gives_the_crop_itself() -> None:
    image = torch.rand(1, 1, 32, 32)
    lr, hr = make_lr_hr_pair(image, lr_size=32)
    assert lr is image
    assert hr is image


def test_a_crop_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        make_lr_hr_pair(torch.zeros(1, 1, 448, 440))
    with pytest.raises(ValueError, match="multiple"):
        make_lr_hr_pair(torch.zeros(1, 1, 450, 450))
