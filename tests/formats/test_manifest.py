from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import ShardError
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.manifest import Manifest, MasksEntry, ReportsEntry, read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import ShardEntry, canonical_json


def make_manifest() -> Manifest:
    shards = tuple(ShardEntry(f"train-{n:05d}.tar", 5 + n, 10240, f"{n:064x}", "a" * 64) for n in range(2))
    return Manifest(
        source="mimic",
        options=PackOptions(seed=7, samples_per_shard=6),
        reports=ReportsEntry("b" * 64, "c" * 64, vocabulary=400, is_trained=True),
        quarantined={"image-empty": 2, "report-missing": 1},
        splits={"train": shards, "test": (ShardEntry("test-00000.tar", 1, 10240, "d" * 64, "e" * 64),)},
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_manifest(tmp_path, manifest)
    again = read_manifest(tmp_path)
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint
    assert (again.samples("train"), again.samples("test"), again.samples("validate")) == (11, 1, 0)
    assert stat.S_IMODE((tmp_path / MANIFEST).stat().st_mode) == 0o600


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("sections", [None, (), ("findings", "impression")])
def test_where_the_tokenizer_came_from_is_read(
    tmp_path: Path, is_trained: bool, sections: tuple[str, ...] | None
) -> None:
    reports = ReportsEntry("b" * 64, "c" * 64, 400, is_trained, 7, is_retrained=is_trained, trained_sections=sections)
    manifest = dataclasses.replace(make_manifest(), reports=reports)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert (content["format"], content["version"]) == ("mrm-stream-shards", 2)
    assert content["reports"] == {
        "tokenizer": {
            "file": "tokenizer.json",
            "sha256": "b" * 64,
            "vocabulary": 400,
            "made": "trained",
            "sections": None,
            "length": None,
        },
        "dictionary": {"file": "reports.zdict", "sha256": "c" * 64},
    }
    assert content["members"] == ["jpg", "tok", "json", "txt.zst"]
    assert content["options"]["samples_per_shard"] == 6
    assert content["quarantined"]["by_reason"] == {"image-empty": 2, "report-missing": 1}
    assert content["quarantined"]["total"] == 3
    assert content["splits"]["test"] == {
        "samples": 1,
        "shards": [
            {
                "file": "test-00000.tar",
                "samples": 1,
                "bytes": 10240,
                "sha256": "d" * 64,
                "index_sha256": "e" * 64,
            }
        ],
    }


def test_the_fingerprint_tells_sets_apart() -> None:
    manifest = make_manifest()
    others = [
        dataclasses.replace(manifest, options=PackOptions(seed=8, samples_per_shard=6)),
        dataclasses.replace(manifest, reports=ReportsEntry("f" * 64, "c" * 64, vocabulary=400, is_trained=True)),
        dataclasses.replace(manifest, splits={"train": manifest.splits["train"]}),
    ]
    assert len({other.fingerprint for other in [manifest, *others]}) == 4


def test_without_a_manifest_there_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no packed data set"):
        read_manifest(tmp_path)


def _in_first_shard(name: str, value: object) -> Callable[[Any], None]:
    return lambda content: content["splits"]["train"]["shards"][0].update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.update(version=1),
        lambda content: content.update(format="another"),
        lambda content: content.pop("splits"),
        lambda content: content["options"].update(seed=-1),
        lambda content: content["options"].update(seed=True),
        lambda content: content["options"].update(views="some"),
        lambda content: content["options"].update(sections=["all"]),
        lambda content: content["options"].update(unknown=1),
        lambda content: content["options"].update(bits=17),
        lambda content: content["options"].update(blank="drop"),
        lambda content: content.pop("assumed_bits"),
        lambda content: content.update(assumed_bits={"17": 1}),
        lambda content: content.update(assumed_bits={"12": -1}),
        lambda content: content.update(assumed_bits={"012": 1}),
        lambda content: content.update(padded=-1),
        lambda content: content.update(padded=0),
        lambda content: content.update(members=["jpg", "pkl"]),
        lambda content: content["masks"].update(mean_area_change="0.01"),
        lambda content: content["masks"].update(worst_area_change=1),
        lambda content: content["masks"].update(count=-1),
        lambda content: content["masks"].update(kept_by_rule=1.5),
        lambda content: content["masks"].pop("kept_by_rule"),
        lambda content: content.update(splits_from="elsewhere"),
        lambda content: content.update(splits=[]),
        lambda content: content["reports"]["tokenizer"].update(file="../../tokenizer.json"),
        lambda content: content["reports"]["tokenizer"].update(made="trained elsewhere"),
        lambda content: content["reports"]["tokenizer"].update(sections=["all"]),
        lambda content: content["reports"]["tokenizer"].update(sections="findings"),
        lambda content: content["reports"]["tokenizer"].pop("sections"),
        lambda content: content["splits"].update(other={"samples": 0, "shards": []}),
        lambda content: content["splits"]["train"].update(samples=12),
        lambda content: content["splits"]["train"]["shards"].append(content["splits"]["train"]["shards"][0]),
        lambda content: content["splits"]["train"]["shards"].append(content["splits"]["test"]["shards"][0]),
        lambda content: content["quarantined"].update(total=0),
        _in_first_shard("file", "../train-00000.tar"),
        _in_first_shard("file", "/train-00000.tar"),
        _in_first_shard("file", "train-00000.tar\n"),
        _in_first_shard("file", 5),
        _in_first_shard("samples", 0),
        _in_first_shard("samples", 5.0),
        _in_first_shard("bytes", 2**70),
        _in_first_shard("sha256", "A" * 64),
        _in_first_shard("index_sha256", None),
    ],
)
def test_damaged_and_hostile_manifests_are_refused(tmp_path: Path, spoil: Callable[[Any], object]) -> None:
    write_manifest(tmp_path, dataclasses.replace(make_manifest(), has_masks=True, masks=MasksEntry(12, 0.01, -0.2, 1)))
    read_manifest(tmp_path)
    path = tmp_path / MANIFEST
    content = json.loads(path.read_text())
    spoil(content)
    # With a checksum of its own, as someone who means harm would write it.
    content.pop("sha256")
    content["sha256"] = hashlib.sha256(canonical_json(content)).hexdigest()
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    with pytest.raises(ShardError, match=MANIFEST):
        read_manifest(tmp_path)


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / MANIFEST
    content, draw = path.read_bytes(), random.Random(0)
    for attempt in range(600):
        damaged = bytearray(content)
        if attempt % 6:
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(content)) :]
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match="damaged"):
            read_manifest(tmp_path)


def test_a_manifest_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"source": "mimic"', b'"source": "nih"'))
    with pytest.raises(ShardError, match="checksum"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"format": "mrm-stream-shards"}'])
def test_text_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ShardError, match="damaged"):
        read_manifest(tmp_path)
