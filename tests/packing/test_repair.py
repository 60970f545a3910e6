"""`repair` makes a damaged set what it was, to the bit, or leaves it alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mrm_stream.errors import ShardError
from mrm_stream.formats.shard import read_index
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.repair import repair
from mrm_stream.packing.verify import STRAY, verify
from mrm_stream.packing.workers import Workers
from mrm_stream.text.tokenizer import load_tokenizer
from tests.packing.damage import KINDS, damage_one
from tests.packing.torture import OPTIONS, digests, pack_set

BEYOND_REPAIR = ("manifest", "quarantine")
"""What only packing anew brings back."""


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_is_damaged_at_once_becomes_what_it_was(
    mixed_set: Path, packed: Path, copy: Path, workers: int
) -> None:
    content = bytearray((copy / "train-00000.tar").read_bytes())
    content[5000] ^= 4
    (copy / "train-00000.tar").write_bytes(content)
    (copy / "train-00001.tar").unlink()
    (copy / "train-00002.idx").write_text("")
    (copy / "train-00003.tar").unlink()
    (copy / "train-00003.idx").unlink()
    (copy / "train-00077.tar").write_bytes(b"a stray one")
    (copy / "tokenizer.json").unlink()
    (copy / "reports.zdict").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    found, left = repair(copy, mixed_set, workers=Workers(workers), progress=lambda *numbers: calls.append(numbers))
    assert len(found) == 7
    assert left == []
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert digests(copy) == digests(packed)


@pytest.mark.parametrize("rounds", [12, pytest.param(300, marks=pytest.mark.campaign)])
def test_random_damage_is_repaired(mixed_set: Path, packed: Path, copy: Path, rounds: int) -> None:
    draw = random.Random(0)
    kinds = [kind for kind in KINDS if not kind.endswith(BEYOND_REPAIR)]
    for _ in range(rounds):
        for kind in draw.sample(kinds, draw.randint(1, 4)):
            # An earlier one may have taken the file, or emptied it.
            with suppress(IndexError, ValueError, FileNotFoundError, ShardError):
                damage_one(copy, kind, draw)
        found, left = repair(copy, mixed_set)
        assert found
        assert left == []
        assert digests(copy) == digests(packed)


def test_whole_files_are_not_touched(mixed_set: Path, packed: Path, copy: Path) -> None:
    (copy / "train-00001.tar").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert repair(copy, mixed_set)[1] == []
    after = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"train-00001.tar", "train-00001.idx"}
    assert digests(copy) == digests(packed)
    assert repair(copy, mixed_set) == ([], [])


def test_what_cannot_be_repaired_is_told(mixed_set: Path, copy: Path) -> None:
    (copy / "quarantine.jsonl").write_text("")
    found, left = repair(copy, mixed_set)
    assert [fault.file for fault in found] == [fault.file for fault in left] == ["quarantine.jsonl"]
    (copy / "manifest.json").unlink()
    with pytest.raises(ShardError, match="manifest cannot be read"):
        repair(copy, mixed_set)


def test_a_source_that_has_changed_replaces_nothing(
    make_set: Callable[..., Path], mixed_set: Path, copy: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(mixed_set, tmp_path / "changed"))
    for path in (changed / "images").iterdir():
        shutil.copy(mixed_set / "images" / "good-000.jpg", path)
    for name in ("train-00002.tar", "train-00004.tar"):
        (copy / name).write_bytes(b"damaged")
    before = digests(copy)
    found, left = repair(copy, changed)
    assert [fault.file for fault in found] == [fault.file for fault in left] == ["train-00002.idx", "train-00004.idx"]
    for fault in left:
        assert str(fault.why_left).startswith("packed again, it is not what it was: ")
        assert "changed since" in str(fault)
    assert digests(copy) == before
    assert {str(fault.why_left)[:40] for fault in repair(copy, make_set(tmp_path / "another", 7))[1]} == {
        "the source no longer has its records: th"
    }
    assert digests(copy) == before


def test_one_shard_that_cannot_be_repaired_keeps_no_other_from_it(
    mixed_set: Path, packed: Path, copy: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(mixed_set, tmp_path / "changed"))
    key = read_index(copy / "train-00001.tar").key(0)
    other = next(path for path in (changed / "images").glob("good-*") if path.stem != key)
    shutil.copy(other, changed / "images" / f"{key}.jpg")
    for number in (0, 1, 2):
        (copy / f"train-{number:05d}.tar").unlink()
    found, left = repair(copy, changed)
    assert len(found) == 3
    assert [fault.file for fault in left] == ["train-00001.tar"]
    assert "is not what it was" in str(left[0])
    after = digests(copy)
    assert {name for name, digest in digests(packed).items() if after.get(name) != digest} == {"train-00001.tar"}


def test_a_record_that_was_left_out_stays_out_though_it_is_good_now(
    mixed_set: Path, packed: Path, copy: Path, tmp_path: Path
) -> None:
    repaired = Path(shutil.copytree(mixed_set, tmp_path / "repaired"))
    bad = next((repaired / "images").glob("truncated-*"))
    shutil.copy(next((repaired / "images").glob("good-*")), bad)
    for path in copy.glob("*.tar"):
        path.write_bytes(b"")
    assert repair(copy, repaired)[1] == []
    assert digests(copy) == digests(packed)


def test_without_the_list_of_what_was_left_out_the_reason_says_so(mixed_set: Path, copy: Path, tmp_path: Path) -> None:
    repaired = Path(shutil.copytree(mixed_set, tmp_path / "repaired"))
    shutil.copy(next((repaired / "images").glob("good-*")), next((repaired / "images").glob("truncated-*")))
    (copy / "quarantine.jsonl").unlink()
    for path in copy.glob("*.tar"):
        path.write_bytes(b"")
    left = repair(copy, repaired)[1]
    assert {fault.file.split("-")[0] for fault in left} == {"quarantine.jsonl", "train"}
    assert "quarantine.jsonl, which tells what was skipped, is damaged too" in str(left[-1])


def test_an_empty_quarantine_is_made_again(make_set: Callable[..., Path], tmp_path: Path) -> None:
    root = make_set(tmp_path / "source", 6)
    pack_set(root, tmp_path / "set")
    (tmp_path / "set" / "quarantine.jsonl").write_text("damaged")
    assert verify(tmp_path / "set")[0].remedy is None
    assert repair(tmp_path / "set", root)[1] == []
    assert (tmp_path / "set" / "quarantine.jsonl").read_bytes() == b""


def test_reports_that_have_changed_replace_nothing(mixed_set: Path, copy: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(mixed_set, tmp_path / "changed"))
    table = changed / "training.csv"
    table.write_text(table.read_text().replace("effusion", "pneumothorax"))
    for name in ("tokenizer.json", "reports.zdict"):
        (copy / name).write_bytes(b"damaged")
        before = digests(copy)
        left = repair(copy, changed)[1]
        assert str(next(fault.why_left for fault in left if fault.file == name)).startswith("learnt again, it is not")
        assert "pneumothorax" not in "".join(map(str, left))
        assert digests(copy) == before


def test_a_tokenizer_that_was_given_must_be_copied_back(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    given = tmp_path / "tokenizer.json"
    given.write_text(load_tokenizer(packed / "tokenizer.json").to_str(pretty=True))
    out = tmp_path / "set"
    pack("training-csv", mixed_set, out, options=OPTIONS, tokenizer=given, supervision=Supervision(max_bad=1.0))
    before = digests(out)
    (out / "tokenizer.json").write_text("{}")
    (out / "train-00000.tar").unlink()
    (out / "reports.zdict").unlink()
    left = repair(out, mixed_set)[1]
    assert [(fault.file, fault.why_left) for fault in left] == [
        ("tokenizer.json", "it was not trained when this set was packed"),
        ("train-00000.tar", "tokenizer.json must be repaired first"),
    ]
    assert "copy it from where it was given" in str(left[0].remedy)
    shutil.copy(given, out / "tokenizer.json")
    assert repair(out, mixed_set)[1] == []
    assert digests(out) == before


def test_a_second_and_a_third_repair_are_refused(mixed_set: Path, packed: Path, copy: Path) -> None:
    (copy / "train-00001.tar").unlink()
    (copy / "train-00002.tar").unlink()
    refused = 0

    def repair_too(done: int, of: int) -> None:
        nonlocal refused
        for _ in range(2):  # the first one that is refused must not take the lock with it
            with pytest.raises(ShardError, match="another process"):
                repair(copy, mixed_set)
            refused += 1

    assert repair(copy, mixed_set, progress=repair_too)[1] == []
    assert refused == 4
    assert digests(copy) == digests(packed)


def test_a_stray_file_alone_is_removed(mixed_set: Path, packed: Path, copy: Path) -> None:
    (copy / "train-00099.idx").write_text("v1.2 0\n")
    found, left = repair(copy, mixed_set)
    assert [fault.what for fault in found] == [STRAY]
    assert left == verify(copy) == []
    assert digests(copy) == digests(packed)
