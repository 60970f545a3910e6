from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrm_stream.errors import SourceError
from mrm_stream.sources.joins import Join, number_id, text_id

PATH = Path("labels.csv")


def _join(rows: dict[str, int], *keys: str, enough: float = 0.5) -> Join[int]:
    join = Join(rows, PATH, "studies", enough=enough)
    for key in keys:
        join.get(key)
    return join


def test_none_matched_is_an_error_that_shows_one_id_of_each_side() -> None:
    with pytest.raises(SourceError) as caught:
        _join({"s1": 0, "s2": 0}, "1", "2", "3").check("metadata.csv")
    assert str(caught.value).startswith(
        "labels.csv: none of the 3 studies of metadata.csv is in it: '1' there, 's1' here\n  Take both from"
    )
    with pytest.raises(SourceError, match=r"none of the 1 studies .*: '1' there, and nothing here"):
        _join({}, "1").check("metadata.csv")
    _join({}).check("metadata.csv")  # nothing was looked up


@pytest.mark.parametrize(
    ("keys", "enough", "warned"), [("ab", 0.5, False), ("abc", 0.5, True), ("a", 1, False), ("aab", 1, True)]
)
def test_few_matched_is_a_warning_with_the_counts(
    keys: str, enough: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _join({"a": 0, "x": 0, "y": 0}, *keys, enough=enough).check("metadata.csv")
    (line,) = caplog.records
    assert line.getMessage() == f"labels.csv: it has {keys.count('a')} of the {len(keys)} studies of metadata.csv"
    assert line.levelno == (logging.WARNING if warned else logging.INFO)


def test_an_id_that_must_be_there_is_named_beside_one_that_is() -> None:
    join = _join({"a": 7})
    assert join.need("a", "metadata.csv, line 2") == 7
    with pytest.raises(SourceError, match=r"'b' is not among the studies of labels\.csv, 'a' here") as caught:
        join.need("b", "metadata.csv, line 3")
    assert caught.value.where == "metadata.csv, line 3"


def test_a_cell_that_may_be_a_report_is_not_repeated() -> None:
    with pytest.raises(SourceError, match="not shown") as caught:
        _join({"the lungs are clear": 0}, "no effusion seen").check("metadata.csv")
    assert "lungs" not in str(caught.value)
    assert "effusion" not in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        "50414267", "50414267.0", "50414267.", "50414267.000", "0050414267", " 50414267\u00a0", "'50414267",
        '="50414267"', '"50414267"', "50,414,267", "50,414,267.00", "5.0414267e7", "5.0414267E+07", "5.041426700e+007",
        "s50414267", "S50414267", " s0050414267 ",
    ],
)  # fmt: skip
def test_a_number_is_read_however_a_tool_wrote_it(cell: str) -> None:
    assert number_id(cell, "study_id", PATH, 2, prefix="s") == "50414267"


@pytest.mark.parametrize(
    "cell",
    [
        *("5.04143E+07", "5e7", "5.04142671e6", "8.398604886942923e+35"),
        # 2**53 + 1, with all of its digits: as a float64 its neighbours look the same.
        *("9007199254740993.0", "9.007199254740993e+15"),
    ],
)
def test_a_number_that_lost_digits_is_refused_by_name(cell: str) -> None:
    with pytest.raises(SourceError, match=r"study_id is .*, a number that lost its last digits") as caught:
        number_id(cell, "study_id", PATH, 7)
    assert caught.value.where == "labels.csv, line 7"
    assert cell in str(caught.value)


@pytest.mark.parametrize("cell", ["", "nan", "P12", "12-3", "1,23", "-5", "0x1F", "1.5", "\u0663", "12.0.3", "s1", "²"])
def test_what_is_no_number_stays_as_it_is(cell: str) -> None:
    assert number_id(cell, "study_id", PATH, 2) == cell


@given(st.integers(0, 2**53))
def test_every_way_of_a_number_is_that_number(number: int) -> None:
    ways = [f"{number}", f"{number}.0", f"{number:,}", f"{number:016d}", f"{number:.20e}", f"'{number}", f" {number} "]
    assert {number_id(way, "study_id", PATH, 2) for way in ways} == {str(number)}


def test_a_name_loses_what_tools_put_around_it() -> None:
    assert [text_id(cell) for cell in (' "a-1" ', "'a-1'", '="a-1"', "a-1\u00a0")] == ["a-1"] * 4
