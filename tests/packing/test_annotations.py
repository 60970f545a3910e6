"""Boxes and masks lie where they were drawn, on whatever copy of the image: scaled, or refused; and none vanishes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mrm_stream.errors import MrmStreamError, SourceError
from mrm_stream.formats.manifest import Manifest, MasksEntry, read_manifest, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json, read_index
from mrm_stream.packing.images.boxes import is_inside, place_boxes
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.pack import Supervision, pack
from mrm_stream.packing.repair import repair
from mrm_stream.packing.shard_writer import PackedSample, write_shard
from mrm_stream.packing.verify import verify
from mrm_stream.records import Box, Record
from mrm_stream.sources.registry import list_records
from mrm_stream.sources.source import Source
from mrm_stream.sources.vindr import FINDINGS

OPTIONS = PackOptions(samples_per_shard=5, short_side=64)
NOT_DRAWN = "No finding"
Texture = Callable[[int, int, int], NDArray[np.uint8]]


def write_table(path: Path, *rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_image(path: Path, pixels_HW: NDArray[np.uint8]) -> None:
    """A PNG, whatever the name: images are known by their content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HW).save(path, "PNG")


def contents(out: Path, manifest: Manifest) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for entry in manifest.shards():
        index = read_index(out / entry.file, manifest.members)
        found |= {index.key(row): index.cut((out / entry.file).read_bytes(), row) for row in range(len(index))}
    return found


def metadata(out: Path, manifest: Manifest) -> dict[str, Any]:
    return {key: json.loads(members["json"]) for key, members in contents(out, manifest).items()}


def masks(out: Path, manifest: Manifest) -> dict[str, NDArray[np.bool_]]:
    found = contents(out, manifest).items()
    return {key: np.asarray(Image.open(io.BytesIO(members["mask.png"]))) > 0 for key, members in found}


def quarantine(out: Path) -> dict[str, dict[str, str]]:
    lines = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    return {line["key"]: line for line in lines}


# ---- boxes ----


def write_vindr(root: Path, image_HW: NDArray[np.uint8], *boxes: tuple[float, float, float, float]) -> Path:
    """A training image with a row for each box, and as many without; a test image."""
    names = [f"{number:032x}" for number in range(len(boxes))]
    for name in names:
        write_image(root / "train" / f"{name}.png", image_HW)
    write_image(root / "test/ff.png", image_HW)
    labels = [int(finding == NOT_DRAWN) for finding in FINDINGS]
    write_table(
        root / "annotations/image_labels_train.csv",
        ["image_id", "rad_id", *FINDINGS],
        *([name, "R1", *labels] for name in names),
    )
    write_table(root / "annotations/image_labels_test.csv", ["image_id", *FINDINGS], ["ff", *labels])
    corners = ["x_min", "y_min", "x_max", "y_max"]
    rows = [[name, "R1", "Nodule/Mass", *box] for name, box in zip(names, boxes, strict=True)]
    write_table(root / "annotations/annotations_train.csv", ["image_id", "rad_id", "class_name", *corners], *rows)
    write_table(root / "annotations/annotations_test.csv", ["image_id", "class_name", *corners])
    return root


def test_boxes_of_the_full_size_beside_a_smaller_copy_are_refused(tmp_path: Path, texture: Texture) -> None:
    root = write_vindr(tmp_path / "src", texture(200, 160, 1), (1200, 900, 1500, 1400), (10, 20, 60, 70))
    manifest = pack("vindr", root, tmp_path / "out", options=OPTIONS, supervision=Supervision(max_bad=1))
    assert manifest.quarantined == {"box-outside-image": 1}
    (line,) = quarantine(tmp_path / "out").values()
    assert "x 1200 to 1500, y 900 to 1400, the image it was drawn on is 160 x 200 pixels: take" in line["detail"]
    assert "table of those sizes" in line["detail"]
    with pytest.raises(SourceError, match="1 box-outside-image"):
        pack("vindr", root, tmp_path / "strict", options=OPTIONS)


