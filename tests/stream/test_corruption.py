"""Damaged shards through the loader: every one is found, nothing of one is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import simplejpeg
import torch

from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.errors import ShardError, TrainingError
from mrm_stream.formats.manifest import read_manifest, write_manifest
from mrm_stream.formats.shard import index_path, read_index
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.shard_set import DamagedShardError, ShardSet
from tests.packing.damage import KINDS, damage_one
from tests.stream.phantoms import batch_maker, load, packed_phantoms

SHARD_KINDS = [kind for kind in KINDS if any(word in kind for word in ("tar", "index")) and "stray" not in kind]
"""Bits of each part of a tar, bits of an index, both cut, longer, missing, renamed or exchanged."""
WAYS = ("fresh", "after opening", "source of a cache", "in the cache")
Content = dict[int, str]


def digests(draws: Sequence[Draw]) -> list[tuple[int, str]]:
    """A transform that tells what would be trained on."""
    members = [
        (draw.sample.index, bytes(draw.sample.jpeg) + np.asarray(draw.sample.token_ids).tobytes()) for draw in draws
    ]
    return [(index, hashlib.sha256(content).hexdigest()) for index, content in members]


def epoch(shards: ShardSet) -> tuple[list[tuple[int, str]], ShardError | None]:
    """What an epoch hands out before its end, or before an error."""
    seen: list[tuple[int, str]] = []
    with load(shards, digests, batch_size=8, prefetch=1) as loader:
        try:
            for _ in range(-(-len(shards) // 8)):
                seen += next(loader)
        except ShardError as error:
            return seen, error
        assert loader.bad_samples == []
    return seen, None


@pytest.fixture
def training_set(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy that may be damaged, of the training split alone."""
    packed, copy = packed_phantoms(tmp_path_factory), tmp_path / "set"
    copy.mkdir()
    for path in packed.iterdir():
        if not path.name.startswith(("validate", "test")):
            shutil.copy(path, copy)
    return copy


