"""Random numbers that belong to the sample, not to the process.

Every draw is a pure function of (seed, epoch, sample, purpose): a run that is resumed, or spread over another number
of ranks or threads, repeats it bit for bit. A generator with a state could not: what it draws for a sample depends on
how many were drawn before. So the generator is counter-based: it encrypts the sample's coordinates with the seed as
key. NumPy has Philox too, but promises no stable values between its versions, so it is written out here.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK32 = np.uint64(0xFFFFFFFF)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85


class Purpose(IntEnum):
    """What a draw is for; two purposes never share a stream."""

    CROP = 1
    FLIP = 2
    PATCHES = 3
    TOKENS = 4
    SHARDS = 5
    SAMPLES = 6
    PACKING = 7
    DROPOUT = 8
    PHANTOM = 9
    BLOCKS = 10
    MIXTURE = 11


def _philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Philox4x32-10 (Salmon et al., SC 2011): (..., 4) counters of 32 bits, held in 64, to as many random words."""
    c0, c1, c2, c3 = (counter[..., i].copy() for i in range(4))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _MASK32,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(seed: int, epoch: ArrayLike, sample: ArrayLike, purpose: Purpose, count: int) -> NDArray[np.uint64]:
    """Return `count` random 32-bit words (held in uint64) for each sample.

    Args:
        seed: Of the run, 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1; broadcast against `sample`.
        sample: Index in the set, 0 to 2**64 - 1, shape (B,) or a scalar.
        purpose: What the words are for.
        count: Words a sample, at most 2**26.

    Returns:
        Shape (B, count), or (count,) for scalars.
    """
    epochs, samples = np.broadcast_arrays(np.asarray(epoch, np.uint64), np.asarray(sample, np.uint64))
    blocks = np.arange((count + 3) // 4, dtype=np.uint64) | np.uint64(int(purpose) << 24)
    counter = np.empty((*samples.shape, len(blocks), 4), np.uint64)
    counter[..., 0] = blocks
    counter[..., 1] = epochs[..., None]
    counter[..., 2] = samples[..., None] & _MASK32
    counter[..., 3] = samples[..., None] >> np.uint64(32)
    return _philox(counter, seed).reshape(*samples.shape, 4 * len(blocks))[..., :count]


def uniform(seed: int, epoch: ArrayLike, sample: ArrayLike, purpose: Purpose, count: int) -> NDArray[np.float32]:
    """Return `count` numbers in [0, 1) for each sample, shape (B, count); see `words` for the arguments.

    Example:
        >>> uniform(0, 0, [4, 5], Purpose.FLIP, 2).shape
        (2, 2)
        >>> bool((uniform(0, 0, 5, Purpose.FLIP, 2) == uniform(0, 0, [4, 5], Purpose.FLIP, 2)[1]).all())
        True
    """
    # 24 bits fill a float32's significand exactly; more would round up to 1.0 now and then.
    return (words(seed, epoch, sample, purpose, count) >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def permutation(seed: int, epoch: int, stream: int, purpose: Purpose, size: int) -> NDArray[np.int64]:
    """Return a permutation of range(size), shape (size,); `stream` distinguishes those of one epoch and purpose.

    Example:
        >>> sorted(permutation(0, 0, 0, Purpose.SHARDS, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    # One stream of 2**28 words is too short for the largest sets, so each element is a "sample" of its own; two words
    # make ties (broken by the stable sort) rarer than one in 2**30 at a million elements.
    elements = np.arange(size, dtype=np.uint64) | (np.uint64(stream) << np.uint64(40))
    high, low = np.moveaxis(words(seed, epoch, elements, purpose, 2), -1, 0)
    return np.argsort(high << np.uint64(32) | low, kind="stable")
