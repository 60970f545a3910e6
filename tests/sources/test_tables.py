from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm_stream.errors import SourceError
from mrm_stream.sources.tables import CELL_LIMIT, KEY_PATTERN, LINE_LIMIT, claim, find_table, keys_from_paths, read_rows
from mrm_stream.storage.paths import AnyPath, parse_path


def _write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def test_rows_come_with_their_lines_and_the_columns_in_the_order_asked_for(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", 'a, b ,c\r\n1,"x, ""y""\nz",3\r\n\r\n4,5,6\r\n')
    assert list(read_rows(path, ("c", "b"))) == [(2, ("3", 'x, "y"\nz')), (5, ("6", "5"))]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_column_s_name(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbfa,b\n1,2\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_rows(tmp_path / name, ("a", "b"))) == [(2, ("1", "2"))]


def test_a_compressed_table_reads_as_the_plain_one(tmp_path: Path) -> None:
    plain = _write(tmp_path / "t.csv", "a,b\n1,2\n")
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_rows(packed, ("a", "b"))) == list(read_rows(plain, ("a", "b"))) == [(2, ("1", "2"))]


def test_find_table_takes_either_form_and_names_both_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither t\.csv\.gz nor t\.csv"):
        find_table(tmp_path, "t.csv")
    plain = _write(tmp_path / "t.csv", "a\n")
    assert find_table(tmp_path, "t.csv") == plain
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(b"a\n"))
    assert find_table(tmp_path, "t.csv") == packed
    plain.unlink()
    assert find_table(tmp_path, "t.csv") == packed


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("edited", "line"), [(b"a,b\n1,2\n3,5\n", 3), (b"b,a\n1,2\n3,4\n", 1), (b"a,b\n1,2\n3,4\n5,6\n", 4), (b"", 1)]
)
def test_an_edited_table_beside_the_compressed_one_is_an_error(
    tmp_path: Path, edited: bytes, line: int, remote: bool
) -> None:
    root: AnyPath = parse_path(f"memory://{tmp_path.name}") if remote else tmp_path
    (root / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n3,4\n"))
    (root / "t.csv").write_bytes(edited)
    with pytest.raises(SourceError, match=rf"t\.csv\.gz and t\.csv are both there, and differ from line {line} on"):
        find_table(root, "t.csv")


def test_a_difference_is_found_beyond_the_first_piece(tmp_path: Path) -> None:
    content = b"1,2\n" * 600_000
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content, 1))
    (tmp_path / "t.csv").write_bytes(content)
    assert find_table(tmp_path, "t.csv").name == "t.csv.gz"
    (tmp_path / "t.csv").write_bytes(content[:-2] + b"3\n")
    with pytest.raises(SourceError, match="differ from line 600,000 on"):
        find_table(tmp_path, "t.csv")