def test_where_the_table_tells_the_size_boxes_are_scaled(tmp_path: Path, texture: Texture) -> None:
    root = write_vindr(tmp_path / "src", texture(200, 160, 1), (1200, 900, 1500, 1400), (10, 20, 60, 70))
    names = [f"{number:032x}" for number in range(2)]
    write_table(root / "train_meta.csv", ["image_id", "dim0", "dim1"], *([name, 2000, 1600] for name in names))
    manifest = pack("vindr", root, tmp_path / "out", options=OPTIONS)
    told = metadata(tmp_path / "out", manifest)
    assert told[names[0]]["size"] == [80, 64]
    assert [told[name]["boxes"] for name in names] == [
        [["Nodule/Mass", 48.0, 36.0, 12.0, 20.0]],
        [["Nodule/Mass", 0.4, 0.8, 2.0, 2.0]],
    ]
    assert verify(tmp_path / "out", decode=True) == []


def test_a_table_of_sizes_that_lacks_an_image_or_holds_none(tmp_path: Path, texture: Texture) -> None:
    root = write_vindr(tmp_path, texture(40, 30, 1), (1, 2, 3, 4), (1, 2, 3, 4))
    write_table(root / "train_meta.csv", ["image_id", "dim0", "dim1"], [f"{0:032x}", 40, 30])
    with pytest.raises(SourceError, match=rf"'{1:032x}' is not among the images of .*train_meta\.csv"):
        list_records("vindr", root)
    write_table(root / "train_meta.csv", ["image_id", "dim0", "dim1"], [f"{0:032x}", 40.5, 30])
    with pytest.raises(SourceError, match=r"line 2.*dim0 or dim1 is no size"):
        list_records("vindr", root)


def test_boxes_of_rsna_on_a_smaller_copy_are_scaled(tmp_path: Path, texture: Texture) -> None:
    write_image(tmp_path / "src/stage_2_train_images/a.dcm", texture(256, 256, 1))
    header = ["patientId", "x", "y", "width", "height", "Target"]
    write_table(tmp_path / "src/stage_2_train_labels.csv", header, ["a", 512, 128, 256, 512, 1])
    write_table(tmp_path / "src/stage_2_detailed_class_info.csv", ["patientId", "class"], ["a", "Lung Opacity"])
    manifest = pack("rsna", tmp_path / "src", tmp_path / "out", options=OPTIONS)
    assert metadata(tmp_path / "out", manifest)["a"]["boxes"] == [["Pneumonia", 32.0, 8.0, 16.0, 32.0]]


@pytest.mark.parametrize(
    "box",
    [
        *((float("nan"), 1, 5, 5), (1, float("inf"), 5, 5), (1, 1, float("nan"), 5), (1, 1, 5, float("-inf"))),
        *((1, 1, 0, 5), (1, 1, 5, 0), (1, 1, -2, 5), (1, 1, 5, -2)),
    ],
)
def test_a_box_that_is_none_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ImageError) as caught:
        place_boxes([Box("Mass", *box)], drawn_on=(40, 30), size=(20, 15))
    assert caught.value.code == "box-damaged"


@pytest.mark.parametrize("box", [(-1.1, 5, 5, 5), (5, -1.1, 5, 5), (5, 5, 26.1, 5), (5, 5, 5, 36.1), (31.5, 5, 5, 5)])
def test_a_box_may_not_leave_the_image_by_more_than_a_pixel(box: tuple[float, ...]) -> None:
    assert not is_inside(Box("Mass", *box), (40, 30))
    with pytest.raises(ImageError) as caught:
        place_boxes([Box("Mass", *box)], drawn_on=(40, 30), size=(20, 15))
    assert caught.value.code == "box-outside-image"


@pytest.mark.parametrize(
    "box", [(-1, 5, 5, 5), (5, -1, 5, 5), (5, 5, 26, 5), (5, 5, 5, 36), (0, 0, 30, 40), (30.5, 2, 0.1, 1)]
)
def test_a_box_that_leaves_it_by_a_pixel_is_cut_off(box: tuple[float, ...]) -> None:
    for size in ((40, 30), (20, 15), (4, 3)):
        (placed,) = place_boxes([Box("Mass", *box)], drawn_on=(40, 30), size=size)
        _, left, top, width, height = placed
        assert min(left, top) >= 0
        assert left + width <= size[1] + 1e-9
        assert top + height <= size[0] + 1e-9
        assert width > 0
        assert height > 0
        assert is_inside(placed, size)


