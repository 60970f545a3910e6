"""Packing that goes on after its source was repaired, or after transient errors."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import MrmStreamError, SourceError, StorageError
from mrm_stream.formats.folder import FOLDER
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing import estimate as estimate_module
from mrm_stream.packing import worker
from mrm_stream.packing.estimate import estimate
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.plan import plan_set
from mrm_stream.packing.worker import Job, pack_records
from mrm_stream.records import Record
from mrm_stream.sources.source import Source
from tests.packing.torture import OPTIONS, digests, pack_set

SENTENCE = "The lungs are clear; no effusion."


@pytest.fixture
def source(make_set: Callable[..., Path], tmp_path: Path) -> Path:
    return make_set(tmp_path / "source", 30)


def hide(root: Path, count: int) -> Path:
    """Take the first images away; return where they are."""
    aside = root.parent / "aside"
    aside.mkdir()
    for path in sorted((root / "images").iterdir())[:count]:
        path.rename(aside / path.name)
    return aside


def give_back(aside: Path, root: Path) -> None:
    for path in aside.iterdir():
        path.rename(root / "images" / path.name)


def run(root: Path, out: Path, *, max_bad: float = 0.01, progress: Callable[[Progress], None] | None = None) -> None:
    pack("training-csv", root, out, options=OPTIONS, supervision=Supervision(max_bad=max_bad, progress=progress))


# ---- a source that was repaired ----


@pytest.mark.parametrize("max_bad", [0.01, 1.0])
def test_a_repaired_source_gives_the_set_of_an_undisturbed_run(source: Path, tmp_path: Path, max_bad: float) -> None:
    run(source, tmp_path / "undisturbed")
    aside, out = hide(source, 5), tmp_path / "set"
    with pytest.raises(SourceError, match="image-missing"):
        run(source, out)
    give_back(aside, source)
    run(source, out, max_bad=max_bad)
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert read_manifest(out).quarantined == {}


def test_of_a_source_that_is_half_repaired_the_other_half_is_skipped(source: Path, tmp_path: Path) -> None:
    aside, out = hide(source, 5), tmp_path / "set"
    with pytest.raises(SourceError, match="image-missing"):
        run(source, out)
    one = next(aside.iterdir())
    one.rename(source / "images" / one.name)
    run(source, tmp_path / "undisturbed", max_bad=1)
    run(source, out, max_bad=1)
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert read_manifest(out).quarantined == {"image-missing": 4}


def test_reports_that_come_later_are_learnt_from(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer is another one then, so that all shards are packed again."""
    root = tmp_path / "source"
    shutil.copytree(mixed_set, root)
    records = []
    for number, path in enumerate(sorted((root / "images").glob("good-*"))[:20]):
        (root / f"{number}.txt").write_text(f"Study {number}: word{chr(97 + number) * 3} is seen.")
        records.append(Record(path.stem, f"images/{path.name}", report_path=f"{number}.txt"))
    made_up = Source(lambda root: iter(records))
    monkeypatch.setattr("mrm_stream.sources.registry.find_source", lambda name: made_up)
    monkeypatch.setattr("mrm_stream.packing.plan.find_source", lambda name: made_up)

    run(root, tmp_path / "undisturbed")
    (root / "7.txt").rename(root / "aside")
    out = tmp_path / "set"
    with pytest.raises(SourceError, match="report-missing"):
        run(root, out)
    early = (out / "tokenizer.json").read_bytes()
    (root / "aside").rename(root / "7.txt")
    run(root, out)
    assert early != (out / "tokenizer.json").read_bytes()
    assert digests(out) == digests(tmp_path / "undisturbed")


def test_too_many_bad_records_are_listed_and_the_error_names_the_list(source: Path, tmp_path: Path) -> None:
    hide(source, 5)
    out = tmp_path / "set"
    with pytest.raises(SourceError) as caught:
        run(source, out)
    path = out / FOLDER / "rejected.jsonl"
    assert str(path) in str(caught.value)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"image-missing"}
    assert len(lines) == int(str(caught.value).partition(" of the first")[0].rpartition(" ")[2])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_kept_is_told_apart_from_what_was_packed(source: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "set", list[Progress]()

    def stop(done: Progress) -> None:
        if done.records >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, out, progress=stop)
    packed_before = sum(path.stat().st_size for path in out.glob("*.tar"))
    run(source, out, progress=seen.append)
    assert (seen[-1].records, seen[-1].kept) == (30, 20)
    plan = plan_set("training-csv", source, OPTIONS)
    rest = [record for shard in plan.shards[4:] for record in shard.records]
    assert seen[-1].bytes_in == sum((source / record.image_path).stat().st_size for record in rest)
    assert seen[-1].bytes_out == sum(path.stat().st_size for path in out.glob("*.tar")) - packed_before


