from __future__ import annotations

import numpy as np
import pytest

from mrm_stream.randomness import Purpose, _philox, permutation, uniform, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The generator's published known answers (Random123, philox4x32, 10 rounds).
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_generator_gives_its_published_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = (int(word, 16) for word in key.split())
    result = _philox(np.array([int(word, 16) for word in counter.split()], np.uint64), k1 << 32 | k0)
    assert [f"{word:08x}" for word in result.tolist()] == expected.split()


def test_a_draw_depends_on_its_own_sample_only() -> None:
    together = words(7, [3, 3, 4], [10, 11, 10], Purpose.CROP, 6)
    for row, (epoch, sample) in zip(together, [(3, 10), (3, 11), (4, 10)], strict=True):
        np.testing.assert_array_equal(row, words(7, epoch, sample, Purpose.CROP, 6))


def test_every_part_of_the_key_changes_the_draw() -> None:
    base = (7, 3, 10, Purpose.CROP)
    others = [(8, 3, 10, Purpose.CROP), (7, 4, 10, Purpose.CROP), (7, 3, 11, Purpose.CROP), (7, 3, 10, Purpose.FLIP)]
    others += [(7 + 2**32, 3, 10, Purpose.CROP), (7, 3, 10 + 2**32, Purpose.CROP)]
    drawn = {tuple(words(*key, 4).tolist()) for key in [base, *others]}
    assert len(drawn) == 1 + len(others)


def test_a_longer_draw_begins_with_the_shorter() -> None:
    np.testing.assert_array_equal(uniform(0, 0, 5, Purpose.PATCHES, 196)[:7], uniform(0, 0, 5, Purpose.PATCHES, 7))


def test_uniform_fills_its_interval_evenly() -> None:
    drawn = uniform(1, 0, np.arange(2000), Purpose.PATCHES, 50).ravel()
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    # Each bin's count has a standard deviation of 69 about 5,000.
    assert abs(counts - 5000).max() < 5 * 69


def test_permutations_are_permutations_and_differ() -> None:
    seen = set()
    for epoch in range(3):
        for stream in range(3):
            order = permutation(0, epoch, stream, Purpose.SAMPLES, 100)
            assert sorted(order.tolist()) == list(range(100))
            seen.add(tuple(order.tolist()))
    assert len(seen) == 9


def test_every_permutation_of_three_is_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(1200):
        order = tuple(permutation(0, epoch, 0, Purpose.SHARDS, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    # 200 expected, with a standard deviation of 13.
    assert all(abs(count - 200) < 65 for count in counts.values())
