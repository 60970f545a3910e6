"""Sets with sections, label policies, masks, boxes or lists; sets without reports; the share that may be bad."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrm_stream.errors import ShardError, SourceError
from mrm_stream.formats.dictionary import ReportCodec
from mrm_stream.formats.manifest import Manifest, read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import read_index
from mrm_stream.packing.estimate import estimate
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.plan import plan_set
from mrm_stream.records import Box, Record
from mrm_stream.sources.source import Source
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.stream.source import Needs
from mrm_stream.text.tokenizer import load_tokenizer, token_strings
from tests.packing.images.dicoms import dicom_of, picture

OPTIONS = PackOptions(samples_per_shard=5, short_side=48, vocabulary=300)


@pytest.fixture
def pack_records(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, Manifest]]:
    """(change of record number n, Source's has_..., options, root) -> a set of six records, and its manifest."""

    def run(
        change: Callable[[Record, int], Record],
        *,
        options: PackOptions = OPTIONS,
        root: Path = mixed_set,
        **kind: bool,
    ) -> tuple[Path, Manifest]:
        images = sorted((mixed_set / "images").glob("good-*"))[:6]
        records = [
            change(Record(path.stem, f"images/{path.name}", report_text=f"no acute process {number}"), number)
            for number, path in enumerate(images)
        ]
        source = Source(lambda root: iter(records), **kind)  # type: ignore[arg-type]
        monkeypatch.setattr("mrm_stream.sources.registry.find_source", lambda name: source)
        monkeypatch.setattr("mrm_stream.packing.plan.find_source", lambda name: source)
        out = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        return out, pack("made-up", root, out, options=options)

    return run


def samples(out: Path, manifest: Manifest) -> dict[str, dict[str, bytes]]:
    found = {}
    for entry in manifest.shards():
        index, content = read_index(out / entry.file, manifest.members), (out / entry.file).read_bytes()
        for row in range(len(index)):
            spans = zip(index.members, index.offsets[row], index.sizes[row], strict=True)
            found[index.key(row)] = {name: content[start : start + size] for name, start, size in spans}
    return found


def metadata(out: Path, manifest: Manifest) -> list[dict[str, Any]]:
    return [json.loads(members["json"]) for _, members in sorted(samples(out, manifest).items())]


Packed = Callable[..., tuple[Path, Manifest]]


def test_sections_become_tokens_and_the_text_stays_whole(pack_records: Packed) -> None:
    report = "\n FINDINGS: clear lungs.\n IMPRESSION: nothing acute.\n"
    options = replace(OPTIONS, sections=("impression",))
    out, manifest = pack_records(lambda record, n: replace(record, report_text=report), options=options)
    assert manifest.options.sections == ("impression",)
    assert read_manifest(out) == manifest
    tokenizer = load_tokenizer(out / "tokenizer.json")
    codec = ReportCodec((out / "reports.zdict").read_bytes())
    for members in samples(out, manifest).values():
        tokens = token_strings(tokenizer, np.frombuffer(members["tok"], "<u2").tolist())
        assert "".join(tokens).replace("#", "") == "nothingacute."
        assert codec.decompress(members["txt.zst"]) == report
    assert "lungs" not in tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("policy", "labels"),
    [
        ("keep", {"Edema": -1, "Fracture": -1, "Pneumonia": 0}),
        ("ignore", {"Pneumonia": 0}),
        ("zero", {"Edema": 0, "Fracture": 0, "Pneumonia": 0}),
        ("one", {"Edema": 1, "Fracture": 1, "Pneumonia": 0}),
        ("mixed", {"Edema": 1, "Pneumonia": 0}),
    ],
)
def test_uncertain_labels(pack_records: Packed, policy: Any, labels: dict[str, int]) -> None:
    given = {"Edema": -1, "Fracture": -1, "Pneumonia": 0}
    out, manifest = pack_records(
        lambda record, n: replace(record, labels=given), options=replace(OPTIONS, uncertain=policy)
    )
    assert manifest.options.uncertain == policy
    assert all(sample["labels"] == labels for sample in metadata(out, manifest))
    assert ShardSet.open(out, "train", needs=Needs(labels=True)).sample(0).labels == labels