def test_a_table_that_is_cut_short_is_no_equal_of_another(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-12])
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"t\.csv\.gz: the table cannot be read"):
        find_table(tmp_path, "t.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_compressed_is_told_by_the_content_whatever_the_name(tmp_path: Path, name: str, packed: bool) -> None:
    content = b"a,b\n1,2\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert list(read_rows(find_table(tmp_path, "t.csv"), ("a", "b"))) == [(2, ("1", "2"))]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + bytes(60), "an Excel workbook or another zip"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook"),
        (lzma.compress(b"a,b\n"), "packed with xz"),
        (bz2.compress(b"a,b\n"), "packed with bzip2"),
        (gzip.compress(b"a,b\n", mtime=0), "packed with gzip"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text"),
        (b"\xfe\xff" + "a,b\n1,2\n".encode("utf-16-be"), "UTF-16 text"),
        (b"\r\n<!DOCTYPE html><title>Login</title>", "a web page"),
        (b"<HTML><body>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_csv_table_is_told_as_what_it_is(tmp_path: Path, content: bytes, what: str, packed: bool) -> None:
    if content.startswith(b"\x1f\x8b"):
        content = content if packed else gzip.compress(content)  # once is read
    (tmp_path / "t.csv").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(SourceError, match=f"this is no CSV table: it is {what}"):
        list(read_rows(tmp_path / "t.csv", ("a", "b")))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("a;b;c\n1;2;3\n", "separated by semicolons"),
        ('"b";"a"\n1,5;2\n', "separated by semicolons"),
        ("a,5;b;c\n", "column 'b' is missing"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        ("a | b\n1|2\n", "separated by bars"),
        ("sep=;\na;b\n1;2\n", "a line that only spreadsheets know"),
    ],
)
def test_another_separator_is_told(tmp_path: Path, content: str, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        list(read_rows(_write(tmp_path / "t.csv", content), ("a", "b")))


def test_a_long_cell_is_told_with_the_line_that_it_begins_on(tmp_path: Path) -> None:
    """As when a quote is not closed: the rows after it become its cell."""
    path = _write(tmp_path / "t.csv", "a,b\n1,2\n" + '3,"' + "4,5\n" * (CELL_LIMIT // 4 + 1))
    with pytest.raises(
        SourceError, match=r"a cell is longer than 1,048,576 characters\n.*correct the quotes"
    ) as caught:
        list(read_rows(path, ("a", "b")))
    assert caught.value.where == f"{path}, line 3"


def test_a_missing_column_is_named_with_the_file_the_expected_and_the_nearest_one(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "imagePath,report\n1,2\n")
    with pytest.raises(SourceError) as caught:
        list(read_rows(path, ("image_path", "report")))
    message = str(caught.value)
    assert "column 'image_path' is missing" in message
    assert str(path) in message
    assert "image_path, report" in message
    assert "'imagePath'" in message


@pytest.mark.parametrize(
    ("content", "what", "place"),
    [
        ("", "column 'a' is missing", "t.csv"),
        ("a,b,a\n1,2,3\n", "column 'a' appears twice", "t.csv"),
        ("a,b\n1,2\n3\n", "the row has 1 cells, the header has 2", "t.csv, line 3"),
        ("a,b\n1,2,3\n", "the row has 3 cells, the header has 2", "t.csv, line 2"),
        ('a,b\n1,2\n1,"2\n', "a quote of this row is not closed", "t.csv, line 3"),
        ('a,b\n1,2\n1,"2"x\n', "not written as in a CSV table", "t.csv, line 3"),
        ("a,b\n1,2\n1," + "x" * (CELL_LIMIT + 1) + "\n", "a cell is longer than 1,048,576", "t.csv, line 3"),
        ("a,b\n1," + "x," * (LINE_LIMIT // 2) + "\n", "longer than", "t.csv, line 2"),
    ],
)
def test_a_malformed_table_is_refused_with_its_place(tmp_path: Path, content: str, what: str, place: str) -> None:
    path = _write(tmp_path / "t.csv", content)
    with pytest.raises(SourceError, match=what) as caught:
        list(read_rows(path, ("a", "b")))
    assert caught.value.where == str(tmp_path / place)


def test_the_limit_on_cells_holds_even_where_another_library_raised_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", 'a,b\n1,"' + ("x" * 1000 + "\n") * (CELL_LIMIT // 1000) + '"\n')
    before = csv.field_size_limit(1 << 40)
    try:
        with pytest.raises(SourceError, match="a cell is longer than"):
            list(read_rows(path, ("a", "b")))
    finally:
        csv.field_size_limit(before)


def test_a_small_file_that_unpacks_to_an_endless_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1," + b"x" * (50 << 20)))
    with pytest.raises(SourceError, match="longer than"):
        list(read_rows(path, ("a", "b")))


def test_absent_undecodable_and_cut_short_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        list(read_rows(tmp_path / "none.csv", ("a", "b")))
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,\xc3\xa9\n1,\xff\n")
    with pytest.raises(SourceError, match=r"t\.csv, line 3: the table is not UTF-8"):
        list(read_rows(path, ("a", "b")))
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-12])
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_rows(packed, ("a", "b")))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text('ab,"\n\r\0 é', max_size=200).map(str.encode)
    | st.binary(max_size=60).map(gzip.compress),
    st.sampled_from(["t.csv", "t.csv.gz"]),
)
def test_no_content_gets_past_the_errors(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(b"a,b\n" * name.endswith("csv") + content)
    with contextlib.suppress(SourceError):
        assert all(len(cells) == 2 for _, cells in read_rows(path, ("a", "b")))


def test_claim_names_both_lines() -> None:
    lines: dict[str, int] = {}
    claim(lines, "x", 2, Path("t.csv"))
    claim(lines, "y", 3, Path("t.csv"))
    with pytest.raises(SourceError, match="key appears twice: 'x' on lines 2 and 7"):
        claim(lines, "x", 7, Path("t.csv"))


def test_keys_are_plain_stems_where_these_are_valid_and_unique() -> None:
    keys = keys_from_paths(["a/one.png", "a/two.png", "b/two.jpg", "a/été.png", "a/3.5.png", f"{'x' * 81}.png"])
    assert keys[0] == "one"
    assert keys[1].startswith("two-")
    assert keys[2].startswith("two-")
    assert keys[3].startswith("_t_-")
    assert keys[4].startswith("3_5-")
    assert len(keys[5]) == 80


@settings(max_examples=300)
@given(st.lists(st.text(min_size=1), unique=True, max_size=12) | st.lists(st.text("ab./-", min_size=1), unique=True))
def test_keys_are_valid_unique_and_do_not_depend_on_the_order(paths: list[str]) -> None:
    keys = keys_from_paths(paths)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert len(set(keys)) == len(paths)
    assert dict(zip(paths[::-1], keys_from_paths(paths[::-1]), strict=True)) == dict(zip(paths, keys, strict=True))


def test_blank_lines_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n" + "\n" * 200_000)
    with pytest.raises(SourceError, match="too many blank lines"):
        list(read_rows(path, ("a",)))


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(SourceError, match="not a regular file"):
        list(read_rows(tmp_path / "t.csv", ("a",)))
