"""`verify` names every file that is not what it was; with `decode`, also what was wrong from the beginning."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mrm_stream.formats import shard as shard_module
from mrm_stream.formats.dictionary import ReportCodec, learn_dictionary
from mrm_stream.formats.manifest import Manifest, ReportsEntry, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.packing.verify import Fault, verify
from mrm_stream.packing.workers import Workers
from mrm_stream.storage.publish import sha256_of
from mrm_stream.text.tokenizer import train_tokenizer
from tests.packing.damage import KINDS, damage_campaign
from tests.packing.torture import FAULTS, pack_set

REPORTS = [f"Made-up study {number}: the heart is of normal size, the lungs are clear." for number in range(8)]
VOCABULARY = 60


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


# ---- damage to a finished set ----


@pytest.mark.parametrize("count", [5 * len(KINDS), pytest.param(60 * len(KINDS), marks=pytest.mark.campaign)])
def test_every_kind_of_damage_is_found_and_its_file_named(packed: Path, tmp_path: Path, count: int) -> None:
    report = damage_campaign(packed, tmp_path, count=count)
    assert report.missed == []
    assert report.found == dict.fromkeys(KINDS, count // len(KINDS))


def test_the_campaign_of_damage_finds_checksums_that_are_not_compared(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("worker", "verify"):  # to be put back
        path = f"mrm_stream.packing.{module}.verify_shard"
        monkeypatch.setattr(path, shard_module.verify_shard)
    FAULTS["trusting"]()
    report = damage_campaign(packed, tmp_path, count=len(KINDS))
    missed = {line.partition(" of {")[0] for line in report.missed}
    assert missed >= {kind for kind in KINDS if kind.startswith("bit of tar: ")}


def test_faults_are_the_same_from_other_processes_and_progress_counts_them(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "train-00001.tar").unlink()
    (copy / "train-00003.idx").write_text("v1.2 1\n")
    (copy / "tokenizer.json").write_text("{}")
    calls: list[tuple[int, int, int]] = []
    faults = verify(copy, workers=Workers(2), progress=lambda *numbers: calls.append(numbers))
    assert [fault.file for fault in faults] == ["tokenizer.json", "train-00001.tar", "train-00003.idx"]
    assert [fault.shard for fault in faults] == [None, "train-00001.tar", "train-00003.tar"]
    assert faults == verify(copy, decode=True)
    assert [call[:2] for call in calls] == [(done, 9) for done in range(1, 10)]
    assert calls[-1][2] == 3


def test_a_disk_that_fails_to_read_is_a_fault_not_an_end(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> str:
        if path.name == "train-00002.tar":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_of(path)

    monkeypatch.setattr(shard_module, "sha256_of", failing)
    assert verify(packed) == [Fault("train-00002.tar", "cannot be read: Input/output error", "train-00002.tar")]


# ---- sets that were wrong from the beginning: their checksums are right ----


def grey_jpeg(height: int = 40, width: int = 30) -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(np.zeros((height, width, 1), np.uint8), 90, "GRAY", "Gray")
    return jpeg


def grey_png(height: int = 40, width: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def huge_jpeg() -> bytes:
    content = bytearray(grey_jpeg())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


def write_set(out: Path, damage: Callable[[PackedSample], PackedSample]) -> None:
    """Four samples with reports and masks, the third of them damaged."""
    tokenizer, dictionary = train_tokenizer(REPORTS, VOCABULARY), learn_dictionary(REPORTS)
    codec = ReportCodec(dictionary)
    samples = [
        PackedSample(
            key=f"key-{number}",
            jpeg=grey_jpeg(),
            metadata=canonical_json({"size": [40, 30], "study": str(number)}),
            tokens=np.array([5, 6, 7], "<u2").tobytes(),
            report=codec.compress(REPORTS[number]),
            mask=grey_png(),
        )
        for number in range(4)
    ]
    samples[2] = damage(samples[2])
    out.mkdir()
    text = tokenizer.to_str(pretty=True).encode()
    for name, content in (("tokenizer.json", text), ("reports.zdict", dictionary), ("quarantine.jsonl", b"")):
        (out / name).write_bytes(content)
    entry = write_shard(out / "train-00000.tar", samples)
    assert entry is not None
    digests = [hashlib.sha256(content).hexdigest() for content in (text, dictionary)]
    assert tokenizer.get_vocab_size() == VOCABULARY
    reports = ReportsEntry(digests[0], digests[1], VOCABULARY, is_trained=True)
    write_manifest(out, Manifest("siim", PackOptions(), reports, has_masks=True, splits={"train": (entry,)}))


def with_metadata(**changes: Any) -> Callable[[PackedSample], PackedSample]:
    return lambda sample: replace(sample, metadata=canonical_json(json.loads(sample.metadata) | changes))


WRONG: dict[str, tuple[Callable[[PackedSample], PackedSample], str]] = {
    "size in the metadata": (with_metadata(size=[30, 40]), "metadata tells another size"),
    "size that is none": (with_metadata(size=None), "lacks the size"),
    "metadata that is a list": (lambda sample: replace(sample, metadata=b"[]"), "lacks the size"),
    "metadata that is not JSON": (lambda sample: replace(sample, metadata=b"{"), "not JSON"),
    "metadata nested too deeply": (lambda sample: replace(sample, metadata=b"[" * 100_000), "not JSON"),
    "token outside the vocabulary": (
        lambda sample: replace(sample, tokens=np.array([5, 60_000], "<u2").tobytes()),
        "outside the vocabulary",
    ),
    "token one past the last": (
        lambda sample: replace(sample, tokens=np.array([5, VOCABULARY], "<u2").tobytes()),
        "outside the vocabulary",
    ),
    "half a token": (lambda sample: replace(sample, tokens=b"\5\0\6"), "cut short"),
    "no tokens": (lambda sample: replace(sample, tokens=b""), "absent"),
    "frame cut short": (lambda sample: replace(sample, report=(sample.report or b"")[:-3]), "report is damaged"),
    "frame that is none": (lambda sample: replace(sample, report=b"no frame at all"), "report is damaged"),
    "frame with a bit flipped": (
        lambda sample: replace(sample, report=(sample.report or b"")[:-1] + bytes([(sample.report or b"\0")[-1] ^ 1])),
        "report is damaged",
    ),
    "JPEG cut short": (lambda sample: replace(sample, jpeg=sample.jpeg[:-20]), "does not decode"),
    "JPEG that is none": (lambda sample: replace(sample, jpeg=b"no image"), "does not decode"),
    "JPEG of 65,500 x 65,500": (lambda sample: replace(sample, jpeg=huge_jpeg()), "more than a radiograph has"),
    "mask of another size": (lambda sample: replace(sample, mask=grey_png(41)), "mask has another size"),
    "mask cut short": (lambda sample: replace(sample, mask=grey_png()[:-30]), "mask does not decode"),
    "mask that is a JPEG": (lambda sample: replace(sample, mask=grey_jpeg()), "mask does not decode"),
    "mask of 100,000 x 100,000": (lambda sample: replace(sample, mask=huge_png()), "mask does not decode"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_wrong_from_the_beginning_is_found_by_decoding(tmp_path: Path, what: str) -> None:
    damage, words = WRONG[what]
    write_set(tmp_path / "set", damage)
    assert verify(tmp_path / "set") == []
    faults = verify(tmp_path / "set", decode=True)
    assert [(fault.file, fault.shard) for fault in faults] == [("train-00000.tar", None)]
    assert "only packing the set anew" in str(faults[0].remedy)
    assert faults[0].what.startswith("key-2: ")
    assert words in faults[0].what
    assert "Made-up" not in str(faults[0])


def test_a_set_that_is_right_has_no_faults(tmp_path: Path, packed: Path) -> None:
    last = np.array([0, VOCABULARY - 1], "<u2").tobytes()
    write_set(tmp_path / "set", lambda sample: replace(sample, tokens=last))
    assert verify(tmp_path / "set", decode=True) == []
    assert verify(packed, decode=True, workers=Workers(2)) == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"another dictionary")])
def test_without_its_dictionary_the_samples_are_not_blamed(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_set(tmp_path / "set", with_metadata(size=[30, 40]))
    damage(tmp_path / "set" / "reports.zdict")
    faults = verify(tmp_path / "set", decode=True)
    assert [(fault.file, fault.remedy is None) for fault in faults] == [
        ("reports.zdict", True),
        ("train-00000.tar", False),
    ]
    assert "metadata tells another size" in faults[1].what


def test_what_repair_cannot_bring_back_has_another_remedy(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    for name in ("quarantine.jsonl", "tokenizer.json", "train-00000.tar"):
        (copy / name).unlink()
    remedies = {fault.file: fault.remedy for fault in verify(copy)}
    assert "gives the same list" in str(remedies.pop("quarantine.jsonl"))
    assert set(remedies.values()) == {None}
