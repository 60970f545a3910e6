"""Cutting, placing and choosing patches."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mrm_stream.model.patches import (
    inverse_order,
    normalise_patches,
    patch_order,
    patchify,
    sincos_positions,
    take_patches,
    unpatchify,
    visible_count,
)


def test_values_of_a_patch_run_by_row_column_channel() -> None:
    image_BCHW = torch.rand(2, 3, 6, 9)
    patches_BNP = patchify(image_BCHW, 3)
    assert patches_BNP.shape == (2, 6, 27)
    for number, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        expected = [
            image_BCHW[1, channel, 3 * row + y, 3 * column + x].item()
            for y in range(3)
            for x in range(3)
            for channel in range(3)
        ]
        assert patches_BNP[1, number].tolist() == expected


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_unpatchify_is_the_inverse(batch: int, grid: int, patch: int, channels: int) -> None:
    image_BCHW = torch.rand(batch, channels, grid * patch, grid * patch)
    assert torch.equal(unpatchify(patchify(image_BCHW, patch), patch), image_BCHW)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 pixels do not fill an image of 6 x 8"):
        patchify(torch.zeros(1, 1, 6, 8), 3)
    for shape in ((1, 5, 9), (1, 4, 10)):
        with pytest.raises(ValueError, match="do not make a square image"):
            unpatchify(torch.zeros(shape), 3)


def test_normalised_patches_are_those_of_three_equal_channels() -> None:
    grey_BCHW = torch.randn(2, 1, 8, 8) * 3 + 5
    coloured_BNP = patchify(grey_BCHW.expand(-1, 3, -1, -1), 4).double()
    centred = coloured_BNP - coloured_BNP.mean(dim=-1, keepdim=True)
    # The sum of squares over one value less than there are, as torch.var does it.
    variance = centred.square().sum(dim=-1, keepdim=True) / (3 * 16 - 1)
    expected = (centred / (variance + 1e-6).sqrt())[..., ::3]
    normalised_BNP, mean_BN1, std_BN1 = normalise_patches(patchify(grey_BCHW, 4))
    torch.testing.assert_close(normalised_BNP.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalised_BNP * std_BN1 + mean_BN1, patchify(grey_BCHW, 4))


def test_a_patch_of_one_grey_value_stays_finite_and_half_precision_is_widened() -> None:
    normalised_BNP, _, std_BN1 = normalise_patches(torch.full((1, 1, 16), 2.0, dtype=torch.bfloat16))
    assert normalised_BNP.dtype == torch.float32
    assert normalised_BNP.abs().max() == 0
    assert std_BN1.item() == pytest.approx(1e-3)


@pytest.mark.parametrize(("kind", "longest"), [("mae", 10_000), ("reference", 10)])
@pytest.mark.parametrize(("width", "grid"), [(8, 3), (48, 14)])
def test_positions_are_sines_and_cosines_of_column_then_row(
    width: int, grid: int, kind: Literal["mae", "reference"], longest: int
) -> None:
    positions_1ND = sincos_positions(width, grid, kind)
    assert positions_1ND.shape == (1, 1 + grid * grid, width)
    assert positions_1ND.dtype == torch.float32
    assert positions_1ND[0, 0].abs().max() == 0
    quarter = width // 4
    for row, column in ((0, 1), (1, 0), (grid - 1, grid // 2)):
        expected = []
        for coordinate in (column, row):
            angles = [coordinate / longest ** (i / quarter) for i in range(quarter)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        found = positions_1ND[0, 1 + row * grid + column]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_positions_of_neighbours_at_full_size_are_as_alike_as_was_measured() -> None:
    """Cosines of patches 1 and 4 columns apart, at width 768: of MAE's positions, and of the reference code's."""
    known: list[tuple[Literal["mae", "reference"], float, float]]
    known = [("mae", 0.986, 0.884), ("reference", 0.948, 0.550)]
    for kind, near, far in known:
        unit_ND = normalize(sincos_positions(768, 14, kind)[0, 1:], dim=1)
        assert (unit_ND[0] @ unit_ND[1]).item() == pytest.approx(near, abs=5e-4)
        assert (unit_ND[0] @ unit_ND[4]).item() == pytest.approx(far, abs=5e-4)


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    # The last ones: 196 * 0.1 is 19.6, 36 * 0.25 is 9; 100 * (1 - 0.9) is 9.999... in binary.
    [(196, 0.75, 49), (196, 0.5, 98), (196, 0.0, 196), (196, 0.9, 19), (36, 0.75, 9), (100, 0.9, 9), (10, 0.9, 0)],
)
def test_visible_count_is_cut_off_as_the_references(patches: int, ratio: float, visible: int) -> None:
    assert visible_count(patches, ratio) == visible


def test_the_least_noise_comes_first_and_equal_noise_in_order() -> None:
    noise_BN = torch.tensor([[0.5, 0.1, 0.5, 0.1, 0.0]])
    assert patch_order(noise_BN).tolist() == [[4, 1, 3, 0, 2]]


def test_inverse_order_undoes_the_order() -> None:
    tokens_BND = torch.rand(3, 16, 5)
    order_BN = patch_order(torch.rand(3, 16))
    shuffled_BND = take_patches(tokens_BND, order_BN)
    assert torch.equal(shuffled_BND[2, 0], tokens_BND[2, order_BN[2, 0]])
    assert torch.equal(take_patches(shuffled_BND, inverse_order(order_BN)), tokens_BND)
