"""Random draws, taken one after the other from the stream of a subject, a study or an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from mrm_stream.randomness import Purpose, uniform

_T = TypeVar("_T")
_DRAWS = 128
"""Draws a stream holds; the longest (a report) takes about fifty."""


class Level(IntEnum):
    """What a stream describes; it is used as the epoch of `mrm_stream.randomness`."""

    SUBJECT = 0
    STUDY = 1
    IMAGE = 2
    REPORT = 3
    VESSELS = 4
    GRAIN = 5
    TEXTURE = 6
    COUNTS = 7
    NAMES = 8
    DATES = 9


class Draws:
    """The draws of one stream, in a fixed order.

    Args:
        seed: Of the data set.
        level: What is described.
        index: Which subject, study or image it is, 0-based over the whole set.
    """

    def __init__(self, seed: int, level: Level, index: int) -> None:
        self._numbers = iter(uniform(seed, int(level), index, Purpose.PHANTOM, _DRAWS).tolist())

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(next(self._numbers))

    def chance(self, probability: float) -> bool:
        """Return True this often."""
        return float(next(self._numbers)) < probability

    def normal(self, deviation: float) -> float:
        """Return a normal number about 0, cut off at three deviations."""
        first, second = next(self._numbers), next(self._numbers)
        value = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
        return deviation * max(-3.0, min(3.0, value))

    def choice(self, options: Sequence[_T]) -> _T:
        """Return one of `options`, each as likely."""
        return options[int(next(self._numbers) * len(options))]
