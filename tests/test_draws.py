"""The random draws as they are, written down: a run goes on with the draws it was begun with, whatever the release.

Every tolerance that a property test needs lets some other stream through; a recorded draw lets none.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrm_stream.decode.crops import random_crops
from mrm_stream.formats.options import PackOptions
from mrm_stream.model.masking import mask_tokens, patch_noise
from mrm_stream.packing.plan import plan_shards
from mrm_stream.randomness import Purpose, words
from mrm_stream.records import Record
from mrm_stream.stream import order
from mrm_stream.stream.mixture import Mixture
from mrm_stream.stream.order import Order

PACKAGE = Path(__file__).parents[1] / "mrm_stream"
SEED = 7
EPOCHS, INDEXES = np.array([0, 3, 3]), np.array([10, 10, 11])
REPORT = np.array([[2, 9, 10, 11, 9, 9, 10, 9, 9, 0]] * 3, np.int64)
CONTINUES = np.array([entry in (10, 11) for entry in range(12)])


@cache
def drawing_places() -> list[tuple[str, str]]:
    """Return the name of each purpose that the package draws for, with the file and the function that does."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if "Purpose." not in text:
            continue
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef):
                names = (ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Attribute))
                place = f"{path.relative_to(PACKAGE)}:{function.name}"
                found += [(name.removeprefix("Purpose."), place) for name in names if name.startswith("Purpose.")]
    return found


def places_of(purpose: Purpose) -> list[str]:
    return [place for name, place in drawing_places() if name == purpose.name]


@pytest.mark.parametrize("purpose", set(Purpose) - {Purpose.PHANTOM}, ids=lambda purpose: purpose.name)
def test_a_purpose_is_drawn_for_in_one_place(purpose: Purpose) -> None:
    assert len(places_of(purpose)) == 1, places_of(purpose)


def test_phantoms_alone_draw_for_phantoms() -> None:
    places = places_of(Purpose.PHANTOM)
    assert places
    assert all(place.startswith("sources/phantom/") for place in places)


def test_the_numbers_of_purposes_stay() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "CROP": 1,
        "FLIP": 2,
        "PATCHES": 3,
        "TOKENS": 4,
        "SHARDS": 5,
        "SAMPLES": 6,
        "PACKING": 7,
        "DROPOUT": 8,
        "PHANTOM": 9,
        "BLOCKS": 10,
        "MIXTURE": 11,
    }
    drawn = [int(words(SEED, 3, 10, purpose, 1)[0]) for purpose in Purpose]
    assert drawn == [
        2037871283,
        539758989,
        3547885113,
        1993275875,
        3331738019,
        2328247916,
        722809344,
        2858122970,
        2618496170,
        2794020954,
        1542283405,
    ]


def crops() -> list[list[int]]:
    drawn = random_crops(np.array([[1024, 1250]] * 3, np.int32), EPOCHS, INDEXES, seed=SEED)
    return [part.astype(int).tolist() for part in (drawn.top, drawn.left, drawn.height, drawn.width, drawn.flip)]


def patches() -> object:
    return patch_noise(SEED, EPOCHS, INDEXES, 9).argsort(axis=1).tolist()


def tokens(mode: Any) -> list[str]:
    masked = mask_tokens(
        REPORT,
        seed=SEED,
        epochs_B=EPOCHS,
        indexes_B=INDEXES,
        ratio=0.5,
        mode=mode,
        is_continuation_V=CONTINUES,
    )
    return ["".join("x" if each else "." for each in row) for row in masked.tolist()]


def of_order() -> object:
    return Order([3, 2, 4, 1], SEED, 2).indexes(range(20))[1].tolist()


def of_blocks(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(order, "BLOCK", 2)
    return Order([3, 2, 4, 1, 2, 2], SEED, 1).indexes(range(14))[1].tolist()


def of_mixture() -> str:
    mixture = Mixture([Order([50, 30], SEED, 2), Order([40], SEED, 2)], [2, 1], SEED)
    _, indexes = mixture.indexes(range(9_000))
    return hashlib.sha256(indexes.astype("<i8").tobytes()).hexdigest()[:16]


def of_packing() -> list[str]:
    records = [Record(key=f"r{number}", image_path="a.jpg") for number in range(8)]
    plans = plan_shards(records, PackOptions(samples_per_shard=4, seed=SEED))
    return [" ".join(record.key for record in plan.records) for plan in plans]


RECORDED: dict[str, tuple[Callable[[], object], object]] = {
    "crop, flip": (crops, [[12, 133, 171], [233, 221, 4], [863, 751, 681], [720, 987, 908], [0, 1, 1]]),
    "patches": (patches, [[5, 3, 7, 1, 2, 4, 6, 0, 8], [4, 1, 8, 3, 2, 7, 6, 0, 5], [0, 6, 3, 1, 7, 5, 4, 8, 2]]),
    "words": (lambda: tokens("word"), [".......x..", ".xxxx.....", ".xxx.xxx.."]),
    "tokens": (lambda: tokens("token"), ["......xx..", ".x.xx.x...", ".x.x.x.x.."]),
    "shards, samples": (of_order, [6, 7, 5, 9, 8, 0, 4, 3, 1, 2, 8, 5, 7, 6, 9, 4, 3, 2, 0, 1]),
    "mixture": (of_mixture, "ed9c6e0ba8ae0262"),
    "packing": (of_packing, ["r5 r6 r2 r4", "r7 r3 r1 r0"]),
}


@pytest.mark.parametrize("name", RECORDED)
def test_draws_are_those_on_record(name: str) -> None:
    draw, recorded = RECORDED[name]
    assert draw() == recorded


def test_blocks_of_shards_are_drawn_as_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_blocks(monkeypatch) == [8, 7, 6, 5, 9, 2, 1, 0, 3, 4, 12, 13, 10, 11]
