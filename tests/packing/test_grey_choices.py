"""What packing assumes of 16-bit PNGs and does with blank images: in the manifest, and the same whoever packs."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner, Result

from mrm_stream.cli import main
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.manifest import read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json, read_index
from mrm_stream.packing.pack import Progress, Supervision, pack
from mrm_stream.packing.repair import repair
from mrm_stream.packing.retokenize import TokenChoice, retokenize
from mrm_stream.packing.verify import verify
from mrm_stream.packing.workers import Workers
from tests.formats.test_manifest import make_manifest
from tests.packing.images.dicoms import dicom_of, picture
from tests.packing.images.pngs import png_16
from tests.packing.torture import digests

OPTIONS: dict[str, Any] = {"samples_per_shard": 4, "short_side": 48, "vocabulary": 200}
BITS = {f"grey-{number:02d}": (10, 12, 12, 16)[number % 4] for number in range(16)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit PNGs of these bits, grey and in colour, each with a stray pixel; two blank images; a plain one."""
    root = tmp_path_factory.mktemp("grey") / "source"
    (root / "images").mkdir(parents=True)
    for number, (name, bits) in enumerate(BITS.items()):
        values = np.random.default_rng(number).integers(0, 1 << bits, (60, 50)).astype(np.uint16)
        values[0, 0] = 65535
        pixels = np.stack([values] * 3, axis=-1) if number % 3 == 0 else values
        (root / "images" / f"{name}.png").write_bytes(png_16(pixels))
    plain = np.random.default_rng(0).integers(0, 256, (60, 50, 1), np.uint8)
    for name, pixels in (("plain", plain), ("blank-1", plain * 0 + 9), ("blank-2", plain // 20 + 99)):
        (root / "images" / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 95, "GRAY", "Gray"))
    rows = [(f"images/{path.name}", f"Made-up {path.stem}.") for path in sorted((root / "images").iterdir())]
    with (root / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "report_content"), *rows])
    return root


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grey") / "set"
    pack("training-csv", root, out, options=PackOptions(**OPTIONS), supervision=Supervision(max_bad=1))
    return out


def reasons(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


def shard(root: Path, out: Path, *more: object) -> Result:
    words = ["shard", "--src", "training-csv", "--root", root, "--out", out, "--workers", 1, "--max-bad", 1, *more]
    return CliRunner().invoke(main, [str(word) for word in [*words, "--short-side", 48, "--vocabulary", 200]])


def test_the_manifest_counts_what_was_assumed_and_each_sample_tells_its_own(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert manifest.assumed_bits == Counter(BITS.values())
    content = json.loads((packed / MANIFEST).read_text())
    assert content["assumed_bits"] == {"10": 4, "12": 8, "16": 4}
    assert (content["options"]["bits"], content["options"]["blank"]) == (None, "quarantine")
    told = {}
    for entry in manifest.shards():
        index, data = read_index(packed / entry.file, manifest.members), (packed / entry.file).read_bytes()
        for row in range(len(index)):
            told[index.key(row)] = json.loads(index.cut(data, row)["json"]).get("assumed_bits")
    assert told == BITS | {"plain": None}
    assert verify(packed, decode=True) == []


def test_blank_images_are_counted_and_named(packed: Path) -> None:
    assert reasons(packed) == {"blank-1": "image-blank", "blank-2": "image-blank"}
    assert read_manifest(packed).quarantined == {"image-blank": 2}


def test_whoever_packs_assumes_the_same(root: Path, packed: Path, tmp_path: Path) -> None:
    options = PackOptions(**OPTIONS)
    pack(
        "training-csv", root, tmp_path / "two", options=options, supervision=Supervision(max_bad=1), workers=Workers(2)
    )
    assert digests(tmp_path / "two") == digests(packed)
    out = tmp_path / "interrupted"

    def stop(done: Progress) -> None:
        if done.records >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("training-csv", root, out, options=options, supervision=Supervision(max_bad=1, progress=stop))
    pack("training-csv", root, out, options=options, supervision=Supervision(max_bad=1))
    assert digests(out) == digests(packed)
    victim = next(out.glob("*.tar"))
    victim.write_bytes(victim.read_bytes()[:-700])
    assert repair(out, root)[1] == []
    assert digests(out) == digests(packed)


def test_bits_and_blank_are_choices_on_the_command_line(root: Path, tmp_path: Path) -> None:
    told = shard(root, tmp_path / "assumed")
    assert told.exit_code == 0, told.output
    assert "16-bit PNGs: 4 taken as 10-bit, 8 as 12-bit, 4 as 16-bit; --bits settles it" in told.output
    assert "2 image-blank" in told.output
    told = shard(root, tmp_path / "tried", "--dry-run")
    assert "16-bit PNGs among those tried: 4 taken as 10-bit, 8 as 12-bit, 4 as 16-bit" in told.output
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "assumed"), "--out", str(tmp_path / "page.html")])
    assert "16-bit PNGs: 4 taken as 10-bit" in told.output, told.output
    out = tmp_path / "settled"
    told = shard(root, out, "--bits", 12, "--blank", "keep")
    assert told.exit_code == 0, told.output
    assert "--bits" not in told.output
    manifest = read_manifest(out)
    assert (manifest.options.bits, manifest.options.blank, manifest.assumed_bits) == (12, "keep", {})
    assert reasons(out) == {key: "image-grey-range" for key, bits in BITS.items() if bits == 16}
    assert manifest.samples("train") == 15
    for wrong in (7, 17, "many"):
        assert shard(root, tmp_path / "wrong", "--bits", wrong).exit_code == 2
        assert not (tmp_path / "wrong").exists()


def test_the_manifest_counts_declared_padding_however_often_packing_was_interrupted(tmp_path: Path) -> None:
    root, stored = tmp_path / "source", picture(60, 50, 12)
    root.mkdir()
    framed = np.pad(stored, 4, constant_values=4095)
    files = {f"padded-{number}.dcm": dicom_of(framed, 12, PixelPaddingValue=4095) for number in range(3)}
    files |= {"declared-only.dcm": dicom_of(stored // 2, 12, PixelPaddingValue=4095), "plain.dcm": dicom_of(stored, 12)}
    for name, content in files.items():
        (root / name).write_bytes(content)
    with (root / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "report_content"), *((name, f"Made-up {name}.") for name in files)])

    def stop(done: Progress) -> None:
        raise KeyboardInterrupt

    options, out = PackOptions(samples_per_shard=2, short_side=48, vocabulary=200), tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        pack("training-csv", root, out, options=options, supervision=Supervision(progress=stop))
    manifest = pack("training-csv", root, out, options=options)
    assert manifest.padded == 3
    assert read_manifest(out) == manifest
    assert json.loads((out / MANIFEST).read_text())["padded"] == 3
    again = retokenize(out, tmp_path / "again", TokenChoice(length=2))
    assert again.padded == 3
    told = CliRunner().invoke(main, ["inspect", str(out), "--out", str(tmp_path / "page.html")])
    assert "DICOMs that declare padding: 3; it is black" in told.output, told.output


def test_a_set_of_an_earlier_version_stays_what_it_was(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())
    path = tmp_path / MANIFEST
    content = json.loads(path.read_text())
    for name in ("bits", "blank"):
        del content["options"][name]
    del content["assumed_bits"], content["sha256"]
    content["sha256"] = hashlib.sha256(canonical_json(content)).hexdigest()
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text)
    manifest = read_manifest(tmp_path)
    assert (manifest.assumed_bits, manifest.options.bits, manifest.options.blank) == (None, None, "keep")
    assert manifest.fingerprint == hashlib.sha256(text.encode()).hexdigest()
