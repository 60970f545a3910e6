from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrm_stream.errors import ShardError
from mrm_stream.formats.manifest import Manifest, read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import ShardEntry, canonical_json, read_index
from mrm_stream.packing.pack import pack
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.packing.summary import UNKNOWN, SplitSummary, percentile, share_of, summarise
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.storage import retries
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.storage.remote import RemotePath


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than one shard, and all splits."""
    folder = tmp_path_factory.mktemp("summary")
    write_phantom_tree(folder / "tree", 90, size=80, workers=1, progress=None)
    options = PackOptions(short_side=72, vocabulary=300, samples_per_shard=32)
    pack("mimic", folder / "tree", folder / "shards", options=options)
    return folder / "shards"


def read_plainly(directory: Path) -> Iterator[tuple[str, str, dict[str, Any], dict[str, bytes]]]:
    """(split, key, metadata, members) of each sample, by Python's own tarfile."""
    for tar in sorted(directory.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(tar) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[extension] = file.read()
        for key, members in samples.items():
            yield tar.name.partition("-")[0], key, json.loads(members["json"]), members


def metadata(number: int, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "subject": f"p{number // 2}",
        "study": "study1",
        "view": "PA",
        "split": "train",
        "labels": {},
        "original_size": [80, 100],
        "size": [40, 50],
    }
    return plain | changes


def mask(inside: int, size: tuple[int, int] = (40, 50)) -> bytes:
    """A PNG whose first `inside` pixels are."""
    grey_HW = np.where(np.arange(size[0] * size[1]) < inside, np.uint8(255), np.uint8(0)).reshape(size)
    buffer = io.BytesIO()
    Image.fromarray(grey_HW).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(directory: AnyPath, splits: dict[str, list[dict[str, Any]]], masks: list[bytes] | None = None) -> None:
    """A set without reports, one shard a split; the masks go to the splits in their order."""
    entries: dict[str, tuple[ShardEntry, ...]] = {}
    left = iter(masks or [])
    for split, listed in splits.items():
        samples = [
            PackedSample(f"{split}-{row}", b"jpeg", canonical_json(known), mask=next(left, None))
            for row, known in enumerate(listed)
        ]
        entry = write_shard(directory / f"{split}-00000.tar", samples)
        assert entry is not None
        entries[split] = (entry,)
    options = PackOptions(short_side=90)
    write_manifest(directory, Manifest("siim", options, None, has_masks=masks is not None, splits=entries))


def test_all_counts_are_those_of_a_plain_count(phantom: Path) -> None:
    summary = summarise(phantom)
    listed = list(read_plainly(phantom))
    assert len(listed) == summary.whole.samples == 90
    assert list(summary.splits) == ["train", "validate", "test"]
    for split, part in [*summary.splits.items(), ("", summary.whole)]:
        of_split = [line[2:] for line in listed if split in ("", line[0])]
        known = [line[0] for line in of_split]
        assert part.samples == len(known)
        assert part.subjects == {sample["subject"] for sample in known}
        assert part.studies == {(sample["subject"], sample["study"]) for sample in known}
        assert part.views == Counter(sample["view"] for sample in known)
        assert part.tokens == Counter(len(members["tok"]) // 2 for _, members in of_split)
        findings = {finding for sample in known for finding in sample["labels"]}
        assert set(part.labels) == findings
        assert findings
        for finding in findings:
            assert part.labels[finding] == Counter(s["labels"][finding] for s in known if finding in s["labels"])
            assert part.not_mentioned(finding) == sum(finding not in sample["labels"] for sample in known)
        assert part.original_short == Counter(min(sample["original_size"]) for sample in known)
        assert part.original_long == Counter(max(sample["original_size"]) for sample in known)
        assert part.packed_short == Counter(min(sample["size"]) for sample in known)
        assert part.packed_long == Counter(max(sample["size"]) for sample in known)
        for extension in ("jpg", "tok", "json", "txt.zst"):
            assert part.member_bytes[extension] == sum(len(members[extension]) for _, members in of_split)
        tars = list(phantom.glob(f"{split}*.tar"))
        assert part.shards == len(tars)
        assert part.bytes == sum(tar.stat().st_size for tar in tars)
    assert summary.splits["train"].shards > 1
    assert summary.whole.masks == summary.whole.boxes.total() == summary.shared_subjects == 0


def test_the_seed_chooses_the_samples_that_are_shown(phantom: Path) -> None:
    members = {key: (split, members) for split, key, _, members in read_plainly(phantom)}
    one, again, other = (summarise(phantom, contact=9, seed=seed).shown for seed in (1, 1, 2))
    assert one == again
    assert {sample.key for sample in one} != {sample.key for sample in other}
    assert len({sample.key for sample in one}) == 9
    for sample in one:
        assert (sample.split, sample.jpeg) == (members[sample.key][0], members[sample.key][1]["jpg"])
        assert dict(sample.labels) == json.loads(members[sample.key][1]["json"])["labels"]
    assert {sample.key for sample in summarise(phantom, contact=1000).shown} == set(members)
    assert summarise(phantom, contact=0).shown == ()


def test_progress_counts_shards(phantom: Path) -> None:
    calls: list[tuple[int, int]] = []
    summarise(phantom, progress=lambda done, total: calls.append((done, total)))
    shards = len(list(phantom.glob("*.tar")))
    assert calls == [(done, shards) for done in range(1, shards + 1)]


def test_masks_boxes_lists_and_what_is_not_known(tmp_path: Path) -> None:
    boxes = [["Nodule", 1, 2.5, 3, 4], ["Nodule", 5, 6, 7, 8], ["Mass", 1, 1, 1, 1]]
    train = [metadata(0, boxes=boxes, lists=["train_10"]), metadata(1, view="", subject="", study=""), metadata(2)]
    test = [metadata(2, original_size=[120, 100])]
    write_set(tmp_path, {"train": train, "test": test}, [mask(0), mask(2000), mask(25), mask(300)])
    summary = summarise(tmp_path, contact=4)
    part = summary.splits["train"]
    assert (part.masks, part.empty_masks, part.mask_permille) == (3, 1, {1000: 1, 12: 1})
    assert summary.splits["test"].mask_permille == {150: 1}
    assert (part.boxes, part.boxed_samples) == ({"Nodule": 2, "Mass": 1}, 1)
    assert part.lists == {"train_10": 1}
    assert part.views == {"PA": 2, UNKNOWN: 1}
    assert part.subjects == {"p0", "p1"}
    assert part.studies == {("p0", "study1"), ("p1", "study1")}
    assert summary.shared_subjects == 1
    assert summary.whole.subjects == {"p0", "p1"}
    assert not part.tokens
    assert summary.shown[0].boxes[0] == ("Nodule", 1, 2.5, 3, 4)
    assert [sample.mask for sample in summary.shown] == [mask(0), mask(2000), mask(25), mask(300)]


def test_remote_storage_gives_the_same_summary_even_where_ranges_come_cut_short(
    phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = parse_path("memory://summary-test/set")
    for file in phantom.iterdir():
        if file.is_file():
            (remote / file.name).write_bytes(file.read_bytes())
    assert isinstance(remote, RemotePath)
    fetch, short = remote.fs.cat_ranges, [True]

    def cut(*arguments: Any, **settings: Any) -> list[bytes]:
        contents: list[bytes] = fetch(*arguments, **settings)
        short[0] = not short[0]
        return contents if short[0] else [*contents[:-1], contents[-1][:-1]]

    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(remote.fs, "cat_ranges", cut)
    assert summarise(remote) == summarise(phantom)


def test_of_a_local_shard_only_what_is_counted_is_read(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return original(descriptor, size, offset)

    monkeypatch.setattr("mrm_stream.packing.summary.os.pread", pread)
    summary = summarise(phantom, contact=0)
    assert sum(read) == summary.whole.member_bytes["json"]


BAD_METADATA = [
    b"",
    b"no JSON",
    b"[]",
    canonical_json(metadata(0) | {"labels": {"Edema": 2}}),
    canonical_json(metadata(0) | {"labels": {"Edema": True}}),
    canonical_json(metadata(0) | {"size": [0, 40]}),
    canonical_json(metadata(0) | {"size": [40]}),
    canonical_json(metadata(0) | {"subject": 7}),
    canonical_json(metadata(0) | {"boxes": [["Edema", 1, 2, 3]]}),
    canonical_json(metadata(0) | {"boxes": [["Edema", 1, 2, 3, "The lungs are clear."]]}),
    json.dumps(metadata(0) | {"boxes": [["Edema", 1, 2, 3, float("nan")]]}).encode(),
    canonical_json({key: value for key, value in metadata(0).items() if key != "labels"}),
]


@pytest.mark.parametrize("content", BAD_METADATA)
def test_damaged_metadata_is_refused_and_not_repeated(content: bytes, tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "train-00000.tar", [PackedSample("the-key", b"jpeg", content)])
    assert entry is not None
    write_manifest(tmp_path, Manifest("siim", PackOptions(), None, splits={"train": (entry,)}))
    with pytest.raises(ShardError, match=r"train-00000\.tar: the-key: (the metadata is not|json is empty)") as refusal:
        summarise(tmp_path)
    assert "lungs" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("content", [b"no PNG", mask(9, (40, 40))])
def test_a_damaged_mask_is_refused(content: bytes, tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [metadata(0)]}, [content])
    with pytest.raises(ShardError, match=r"train-0: the mask has another size|train-0: the PNG is damaged"):
        summarise(tmp_path)


def test_an_index_that_is_not_the_manifest_s_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [metadata(0), metadata(1)]})
    index = tmp_path / "train-00000.idx"
    text = index.read_text()
    assert "train-1.json" in text
    index.write_text(text.replace("train-1.", "train-7."))
    assert len(read_index(index, read_manifest(tmp_path).members)) == 2
    with pytest.raises(ShardError, match="the index is not the manifest's"):
        summarise(tmp_path)


def test_names_that_steer_a_terminal_are_made_plain(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [metadata(0, view="\x1b[2J" + "A" * 200, labels={"a\nb": 1})]})
    summary = summarise(tmp_path)
    assert list(summary.whole.labels) == ["a?b"]
    assert list(summary.whole.views) == ["?[2J" + "A" * 76]


def test_percentiles_are_those_of_the_listed_numbers() -> None:
    counts = Counter(np.random.default_rng(0).integers(5, 60, 500).tolist())
    numbers = sorted(counts.elements())
    for share in (0, 0.05, 0.25, 0.5, 0.95, 1):
        assert percentile(counts, share) == np.quantile(numbers, share, method="inverted_cdf")
    assert share_of(counts, lambda number: number > 40) == np.mean(np.array(numbers) > 40)
    assert share_of({}, lambda number: True) == 0


def test_no_split_at_all_is_an_empty_summary() -> None:
    assert SplitSummary().masks == SplitSummary().not_mentioned("Edema") == 0
