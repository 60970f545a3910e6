"""What a set's tokenizer and dictionary are learnt from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mrm_stream.formats.options import PackOptions
from mrm_stream.packing import reports_files
from mrm_stream.packing.plan import SetPlan, ShardPlan
from mrm_stream.packing.reports_files import learn_files
from mrm_stream.records import Record
from mrm_stream.sources import reading
from mrm_stream.storage.paths import AnyPath, parse_path


def plan_of(root: AnyPath) -> SetPlan:
    """Three images of two studies, and one of the test split."""
    records = (
        Record("a", "a.jpg", report_path="1.txt", study="1"),
        Record("b", "b.jpg", report_path="1.txt", study="1"),
        Record("c", "c.jpg", report_path="2.txt", study="2"),
        Record("d", "d.jpg", report_path="3.txt", study="3", split="test"),
    )
    return SetPlan(
        "made-up", root, PackOptions(vocabulary=200), False, True, False, (ShardPlan("train-00000", records),)
    )


@pytest.mark.parametrize("remote", [False, True])
def test_a_report_that_images_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    root: AnyPath = parse_path("memory://reports-files") if remote else tmp_path
    for name, text in (("1.txt", "clear lungs clear"), ("2.txt", "effusion effusion"), ("3.txt", "nodule nodule")):
        (root / name).write_bytes(text.encode())
    read: Counter[str] = Counter()

    def counted(root: AnyPath, record: Record) -> str:
        read[record.report_path or ""] += 1
        return original(root, record)

    original = reading.read_report
    monkeypatch.setattr(reports_files, "read_report", counted)
    vocabulary = learn_files(plan_of(root), None).tokenizer.get_vocab()
    assert read == {"1.txt": 1, "2.txt": 1}
    assert "effusion" in vocabulary
    assert "nodule" not in vocabulary


def test_each_report_of_the_listing_is_learnt_from_with_or_without_a_study() -> None:
    texts = ("clear lungs clear", "effusion effusion", "nodule nodule", "opacity opacity")
    records = tuple(
        Record(f"image-{number}", "a.jpg", report_text=text, study=study)
        for number, (text, study) in enumerate(zip(texts, ("", "", "1", "1"), strict=True))
    )
    plan = replace(plan_of(Path("nowhere")), shards=(ShardPlan("train-00000", records),))
    learnt = learn_files(plan, None)
    assert {"clear", "effusion", "nodule", "opacity"} <= learnt.tokenizer.get_vocab().keys()
    assert all(text.encode() in learnt.dictionary for text in texts)


def test_a_long_reading_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).write_text("clear lungs clear")
    monkeypatch.setattr(reports_files, "SECONDS_BETWEEN_LINES", -1)
    with caplog.at_level("INFO"):
        learn_files(plan_of(tmp_path), None)
    assert "reading reports: 2/2" in caplog.text
