"""Which patches and tokens of each sample are masked: a pure function of seed, epoch and sample.

Because the draws depend on nothing else, a run that is resumed, or continued on another number of ranks, masks the same
patches and words as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrm_stream.randomness import Purpose, uniform
from mrm_stream.text.tokenizer import CLS, PAD


def patch_noise(
    seed: int, epochs_B: NDArray[np.integer], indexes_B: NDArray[np.integer], count: int
) -> NDArray[np.float32]:
    """Return the noise that orders each sample's patches, uniform in [0, 1), shape (B, count).

    Args:
        seed: Of the run.
        epochs_B: Epoch of each sample.
        indexes_B: Index of each sample in its split.
        count: Patches of an image, N.

    Example:
        >>> patch_noise(0, np.array([0, 0]), np.array([3, 9]), 196).shape
        (2, 196)
    """
    return uniform(seed, epochs_B, indexes_B, Purpose.PATCHES, count)


def pad_reports(reports: Sequence[NDArray[np.uint16]], length: int) -> NDArray[np.int64]:
    """Put [CLS] before each report and cut or pad it to `length`.

    Args:
        reports: Token ids of each whole report, without special tokens.
        length: Tokens of a row, [CLS] included.

    Returns:
        Shape (B, length).

    Example:
        >>> pad_reports([np.array([7, 8, 9], np.uint16), np.array([7], np.uint16)], 3).tolist()
        [[2, 7, 8], [2, 7, 0]]
    """
    token_ids_BL = np.full((len(reports), length), PAD, np.int64)
    token_ids_BL[:, 0] = CLS
    for row, report in zip(token_ids_BL, reports, strict=True):
        # As in the reference code, there is no [SEP] at the end: a report that is cut looks like any other.
        kept = report[: length - 1]
        row[1 : 1 + len(kept)] = kept
    return token_ids_BL


def mask_tokens(
    token_ids_BL: NDArray[np.int64],
    *,
    seed: int,
    epochs_B: NDArray[np.integer],
    indexes_B: NDArray[np.integer],
    ratio: float,
    mode: Literal["word", "token"],
    is_continuation_V: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Choose the tokens that are masked at the report decoder's input.

    `word`, as the reference code: each word is masked with probability `ratio`, all its pieces with it; the first and
    the last position stay visible, and so do pieces that continue no word. `token`, as the paper: each token by itself.
    [CLS] and [PAD] are never masked.

    Args:
        token_ids_BL: As from `pad_reports`, shape (B, L).
        seed: Of the run.
        epochs_B: Epoch of each sample.
        indexes_B: Index of each sample in its split.
        ratio: Probability that a word or token is masked.
        mode: "word" or "token".
        is_continuation_V: For each entry of the vocabulary, whether it is a `##` piece, shape (vocabulary,).

    Returns:
        True where the token is masked, shape (B, L).
    """
    length = token_ids_BL.shape[1]
    noise_BL = uniform(seed, epochs_B, indexes_B, Purpose.TOKENS, length)
    is_masked_BL: NDArray[np.bool_] = noise_BL < ratio
    if mode == "word":
        # Were a piece masked alone, the rest of its word would give it away. So a `##` piece takes the draw of its
        # word's first piece, the last position before it that is no `##` piece: a running maximum of those positions.
        starts_BL = np.where(is_continuation_V[token_ids_BL], 0, np.arange(length))
        is_masked_BL[:, 0] = False
        is_masked_BL = np.take_along_axis(is_masked_BL, np.maximum.accumulate(starts_BL, axis=1), axis=1)
        is_masked_BL[:, -1] = False
    is_masked_BL[:, 0] = False
    # A masked [PAD] would teach nothing but the lengths of reports.
    is_masked_BL &= token_ids_BL != PAD
    return is_masked_BL
