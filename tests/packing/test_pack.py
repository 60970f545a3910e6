from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from mrm_stream.errors import ConfigError, MrmStreamError, RecordError, ShardError, SourceError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.folder import FOLDER
from mrm_stream.formats.manifest import Manifest, read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import read_index, verify_shard
from mrm_stream.packing import worker
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.plan import plan_shards
from mrm_stream.packing.shard_writer import PackedSample
from mrm_stream.packing.workers import Workers
from mrm_stream.records import Record, Sample
from mrm_stream.text.tokenizer import encode_report, load_tokenizer

OPTIONS = PackOptions(samples_per_shard=5, short_side=48, vocabulary=200)


def pack_set(
    root: Path, out: Path, *, workers: int = 1, options: PackOptions = OPTIONS, tokenizer: Path | None = None
) -> Manifest:
    return pack(
        "training-csv",
        root,
        out,
        options=options,
        tokenizer=tokenizer,
        supervision=Supervision(max_bad=1),
        workers=Workers(workers),
    )


def digests(directory: Path) -> dict[str, str]:
    """Every file below the directory, hidden ones too, by its SHA-256."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


def test_the_set_holds_every_good_record_once(mixed_set: Path, packed: Path) -> None:
    manifest = read_manifest(packed)
    tokenizer = load_tokenizer(packed / "tokenizer.json")
    codec = ReportCodec((packed / "reports.zdict").read_bytes())
    keys = []
    for entry in manifest.splits["train"]:
        index = verify_shard(packed, entry)
        content = (packed / entry.file).read_bytes()
        for number in range(len(index)):
            keys.append(index.key(number))
            spans = zip(index.offsets[number], index.sizes[number], strict=True)
            jpeg, tokens, metadata, frame = (content[offset : offset + size] for offset, size in spans)
            report = codec.decompress(frame)
            assert report.startswith(f"Made-up study {int(keys[-1].removeprefix('good-'))}:")
            np.testing.assert_array_equal(np.frombuffer(tokens, "<u2"), encode_report(tokenizer, report))
            height, width, *_ = simplejpeg.decode_jpeg_header((mixed_set / f"images/{keys[-1]}.jpg").read_bytes())
            described = json.loads(metadata)
            assert metadata == json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
            assert described["original_size"] == [height, width]
            assert described["size"] == list(simplejpeg.decode_jpeg_header(jpeg)[:2])
            assert min(described["size"]) == 48
            assert described["split"] == "train"
    assert sorted(keys) == [f"good-{number:03d}" for number in range(40)]
    assert keys != sorted(keys)
    assert manifest.samples("train") == 40
    assert manifest.reports is not None
    assert manifest.reports.vocabulary == tokenizer.get_vocab_size()


def test_bad_records_are_quarantined_with_their_reasons(packed: Path) -> None:
    lines = [json.loads(line) for line in (packed / "quarantine.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        "missing-041": "image-missing",
        "silent-042": "report-empty",
        "truncated-040": "image-truncated",
    }
    assert [line["key"] for line in lines] == sorted(line["key"] for line in lines)
    assert all(set(line) == {"key", "image_path", "reason", "detail"} for line in lines)
    assert dict(read_manifest(packed).quarantined) == dict.fromkeys(
        ("image-missing", "report-empty", "image-truncated"), 1
    )


def test_nothing_but_the_set_is_left_and_only_its_owner_may_read_it(packed: Path) -> None:
    shards = {f"train-{number:05d}.{kind}" for number in range(9) for kind in ("tar", "idx")}
    fixed = {"manifest.json", "tokenizer.json", "reports.zdict", "quarantine.jsonl"}
    assert {path.name for path in packed.iterdir()} == shards | fixed
    assert stat.S_IMODE(packed.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in packed.iterdir()} == {0o600}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    mixed_set: Path, packed: Path, tmp_path: Path, workers: int
) -> None:
    pack_set(mixed_set, tmp_path / "set", workers=workers)
    assert digests(tmp_path / "set") == digests(packed)


def test_the_order_of_the_listing_does_not_matter(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    shutil.copytree(mixed_set, root)
    header, *rows = (root / "training.csv").read_text().splitlines()
    random.Random(0).shuffle(rows)
    (root / "training.csv").write_text("\n".join([header, *rows]))
    pack_set(root, tmp_path / "set")
    assert digests(tmp_path / "set") == digests(packed)


def test_shards_are_dealt_by_keys_splits_and_seed_alone() -> None:
    records = [Record(f"k{n}", f"{n}.jpg", split=("train", "train", "test")[n % 3]) for n in range(31)]
    plans = plan_shards(records, PackOptions(samples_per_shard=4))
    assert plan_shards(records[::-1], PackOptions(samples_per_shard=4)) == plans
    assert plan_shards(records, PackOptions(samples_per_shard=4, seed=1)) != plans
    assert sorted(record.key for plan in plans for record in plan.records) == sorted(record.key for record in records)
    lengths = {plan.name: len(plan.records) for plan in plans}
    assert lengths == {**{f"train-{n:05d}": 4 if n < 3 else 3 for n in range(6)}, **_test_lengths()}
    assert all(record.split == plan.name.partition("-")[0] for plan in plans for record in plan.records)


def _test_lengths() -> dict[str, int]:
    return {"test-00000": 4, "test-00001": 3, "test-00002": 3}


def test_directories_in_use_are_refused_and_left_alone(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    before = digests(packed)
    with pytest.raises(ShardError, match="already holds shards"):
        pack_set(mixed_set, packed)
    assert digests(packed) == before
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ShardError, match=r"holds other files, such as 'thesis.tex'"):
        pack_set(mixed_set, tmp_path)
    assert digests(tmp_path).keys() == {"thesis.tex"}
    with pytest.raises(ShardError, match="not a directory"):
        pack_set(mixed_set, tmp_path / "thesis.tex")


def test_a_second_job_on_the_same_directory_is_refused(mixed_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def intrude(done: Progress) -> None:
        with pytest.raises(ShardError, match="another process"):
            pack_set(mixed_set, out)

    pack("training-csv", mixed_set, out, options=OPTIONS, supervision=Supervision(max_bad=1, progress=intrude))


def test_if_no_record_can_be_used_there_is_no_set(make_set: Callable[..., Path], tmp_path: Path) -> None:
    root = make_set(tmp_path / "source", 0, truncated=3, silent=1)
    out = tmp_path / "set"
    with pytest.raises(ShardError, match="none of 4 records can be used, 3 of them for 'image-truncated'"):
        pack_set(root, out)
    assert not out.exists()


def test_without_reports_there_is_no_tokenizer(make_set: Callable[..., Path], tmp_path: Path) -> None:
    root = make_set(tmp_path / "source", 0, silent=3)
    out = tmp_path / "set"
    with pytest.raises(SourceError, match="most often report-empty"):
        pack_set(root, out)
    assert not out.exists()


def test_a_vocabulary_that_is_too_small_leaves_the_directory_free(mixed_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(SourceError, match="Ask for a larger vocabulary"):
        pack_set(mixed_set, out, options=dataclasses.replace(OPTIONS, vocabulary=10))
    assert not out.exists()
    pack_set(mixed_set, out)


def test_a_given_tokenizer_is_used(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, seed=3)
    manifest = pack_set(mixed_set, tmp_path / "set", options=options, tokenizer=packed / "tokenizer.json")
    trained = read_manifest(packed).reports
    assert manifest.reports is not None
    assert trained is not None
    assert manifest.reports.tokenizer_sha256 == trained.tokenizer_sha256
    assert (manifest.reports.is_trained, trained.is_trained) == (False, True)
    assert (tmp_path / "set" / "tokenizer.json").read_bytes() == (packed / "tokenizer.json").read_bytes()


def test_a_tokenizer_that_is_absent_is_named(mixed_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"absent\.json"):
        pack_set(mixed_set, tmp_path / "set", tokenizer=tmp_path / "absent.json")
    assert not (tmp_path / "set").exists()


def test_progress_counts_records_and_bytes(mixed_set: Path, packed: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    pack(
        "training-csv",
        mixed_set,
        tmp_path / "set",
        options=OPTIONS,
        supervision=Supervision(max_bad=1, progress=seen.append),
        workers=Workers(2),
    )
    assert [step.records for step in seen] == sorted(step.records for step in seen)
    last = seen[-1]
    assert (last.records, last.total, last.bad) == (43, 43, 3)
    assert last.bytes_out == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert last.bytes_in == sum(path.stat().st_size for path in (mixed_set / "images").glob("good-*"))


def test_splits_stay_apart_and_the_tokenizer_sees_the_training_alone(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"train": "effusion", "validate": "cardiomegaly", "test": "pneumothorax"}
    images = sorted((mixed_set / "images").glob("good-*"))
    records = [
        Record(path.stem, f"images/{path.name}", report_text=f"there is {words[split]}", split=split)
        for path, split in zip(images, ["train", "validate", "test", "test"] * 3, strict=False)
    ]
    monkeypatch.setattr("mrm_stream.packing.plan.list_records", lambda name, root, lists: records)
    manifest = pack_set(mixed_set, tmp_path / "set")
    assert {split: manifest.samples(split) for split in words} == {"train": 3, "validate": 3, "test": 6}
    for split, entries in manifest.splits.items():
        for entry in entries:
            index = read_index(tmp_path / "set" / entry.file)
            keys = {index.key(number) for number in range(len(index))}
            assert keys <= {record.key for record in records if record.split == split}
    vocabulary = load_tokenizer(tmp_path / "set" / "tokenizer.json").get_vocab()
    assert {word: word in vocabulary for word in words.values()} == {
        "effusion": True,
        "cardiomegaly": False,
        "pneumothorax": False,
    }


def test_frontal_views_alone(mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = ["PA", "AP", "LATERAL", "", "ap supine", "Frontal", "LL", "PAINT"]
    images = sorted((mixed_set / "images").glob("good-*"))
    records = [
        Record(path.stem, f"images/{path.name}", report_text="no acute process", view=view, labels={"Edema": -1})
        for path, view in zip(images, views, strict=False)
    ]
    monkeypatch.setattr("mrm_stream.packing.plan.list_records", lambda name, root, lists: records)
    manifest = pack_set(mixed_set, tmp_path / "set", options=dataclasses.replace(OPTIONS, views="frontal"))
    index = read_index(tmp_path / "set" / manifest.splits["train"][0].file)
    assert {index.key(number) for number in range(len(index))} == {records[place].key for place in (0, 1, 4, 5)}
    assert manifest.options.views == "frontal"


def test_what_a_sample_holds_never_shows_in_its_repr() -> None:
    content = b"Made-up!"
    packed = PackedSample("a", content, content, content, content, content)
    assert repr(packed) == "PackedSample(key='a')"
    sample = Sample(0, "a", content, np.frombuffer(content, "<u2"), mask=content)
    assert repr(sample) == "Sample(index=0, key='a', labels=None)"


def test_reports_reach_no_log_no_note_and_no_error(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object, text: str) -> None:
        raise ValueError(text)

    out = tmp_path / "set"
    with caplog.at_level(logging.DEBUG), monkeypatch.context() as patch:
        patch.setattr(worker, "encode_report", fail)
        with pytest.raises(RuntimeError, match=r"ValueError at test_pack.py") as caught:
            pack_set(mixed_set, out)
    assert "Made-up" not in f"{caught.getrepr(chain=True, showlocals=False)} {caplog.text}"
    assert caught.value.__suppress_context__
    assert all(b"Made-up" not in path.read_bytes() for path in (out / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("clause", "code"),
    [
        ("the image is missing", "image-missing"),
        ("the image is too large", "image-too-large"),
        ("the report is not UTF-8", "report-not-utf-8"),
        ("the report holds NUL characters", "report-holds-nul-characters"),
        ("the report has more than 65,535 tokens", "report-more-than-65-535-tokens"),
    ],
)
def test_reasons_are_codes(clause: str, code: str) -> None:
    assert worker.reason_of(RecordError(clause)) == code


@pytest.mark.parametrize("setting", [{"short_side": 0}, {"jpeg_quality": 101}, {"samples_per_shard": 0}, {"seed": -1}])
def test_settings_out_of_range_are_named(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        PackOptions(**setting)  # type: ignore[arg-type]


def test_workers_must_be_positive(mixed_set: Path, tmp_path: Path) -> None:
    with pytest.raises(MrmStreamError, match="workers"):
        pack_set(mixed_set, tmp_path / "set", workers=0)