def with_boxes(out: Path, boxes: Any) -> Path:
    """A set as an earlier version would have packed it: its checksums are right."""
    pixels = io.BytesIO()
    Image.new("L", (30, 40), 90).save(pixels, "JPEG")
    told = {"size": [40, 30], "labels": {}, "boxes": boxes}
    out.mkdir()
    (out / "quarantine.jsonl").write_bytes(b"")
    content = json.dumps(told).encode() if "nan" in repr(boxes) else canonical_json(told)
    entry = write_shard(out / "train-00000.tar", [PackedSample("key", pixels.getvalue(), content)])
    assert entry is not None
    write_manifest(out, Manifest("vindr", PackOptions(), None, splits={"train": (entry,)}))
    return out


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([["Mass", 20, 20, 300, 200]], "outside the image by more than a pixel"),
        ([["Mass", 1, 1, 5, 5], ["Mass", -9, 1, 5, 5]], "outside the image by more than a pixel"),
        ([["Mass", 1, 1, 5, 0]], "a box is empty"),
        ([["Mass", 1, float("nan"), 5, 5]], "boxes of the metadata are not as"),
        ([["Mass", 1, 1, 5]], "boxes of the metadata are not as"),
        ("Mass", "boxes of the metadata are not as"),
        (7, "boxes of the metadata are not as"),
    ],
)
def test_verify_finds_boxes_outside_the_image(tmp_path: Path, boxes: Any, words: str) -> None:
    out = with_boxes(tmp_path / "set", boxes)
    assert verify(out) == []
    (fault,) = verify(out, decode=True)
    assert words in fault.what
    assert fault.what.startswith("key: ")


def test_verify_passes_boxes_inside_but_for_a_pixel(tmp_path: Path) -> None:
    assert (
        verify(with_boxes(tmp_path / "set", [["Mass", -1, -0.5, 32, 41.5], ["Mass", 0, 0, 30, 40]]), decode=True) == []
    )


# ---- masks ----


def write_siim(root: Path, sides: tuple[int, int], cells: list[str], texture: Texture) -> Path:
    names = [f"1.2.{number}" for number in range(len(cells))]
    for number, name in enumerate(names):
        write_image(root / f"dicom-images-train/1/2/{name}.dcm", texture(*sides, number))
    write_table(root / "train-rle.csv", ["ImageId", " EncodedPixels"], *zip(names, cells, strict=True))
    return root


def crescent(side: int = 1024) -> str:
    """Relative runs of an arc one pixel wide, down the columns."""
    rows, columns = np.ogrid[:side, :side]
    inside_HW = (np.abs(np.hypot(rows - 500, columns - 600) - 300) < 0.5) & (columns < 500)
    flat = np.concatenate([[False], inside_HW.T.ravel(), [False]])
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(map(str, np.diff(np.concatenate([[0], edges]))))


def test_a_label_is_1_exactly_where_its_mask_is_not_empty(tmp_path: Path, texture: Texture) -> None:
    cells = [crescent(), "-1", "524800 1", f"{300 * 1024 + 300} 400", "-1", "0 1"]
    root = write_siim(tmp_path / "src", (1024, 1024), cells, texture)
    out = tmp_path / "out"
    manifest = pack("siim", root, out, options=replace(OPTIONS, short_side=224))
    told, drawn = metadata(out, manifest), masks(out, manifest)
    assert [told[f"1-2-{number}"]["labels"]["Pneumothorax"] for number in range(6)] == [1, 0, 1, 1, 0, 1]
    assert [bool(drawn[f"1-2-{number}"].any()) for number in range(6)] == [True, False, True, True, False, True]
    assert manifest.masks is not None
    assert (manifest.masks.count, manifest.masks.kept_by_rule) == (4, 2)
    # Of a speck that is a twentieth of the pixel that it has.
    assert manifest.masks.worst_area_change == pytest.approx((1024 / 224) ** 2 - 1, abs=1e-5)
    assert read_manifest(out) == manifest
    assert "masks" in json.loads((out / "manifest.json").read_text())
    assert verify(out, decode=True) == []


def test_the_manifest_says_the_change_of_area(tmp_path: Path, texture: Texture) -> None:
    """Whatever the number of shards, and whether an interrupted run had packed some."""
    root = write_siim(tmp_path / "src", (128, 128), ["2 3 1000 900", "-1", "777 45 600 3", "5 1"] * 3, texture)
    sets = []
    for number, count in enumerate((5, 100)):
        options = replace(OPTIONS, samples_per_shard=count, short_side=32)
        sets.append(pack("siim", root, tmp_path / f"out-{number}", options=options).masks)
    first, second = sets
    assert first is not None
    assert first == second
    assert first.count == 9
    assert first.mean_area_change > 0


