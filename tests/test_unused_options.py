"""An option that would change nothing in a data set is refused before anything is written, in every source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.errors import MrmStreamError, ShardError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.packing.repair import repair
from mrm_stream.records import Record
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.sources.registry import SOURCES, find_source
from mrm_stream.text.tokenizer import train_tokenizer

WITH_REPORTS = {"mimic", "mimic-dicom", "chexpert-plus", "openi", "padchest", "training-csv", "covid"}
OF_REPORTS = {"--sections": "findings", "--tokenizer": "tokenizer.json", "--vocabulary": "500"}
BEGUN = "the job would begin now"

Shard = Callable[..., str]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shard:
    """(source, records, words) -> what `shard` says of them; a job that would begin ends there."""
    (tmp_path / "root").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(["made-up reports of one word or more"], 100).to_str())

    def begin(*_: Any) -> None:
        raise MrmStreamError(BEGUN)

    def run(name: str, records: list[Record], *words: str) -> str:
        for record in records:
            (tmp_path / "root" / record.image_path).write_bytes(b"image")
        true = find_source(name)
        by_files = None if true.list_by_files is None else (lambda root, lists: iter(records))
        source = replace(true, list_records=lambda root: iter(records), list_by_files=by_files)
        with monkeypatch.context() as patch:
            for module in ("sources.registry", "packing.plan"):
                patch.setattr(f"mrm_stream.{module}.find_source", lambda name: source)
            patch.setattr("mrm_stream.packing.pack.open_journal", begin)
            patch.setattr("mrm_stream.commands.shard.tell_estimate", begin)
            patch.setattr("mrm_stream.packing.estimate.estimate", begin)
            patch.chdir(tmp_path)
            command = ["shard", "--src", name, "--root", "root", "--out", "out", *words]
            result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        assert not (tmp_path / "out").exists()
        return result.output

    return run


def records_of(image: str = "a.jpg", label: int = 1) -> list[Record]:
    return [
        Record("a", image, report_text="FINDINGS: Clear.", view="PA", labels={"Edema": label}, mask_runs=""),
        Record("b", "b.png", report_text="FINDINGS: Clear.", view="LATERAL", labels={"Edema": 0}, mask_runs=""),
    ]


@pytest.mark.parametrize("option", OF_REPORTS)
@pytest.mark.parametrize("name", SOURCES)
def test_options_of_reports_are_refused_where_there_are_none(shard: Shard, name: str, option: str) -> None:
    for more in ([], ["--dry-run"]):
        said = shard(name, records_of(), option, OF_REPORTS[option], *more)
        if name in WITH_REPORTS:
            assert BEGUN in said
        else:
            assert f"{option}: would change nothing: a set of {name} has no reports" in said
    if find_source(name).list_by_files is not None:
        said = shard(name, records_of(), option, OF_REPORTS[option], "--lists", "lists")
        assert f"{option}: would change nothing: a set packed by list files has no reports" in said


@pytest.mark.parametrize("name", SOURCES)
def test_lists_are_refused_where_there_are_none(shard: Shard, name: str) -> None:
    said = shard(name, records_of(), "--lists", "lists")
    assert (BEGUN in said) == (find_source(name).list_by_files is not None)
    assert BEGUN in said or f"no list files for {name}" in said


@pytest.mark.parametrize("name", SOURCES)
def test_a_policy_for_uncertain_labels_is_refused_where_there_are_none(shard: Shard, name: str) -> None:
    for policy in ("ignore", "zero", "one", "mixed"):
        assert BEGUN in shard(name, records_of(label=-1), "--uncertain", policy)
        said = shard(name, records_of(), "--uncertain", policy)
        assert "--uncertain: would change nothing: no label of this set is uncertain" in said
    assert BEGUN in shard(name, records_of(), "--uncertain", "keep")


@pytest.mark.parametrize("name", SOURCES)
def test_a_rendering_is_refused_where_there_is_no_dicom(shard: Shard, name: str) -> None:
    for image in ("a.dcm", "a.dicom", "a.DCM", "a"):
        assert BEGUN in shard(name, records_of(image), "--rendering", "equalized")
    for image in ("a.jpg", "a.JPEG", "a.png"):
        said = shard(name, records_of(image), "--rendering", "equalized")
        assert "--rendering: would change nothing: no image of this set is a DICOM" in said
    assert BEGUN in shard(name, records_of(), "--rendering", "window")


@pytest.mark.parametrize("name", SOURCES)
def test_bits_are_refused_where_there_is_no_png(shard: Shard, name: str) -> None:
    first, second = records_of()
    for image in ("b.png", "b.PNG", "b"):
        assert BEGUN in shard(name, [first, replace(second, image_path=image)], "--bits", "12")
    for image in ("b.jpg", "b.dcm", "b.dicom"):
        said = shard(name, [first, replace(second, image_path=image)], "--bits", "12")
        assert "--bits: would change nothing: no image of this set is a PNG" in said


@pytest.mark.parametrize("name", SOURCES)
def test_frontal_views_are_chosen_in_every_source_or_there_are_none(shard: Shard, name: str) -> None:
    assert BEGUN in shard(name, records_of(), "--views", "frontal")
    said = shard(name, [replace(record, view="") for record in records_of()], "--views", "frontal")
    assert "no record is a frontal view" in said


def test_repair_refuses_lists_of_a_set_that_was_packed_without(tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "tree", 6, size=64, workers=1, progress=None)
    pack("mimic", tmp_path / "tree", tmp_path / "set", options=PackOptions(short_side=64, vocabulary=200))
    with pytest.raises(ShardError, match="was not packed by list files"):
        repair(tmp_path / "set", tmp_path / "tree", lists=tmp_path)