# ---- what fails in passing ----


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT])
def test_what_fails_in_passing_leaves_no_record_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    run(source, tmp_path / "undisturbed")
    out, open_file = tmp_path / "set", os.open

    def failing(path: Any, flags: int, *rest: Any, **kinds: Any) -> int:
        if str(path).endswith("good-003.jpg"):
            raise OSError(code, os.strerror(code))
        return open_file(path, flags, *rest, **kinds)

    with monkeypatch.context() as patch:
        patch.setattr("mrm_stream.sources.reading.os.open", failing)
        with pytest.raises(StorageError, match=r"good-003\.jpg cannot be read") as caught:
            run(source, out, max_bad=1)
    assert "run the same command again" in str(caught.value)
    run(source, out)
    assert digests(out) == digests(tmp_path / "undisturbed")


def test_short_memory_leaves_no_record_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(worker, "encode_image", failing)
        with pytest.raises(MrmStreamError, match="memory was short when good-") as caught:
            run(source, tmp_path / "set", max_bad=1)
    assert "fewer workers" in str(caught.value)


# ---- text in the wrong column ----


def test_a_report_in_the_column_of_paths_is_not_repeated(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (source / "training.csv").open("a", newline="") as file:
        csv.writer(file).writerows([(SENTENCE, "images/good-000.jpg"), ("images/not there.jpg", "clear")])
    out = tmp_path / "set"
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError) as caught:
        run(source, out)
    listed = (out / FOLDER / "rejected.jsonl").read_text()
    run(source, out, max_bad=1)
    listed += (out / "quarantine.jsonl").read_text() + str(caught.value) + caplog.text
    assert "images/not there.jpg" in listed
    for word in ("lungs", "effusion"):
        assert word not in listed


def test_a_file_is_named_whatever_it_is_called(make_set: Callable[..., Path], tmp_path: Path) -> None:
    root = make_set(tmp_path / "source", 3)
    (root / "images" / "Röntgen bild 1").write_bytes(b"no image")
    with (root / "training.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("images/Röntgen bild 1", "clear"))
    run(root, tmp_path / "set", max_bad=1)
    (line,) = (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["image_path"] == "images/Röntgen bild 1"


# ---- the rest ----


def test_a_folder_that_others_can_see_stays_so_and_that_is_said(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "set"
    out.mkdir(mode=0o755)
    out.chmod(0o755)
    run(source, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert "others can see the names" in caplog.text
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}


@pytest.mark.parametrize("count", [1, 65, 127, 128])
def test_an_estimate_tries_records_of_the_whole_set(
    make_set: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    tried: list[Record] = []

    def noting(job: Job, records: Sequence[Record]) -> Iterator[Any]:
        tried.extend(records)
        return pack_records(job, records)

    monkeypatch.setattr(estimate_module, "pack_records", noting)
    plan = plan_set("training-csv", make_set(tmp_path / "source", count), PackOptions(vocabulary=300, short_side=48))
    assert estimate(plan).tried == min(64, count)
    places = [[record.key for record in plan.shards[0].records].index(record.key) for record in tried]
    gaps = {after - before for before, after in zip(places, [*places[1:], count], strict=True)}
    assert gaps <= {count // 64, -(-count // 64)}


def test_a_shard_that_is_empty_after_all_leaves_no_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    (out).mkdir()
    pack_set(source, tmp_path / "whole")
    plan = plan_set("training-csv", source, OPTIONS)
    # As after an interruption: the shard of an earlier tokenizer, and images that are gone since.
    seen: list[Progress] = []

    def stop(done: Progress) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, out, progress=stop)
    for record in plan.shards[0].records:
        (source / record.image_path).unlink()
    (out / FOLDER / f"{plan.shards[0].name}.json").unlink()
    run(source, out, max_bad=1)
    assert not (out / f"{plan.shards[0].name}.tar").exists()
    assert not (out / f"{plan.shards[0].name}.idx").exists()
    assert read_manifest(out).samples("train") == 25
