"""Readers that are not ours must read our shards, unchanged."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from mrm_stream.formats.manifest import Manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import REPORT_MEMBERS, index_path, read_index
from mrm_stream.packing.pack import Supervision, pack


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("compat") / "set"
    options = PackOptions(samples_per_shard=16, short_side=64)
    return out, pack("training-csv", mixed_set, out, options=options, supervision=Supervision(max_bad=1))


def ours(packed: tuple[Path, Manifest]) -> list[tuple[str, tuple[bytes, ...]]]:
    """Key and members of each sample, through our index."""
    directory, manifest = packed
    samples = []
    for entry in manifest.splits["train"]:
        index, content = read_index(directory / entry.file), (directory / entry.file).read_bytes()
        for number in range(len(index)):
            spans = zip(index.offsets[number], index.sizes[number], strict=True)
            samples.append((index.key(number), tuple(content[offset : offset + size] for offset, size in spans)))
    return samples


def test_webdataset_reads_the_same_bytes(packed: tuple[Path, Manifest]) -> None:
    directory, manifest = packed
    urls = [str(directory / entry.file) for entry in manifest.splits["train"]]
    theirs: list[dict[str, Any]] = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(sample["__key__"], tuple(sample[name] for name in REPORT_MEMBERS)) for sample in theirs] == ours(packed)


def test_webdataset_decodes_them(packed: tuple[Path, Manifest]) -> None:
    directory, manifest = packed
    urls = [str(directory / entry.file) for entry in manifest.splits["train"]]
    decoded: list[dict[str, Any]] = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    for sample, (_, (jpeg, tokens, metadata, frame)) in zip(decoded, ours(packed), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), expected)
        assert sample["json"] == json.loads(metadata)
        assert sample["tok"] == tokens
        assert sample["txt.zst"] == frame


def test_dali_reads_the_same_bytes(packed: tuple[Path, Manifest]) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    pipeline = pytest.importorskip("nvidia.dali.pipeline")
    directory, manifest = packed
    tars = [directory / entry.file for entry in manifest.splits["train"]]
    pipe = pipeline.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        members = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(index_path(tar)) for tar in tars],
            ext=list(REPORT_MEMBERS),
            missing_component_behavior="error",
        )
        pipe.set_outputs(*members, fn.decoders.image(members[0], device="cpu", output_type=_grey()))
    pipe.build()
    for _, expected in ours(packed):
        *read, image = (np.asarray(output.at(0)) for output in pipe.run())
        assert tuple(member.tobytes() for member in read) == expected
        assert list(image.shape) == [*json.loads(expected[2])["size"], 1]


def _grey() -> Any:
    return pytest.importorskip("nvidia.dali.types").GRAY


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_tar_lists_and_dali_indexes_them_as_we_do(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    directory, manifest = packed
    tar = directory / manifest.splits["train"][0].file
    listing = subprocess.run(["tar", "-tf", str(tar)], capture_output=True, text=True, check=True)
    assert listing.stderr == ""
    keys = [key for key, _ in ours(packed)][: manifest.splits["train"][0].samples]
    assert listing.stdout.split() == [f"{key}.{extension}" for key in keys for extension in REPORT_MEMBERS]
    pytest.importorskip("wds2idx")
    index = tmp_path / "theirs.idx"
    subprocess.run([sys.executable, "-m", "wds2idx", str(tar), str(index)], capture_output=True, check=True)
    assert index.read_bytes() == index_path(tar).read_bytes()