def restore(folder: Path, pristine: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        if path.name not in pristine and path.suffix in (".tar", ".idx"):
            path.unlink()
    for name, content in pristine.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def campaign(training_set: Path, cache: Path, count: int) -> tuple[Counter[str], list[str]]:
    """Damage the set so many times, each time in the next way; return what was found, and what was not."""
    draw, found, missed = random.Random(1), Counter[str](), []
    pristine = {path.name: path.read_bytes() for path in training_set.iterdir()}
    whole = dict(epoch(ShardSet.open(training_set, "train"))[0])
    assert len(whole) == len(ShardSet.open(training_set, "train"))
    for number in range(count):
        way, kind = WAYS[number % len(WAYS)], SHARD_KINDS[number // len(WAYS) % len(SHARD_KINDS)]
        fault = damaged_epoch(training_set, cache, way, kind, draw, whole)
        if fault is None:
            found[way] += 1
        else:
            missed.append(f"{kind}, {way}: {fault}")
        restore(training_set, pristine)
        shutil.rmtree(cache, ignore_errors=True)
    return found, missed


def damaged_epoch(root: Path, cache: Path, way: str, kind: str, draw: random.Random, whole: Content) -> str | None:
    """Damage a shard and read an epoch; return what is wrong with how it went, or None."""
    sizes = [entry.samples for entry in read_manifest(root).splits["train"]]
    folder = cache / read_manifest(root).fingerprint[:16]
    through = (cache, 1 << 30) if "cache" in way else None
    shards = ShardSet.open(root, "train", through) if way != "fresh" else None
    if way == "in the cache":
        assert shards is not None
        epoch(shards)
        shards.close()
        shards = None
    blamed = damage_one(folder if way == "in the cache" else root, kind, draw)
    try:
        shards = shards or ShardSet.open(root, "train", through)
    except ShardError as refusal:
        return None if Path(str(refusal.where)).stem in stems(blamed) else f"{refusal} blames another file"
    seen, error = epoch(shards)
    counts = shards.cache_counts()
    shards.close()
    if any(whole[index] != digest for index, digest in seen):
        return "it was trained on"
    if way == "in the cache":
        if error is not None or {index for index, _ in seen} != whole.keys():
            return f"not fetched again: {error}"
        return None if counts.fetched >= 1 else "not noticed"
    if not isinstance(error, DamagedShardError):
        return f"not found: {error}"
    if Path(str(error.where)).stem not in stems(blamed) or "mrm-stream repair" not in str(error.remedy):
        return f"{error} does not help"
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    if any(f"train-{shard_of[index]:05d}" == Path(str(error.where)).stem for index, _ in seen):
        return "samples of the damaged shard were trained on"
    return None


def stems(names: set[str]) -> set[str]:
    return {Path(name).stem for name in names}


def test_every_damaged_shard_is_found_and_none_trained_on(training_set: Path, tmp_path: Path) -> None:
    found, missed = campaign(training_set, tmp_path / "cache", len(WAYS) * len(SHARD_KINDS))
    assert missed == []
    assert set(found.values()) == {len(SHARD_KINDS)}


@pytest.mark.campaign
def test_two_thousand_damaged_shards_are_found(training_set: Path, tmp_path: Path) -> None:
    """A thousand of a set itself, a thousand of one that is read through a cache."""
    found, missed = campaign(training_set, tmp_path / "cache", 500 * len(WAYS))
    assert missed == []
    assert found == dict.fromkeys(WAYS, 500)


def first_member(root: Path, name: str = "train-00001.tar") -> tuple[int, bytes]:
    """Offset and content of a shard's first JPEG."""
    index = read_index(root / name)
    start, size = int(index.offsets[0, 0]), int(index.sizes[0, 0])
    return start, (root / name).read_bytes()[start : start + size]


def test_what_only_the_checksum_shows_is_found(training_set: Path) -> None:
    """A flipped bit that leaves a valid JPEG of other pixels."""
    pristine = dict(epoch(ShardSet.open(training_set, "train"))[0])
    start, jpeg = first_member(training_set)
    pixels = simplejpeg.decode_jpeg(jpeg, "GRAY", strict=True)
    draw = random.Random(0)
    for _ in range(1_000):
        flipped = bytearray(jpeg)
        flipped[draw.randrange(len(jpeg) // 2, len(jpeg) - 2)] ^= 1 << draw.randrange(8)
        try:
            if (simplejpeg.decode_jpeg(bytes(flipped), "GRAY", strict=True) != pixels).any():
                break
        except ValueError:
            continue
    else:
        pytest.fail("no such bit was found")
    with (training_set / "train-00001.tar").open("r+b") as file:
        file.seek(start)
        file.write(flipped)
    trusting, error = epoch(ShardSet.open(training_set, "train", verify=False))
    assert error is None
    first = len(read_index(training_set / "train-00000.tar"))
    assert {index for index, digest in trusting if digest != pristine[index]} == {first}
    seen, error = epoch(ShardSet.open(training_set, "train"))
    assert all(digest == pristine[index] for index, digest in seen)
    assert isinstance(error, DamagedShardError)
    assert "train-00001.tar" in str(error)


def test_only_shards_that_are_used_are_read_whole_and_only_once(
    training_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("mrm_stream.stream.opened_shards.sha256_of", counted)
    monkeypatch.setattr("mrm_stream.stream.checksums.sha256_of", counted)
    monkeypatch.setattr("mrm_stream.stream.opened_shards.MAPPED_SHARDS", 1)
    shards = ShardSet.open(training_set, "train")
    second = shards.shard_sizes[0]
    for index in (second, second + 1, 0, second):
        shards.sample(index)
    assert [name for name in read if name.endswith(".tar")] == ["train-00001.tar", "train-00000.tar"]
    read.clear()
    ShardSet.open(training_set, "train", verify=False).sample(0)
    assert read == ["train-00000.idx"]


def undecodable(jpeg: bytes) -> list[bytes]:
    """Ways that JPEGs are damaged: header, tables, end, and a gap that DALI alone fills in silence."""
    table = jpeg.index(b"\xff\xc4")
    return [
        b"\0" + jpeg[1:],
        jpeg[: table + 5] + b"\xff" * 16 + jpeg[table + 21 :],
        jpeg[: len(jpeg) // 2],
        jpeg[: len(jpeg) // 2] + b"\xff\xd9",
    ]


BAD = (3, 4, 20, 30)
"""Indexes of samples that do not decode; the second would replace the first."""


def pack_badly(training_set: Path, bad: tuple[int, ...]) -> None:
    """Pack a set again so that its checksums are right, but some of its JPEGs do not decode, each in another way."""
    manifest = read_manifest(training_set)
    shards, entries, first = ShardSet.open(training_set, "train"), [], 0
    for entry in manifest.splits["train"]:
        tar = training_set / entry.file
        index, content = read_index(tar), tar.read_bytes()
        samples = []
        for row in range(len(index)):
            spans = zip(index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True)
            jpeg, tokens, metadata, report = (content[start : start + size] for start, size in spans)
            if first + row in bad:
                jpeg = undecodable(jpeg)[bad.index(first + row)]
            samples.append(PackedSample(index.key(row), jpeg, metadata, tokens, report))
        written = write_shard(tar, samples)
        assert written is not None
        assert index_path(tar).exists()
        entries.append(written)
        first += len(index)
    write_manifest(training_set, dataclasses.replace(manifest, splits={**manifest.splits, "train": tuple(entries)}))
    assert first == len(shards)


Batches = list[tuple[list[int], torch.Tensor]]


def decoded(root: Path, backend: Literal["dali", "turbojpeg"], **choices: Any) -> tuple[Batches, list[int]]:
    """An epoch of a real decoder: which samples each batch is made of, its images, and the bad samples."""
    shards = ShardSet.open(root, "train")
    maker = batch_maker(shards, backend=backend)

    def transform(draws: Sequence[Draw]) -> tuple[list[int], torch.Tensor]:
        batch = maker(draws).take()
        return [draw.sample.index for draw in draws], batch.image_hr_BCHW

    try:
        with load(shards, transform, batch_size=8, **choices) as loader:
            return [next(loader) for _ in range(-(-len(shards) // 8))], loader.bad_samples
    finally:
        maker.close()


def test_jpegs_that_do_not_decode_are_replaced_counted_and_logged(
    training_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack_badly(training_set, BAD)
    with caplog.at_level(logging.WARNING):
        batches, bad = decoded(training_set, "turbojpeg")
    shards = ShardSet.open(training_set, "train")
    _, order = shards.order(5, 2).indexes(range(8 * len(batches)))
    expected = [{3: 5, 4: 5, 20: 21, 30: 31}.get(index, index) for index in order.tolist()]
    assert [index for indexes, _ in batches for index in indexes] == expected
    assert sorted(bad) == sorted(BAD)
    for index in BAD:
        assert sum(shards.location(index) in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(TrainingError, match=r"4 of .* samples are bad"):
        decoded(training_set, "turbojpeg", max_bad_samples=3)


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of the DALI pipelines that are built."""
    pytest.importorskip("nvidia.dali")
    build = DaliDecoder._build
    built: list[int] = []

    def counted(self: DaliDecoder, capacity: int) -> Any:
        built.append(capacity)
        return build(self, capacity)

    monkeypatch.setattr(DaliDecoder, "_build", counted)
    return built


def test_a_dali_pipeline_that_died_is_rebuilt_and_its_step_is_turbojpegs(
    training_set: Path, pipelines: list[int]
) -> None:
    pack_badly(training_set, BAD[:3])
    expected, bad = decoded(training_set, "turbojpeg")
    batches, found = decoded(training_set, "dali")
    assert [indexes for indexes, _ in batches] == [indexes for indexes, _ in expected]
    assert found == bad
    # The damaged tables alone reach DALI; what lacks its start or end is refused before.
    assert pipelines == [8, 8]
    for (_, image_BCHW), (_, expected_BCHW) in zip(batches, expected, strict=True):
        assert (image_BCHW - expected_BCHW).abs().mean() < 0.02
        assert torch.corrcoef(torch.stack([image_BCHW.ravel(), expected_BCHW.ravel()]))[0, 1] > 0.999


def test_another_error_is_not_taken_for_damage(training_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails is no bad sample: it would be left out for good."""

    def fail(self: ShardSet, index: int) -> None:
        raise OSError("planted")

    monkeypatch.setattr(ShardSet, "sample", fail)
    with pytest.raises(OSError, match="planted"):
        decoded(training_set, "turbojpeg")
