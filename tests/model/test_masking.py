"""Which tokens and patches are masked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrm_stream.model.masking import mask_tokens, pad_reports, patch_noise
from mrm_stream.randomness import Purpose, uniform
from mrm_stream.text.tokenizer import CLS, PAD, continuation_table, encode_report, load_tokenizer

LENGTH = 12
IS_CONTINUATION_V = np.arange(30) >= 20


def _masked(
    reports: list[NDArray[np.uint16]],
    *,
    mode: Literal["word", "token"] = "word",
    ratio: float = 0.5,
    seed: int = 3,
    epochs: NDArray[np.int64] | None = None,
    indexes: NDArray[np.int64] | None = None,
    length: int = LENGTH,
) -> NDArray[np.bool_]:
    return mask_tokens(
        pad_reports(reports, length),
        seed=seed,
        epochs_B=np.zeros(len(reports), np.int64) if epochs is None else epochs,
        indexes_B=np.arange(len(reports)) if indexes is None else indexes,
        ratio=ratio,
        mode=mode,
        is_continuation_V=IS_CONTINUATION_V,
    )


def _reports(count: int, seed: int, *, longest: int = LENGTH + 3) -> list[NDArray[np.uint16]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 30, rng.integers(0, longest)).astype(np.uint16) for _ in range(count)]


def _word_by_word(token_ids: list[int], noise: list[float], ratio: float) -> list[bool]:
    """The reference code's rule, one position after the other."""
    is_masked = [False] * len(token_ids)
    draws = list(noise)
    for place in range(1, len(token_ids) - 1):
        if token_ids[place] == PAD:
            break
        if IS_CONTINUATION_V[token_ids[place]]:
            is_masked[place] = is_masked[place - 1]
        else:
            is_masked[place] = draws[place] < ratio
    return is_masked


@given(st.integers(0, 2**32), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_word_mode_is_the_references_rule(seed: int, ratio: float) -> None:
    reports = _reports(6, seed)
    noise_BL = uniform(3, np.zeros(6, np.int64), np.arange(6), Purpose.TOKENS, LENGTH)
    found_BL = _masked(reports, ratio=ratio)
    for row, noise, found in zip(pad_reports(reports, LENGTH).tolist(), noise_BL.tolist(), found_BL, strict=True):
        assert found.tolist() == _word_by_word(row, noise, ratio)


def test_word_mode_hides_whole_words_only() -> None:
    # The first piece continues nothing; then words of 1, 3 and 2 pieces, and one that the last position cuts.
    report = np.array([20, 5, 6, 21, 22, 7, 23, 8, 9, 24, 25], np.uint16)
    masked_BL = _masked([report] * 400)
    assert not masked_BL[:, [0, 1, 11]].any()
    assert (masked_BL[:, 3] == masked_BL[:, 4]).all()
    assert (masked_BL[:, 4] == masked_BL[:, 5]).all()
    assert (masked_BL[:, 6] == masked_BL[:, 7]).all()
    assert (masked_BL[:, 9] == masked_BL[:, 10]).all()
    for place in (2, 3, 6, 8, 9):
        assert 0.4 < masked_BL[:, place].mean() < 0.6
    assert (masked_BL[:, 3] != masked_BL[:, 6]).any()


def test_token_mode_hides_each_token_by_itself() -> None:
    report = np.array([20, 5, 6, 21, 22, 7, 23, 8, 9, 24, 25], np.uint16)
    masked_BL = _masked([report] * 2000, mode="token", ratio=0.3)
    assert not masked_BL[:, 0].any()
    shares = masked_BL[:, 1:].mean(axis=0)
    assert ((shares > 0.26) & (shares < 0.34)).all()
    correlation = np.corrcoef(masked_BL[:, 1:].T) - np.eye(LENGTH - 1)
    assert np.abs(correlation).max() < 0.1


@pytest.mark.parametrize("mode", ["word", "token"])
def test_cls_and_padding_are_never_masked(mode: Literal["word", "token"]) -> None:
    reports = _reports(300, 1, longest=8)
    token_ids_BL = pad_reports(reports, LENGTH)
    masked_BL = _masked(reports, mode=mode, ratio=0.99)
    assert not masked_BL[(token_ids_BL == PAD) | (token_ids_BL == CLS)].any()
    assert masked_BL.any()
    assert not _masked(reports, mode=mode, ratio=0.0).any()


@pytest.mark.parametrize("mode", ["word", "token"])
def test_draws_belong_to_seed_epoch_and_sample(mode: Literal["word", "token"]) -> None:
    reports = _reports(8, 5)
    epochs, indexes = np.arange(8) // 4, np.arange(8) * 1000
    together = _masked(reports, mode=mode, epochs=epochs, indexes=indexes)
    for slot in range(8):
        alone = _masked([reports[slot]], mode=mode, epochs=epochs[[slot]], indexes=indexes[[slot]])
        assert (alone[0] == together[slot]).all()
    for other in (
        _masked(reports, mode=mode, epochs=epochs + 1, indexes=indexes),
        _masked(reports, mode=mode, epochs=epochs, indexes=indexes + 1),
        _masked(reports, mode=mode, epochs=epochs, indexes=indexes, seed=4),
    ):
        assert (other != together).any()


def test_patch_noise_is_uniform_and_belongs_to_the_sample() -> None:
    noise_BN = patch_noise(3, np.array([0, 0, 1]), np.array([5, 6, 5]), 196)
    assert noise_BN.shape == (3, 196)
    assert noise_BN.dtype == np.float32
    assert (noise_BN[0] == patch_noise(3, np.array([0]), np.array([5]), 196)[0]).all()
    assert (noise_BN[0] != noise_BN[1]).any()
    assert (noise_BN[0] != noise_BN[2]).any()
    many = patch_noise(3, np.zeros(200, np.int64), np.arange(200), 196)
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01
    tokens = uniform(3, np.zeros(200, np.int64), np.arange(200), Purpose.TOKENS, 196)
    assert abs(np.corrcoef(many.ravel(), tokens.ravel())[0, 1]) < 0.02


def test_reports_are_cut_and_padded() -> None:
    reports = [np.arange(4, 4 + count, dtype=np.uint16) for count in (0, 2, 4, 5, 9)]
    token_ids_BL = pad_reports(reports, 5)
    assert token_ids_BL.dtype == np.int64
    assert token_ids_BL.tolist() == [
        [CLS, 0, 0, 0, 0],
        [CLS, 4, 5, 0, 0],
        [CLS, 4, 5, 6, 7],
        [CLS, 4, 5, 6, 7],
        [CLS, 4, 5, 6, 7],
    ]


def test_words_of_the_references_tokenizer_are_masked_whole(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "data" / "mimic_wordpiece.json")
    is_continuation_V = continuation_table(tokenizer)
    report = encode_report(tokenizer, "No pneumothoraxoid zzyzxian consolidation of 1234 electrocardiographically.")
    token_ids_BL = pad_reports([report] * 200, 40)
    masked_BL = mask_tokens(
        token_ids_BL,
        seed=0,
        epochs_B=np.zeros(200, np.int64),
        indexes_B=np.arange(200),
        ratio=0.5,
        mode="word",
        is_continuation_V=is_continuation_V,
    )
    pieces = [place for place in range(1, 39) if is_continuation_V[token_ids_BL[0, place]]]
    assert len(pieces) >= 3
    for place in pieces:
        assert (masked_BL[:, place] == masked_BL[:, place - 1]).all()
    assert masked_BL.any(axis=0).sum() == len(report)