def test_the_worst_change_of_area_may_be_a_loss(tmp_path: Path, texture: Texture) -> None:
    # 1.375 and 1.625 of the pixels that 16 x 16 have: one is left of the first, the second becomes two.
    root = write_siim(tmp_path / "src", (64, 64), ["0 5632", "0 6656"], texture)
    told = pack("siim", root, tmp_path / "out", options=replace(OPTIONS, short_side=16)).masks
    assert told is not None
    loss, gain = 1 / 1.375 - 1, 2 / 1.625 - 1
    assert (told.worst_area_change, told.mean_area_change) == pytest.approx((loss, (gain - loss) / 2), abs=1e-5)


def test_an_interrupted_job_knows_the_change_of_area_of_what_it_kept(
    tmp_path: Path, texture: Texture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_siim(tmp_path / "src", (64, 64), ["2 3 1000 900", "777 45 600 3", "5 1"] * 5, texture)
    options = replace(OPTIONS, short_side=16)
    whole = pack("siim", root, tmp_path / "whole", options=options)

    def fail(*_: Any, **__: Any) -> None:
        raise MrmStreamError("made up")

    with monkeypatch.context() as patch:
        patch.setattr("mrm_stream.packing.pack.write_manifest", fail)
        with pytest.raises(MrmStreamError, match="made up"):
            pack("siim", root, tmp_path / "again", options=options)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("*.tar")}
    assert pack("siim", root, tmp_path / "again", options=options) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    next(iter(kept)).unlink()
    assert repair(tmp_path / "again", root)[1] == []
    assert read_manifest(tmp_path / "again") == whole


def test_masks_of_the_full_size_are_scaled_to_a_smaller_copy(tmp_path: Path, texture: Texture) -> None:
    """All runs lie in the first quarter of the columns: on a copy of 512 they would fit, and lie elsewhere."""
    runs = [f"{column * 1024 + 400 - ((column - 1) * 1024 + 600)} 200" for column in range(101, 200)]
    cell = " ".join([f"{100 * 1024 + 400} 200", *runs])
    for side in (1024, 512, 200):
        out = tmp_path / f"out-{side}"
        manifest = pack(
            "siim", write_siim(tmp_path / f"src-{side}", (side, side), [cell], texture), out, options=OPTIONS
        )
        (mask_HW,) = masks(out, manifest).values()
        rows, columns = np.nonzero(mask_HW)
        scale = 64 / 1024
        assert mask_HW.shape == (64, 64)
        assert rows.min() == pytest.approx(400 * scale, abs=1)
        assert rows.max() == pytest.approx(600 * scale, abs=1)
        assert columns.min() == pytest.approx(100 * scale, abs=1)
        assert columns.max() == pytest.approx(200 * scale, abs=1)


def test_a_mask_of_another_size_than_its_image_is_refused_unless_that_size_is_told(
    tmp_path: Path, texture: Texture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "src/a.png", texture(100, 80, 1))
    write_image(tmp_path / "src/mask.png", np.eye(200, 160, dtype=np.uint8) * np.uint8(255))
    records = [Record("a", "a.png", mask_path="mask.png")]
    source = Source(lambda root: iter(records), has_reports=False, has_masks=True)
    for module in ("sources.registry", "packing.plan"):
        monkeypatch.setattr(f"mrm_stream.{module}.find_source", lambda name: source)
    for number, size in enumerate((None, (200, 160))):
        records[0] = replace(records[0], annotated_size=size)
        out = tmp_path / f"out-{number}"
        if size is None:
            with pytest.raises(
                MrmStreamError, match="the mask is 160 x 200 pixels, the image 80 x 100: a mask must be"
            ):
                pack("made-up", tmp_path / "src", out, options=OPTIONS)
        else:
            manifest = pack("made-up", tmp_path / "src", out, options=OPTIONS)
            (mask_HW,) = masks(out, manifest).values()
            assert mask_HW.shape == (80, 64)
            assert mask_HW.mean() == pytest.approx(160 / (200 * 160), abs=0.5 / (80 * 64))


def test_masks_in_words() -> None:
    assert str(MasksEntry(1200, 0.00123, 19.9, 3)) == (
        "1,200 not empty; packed, their areas are 0.12% off on average and +1990.00% at worst, "
        "and 3 components have but a pixel"
    )