def test_the_view_is_the_table_s_or_else_the_dicom_s(pack_records: Packed, tmp_path: Path) -> None:
    views = [("PA", "AP", "PA"), ("", "AP", "AP"), ("LATERAL", None, "LATERAL"), ("", None, "")] + [
        ("PA", "PA", "PA")
    ] * 2
    (tmp_path / "source").mkdir()
    for number, (_, written, _) in enumerate(views):
        (tmp_path / "source" / f"{number}.dcm").write_bytes(dicom_of(picture(60, 50, 12), 12, ViewPosition=written))
    out, manifest = pack_records(
        lambda record, n: replace(record, key=f"image-{n}", image_path=f"{n}.dcm", view=views[n][0]),
        root=tmp_path / "source",
    )
    assert [values["view"] for values in metadata(out, manifest)] == [view for _, _, view in views]


def test_a_set_without_reports_holds_neither_text_nor_tokens(pack_records: Packed) -> None:
    out, manifest = pack_records(lambda record, n: replace(record, lists=("train_1",)), has_reports=False)
    assert manifest.members == ("jpg", "json")
    assert manifest.reports is None
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "quarantine.jsonl", *(f"train-0000{n}.{kind}" for n in range(2) for kind in ("tar", "idx"))
    }  # fmt: skip
    assert all(sample["lists"] == ["train_1"] for sample in metadata(out, manifest))
    sample = ShardSet.open(out, "train").sample(0)
    assert sample.token_ids is None
    assert bytes(sample.jpeg) == samples(out, manifest)[sample.key]["jpg"]
    with pytest.raises(ShardError, match="has no reports: it is for fine-tuning"):
        ShardSet.open(out, "train", needs=Needs(reports=True))


def test_masks_are_as_large_as_the_packed_image(pack_records: Packed) -> None:
    """Mask n is the n leftmost columns of the radiograph."""

    def with_mask(record: Record, number: int) -> Record:
        height = 96 + number
        runs = " ".join(f"{1 + column * height} {height}" for column in range(10 * number))
        return replace(record, mask_runs=runs)

    out, manifest = pack_records(with_mask, has_reports=False, has_masks=True)
    assert manifest.members == ("jpg", "json", "mask.png")
    for number, (_, members) in enumerate(sorted(samples(out, manifest).items())):
        mask_HW = np.asarray(Image.open(io.BytesIO(members["mask.png"])))
        told = json.loads(members["json"])
        assert mask_HW.shape == tuple(told["size"])
        assert set(np.unique(mask_HW)) <= {0, 255}
        columns = np.all(mask_HW > 0, axis=0)
        expected = 10 * number * told["size"][1] / told["original_size"][1]
        assert abs(int(columns.sum()) - expected) <= 1
        assert columns[: int(columns.sum())].all()
    sample = ShardSet.open(out, "train", needs=Needs(masks=True)).sample(0)
    assert sample.mask is not None
    assert bytes(sample.mask) == samples(out, manifest)[sample.key]["mask.png"]


def test_boxes_are_scaled_with_the_image(pack_records: Packed) -> None:
    box = Box("Nodule", 10, 20, 30, 40)
    out, manifest = pack_records(lambda record, n: replace(record, boxes=(box,)), has_reports=False)
    for sample in metadata(out, manifest):
        (packed,) = sample["boxes"]
        scale = [new / old for new, old in zip(sample["size"], sample["original_size"], strict=True)]
        assert packed[0] == "Nodule"
        assert packed[1:] == pytest.approx([10 * scale[1], 20 * scale[0], 30 * scale[1], 40 * scale[0]], abs=0.01)


def test_more_bad_records_than_allowed_end_the_job_and_a_larger_share_ends_it_well(
    make_set: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_set(tmp_path / "source", 30, truncated=2)
    out = tmp_path / "set"
    with pytest.raises(SourceError, match=r"2 of the first \d+ records are bad \(2 image-truncated\); of 32, 5.00%"):
        pack("training-csv", root, out, options=OPTIONS, supervision=Supervision(max_bad=0.05))
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert kept
    manifest = pack("training-csv", root, out, options=OPTIONS, supervision=Supervision(max_bad=2 / 32))
    assert manifest.quarantined == {"image-truncated": 2}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_estimate_is_near_what_is_packed(make_set: Callable[..., Path], tmp_path: Path) -> None:
    root = make_set(tmp_path / "source", 150)
    guess = estimate(plan_set("training-csv", root, OPTIONS))
    manifest = pack("training-csv", root, tmp_path / "set", options=OPTIONS)
    assert (guess.records, guess.shards, guess.splits) == (150, len(manifest.shards()), {"train": 150})
    assert guess.bytes_out == pytest.approx(sum(entry.bytes for entry in manifest.shards()), rel=0.2)
    assert guess.bytes_in == pytest.approx(sum(path.stat().st_size for path in (root / "images").iterdir()), rel=0.2)
    assert not guess.bad
