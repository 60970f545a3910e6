"""Tiny packed sets, made by the project's own writer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mrm_stream.formats.dictionary import ReportCodec, learn_dictionary
from mrm_stream.formats.folder import DICTIONARY
from mrm_stream.formats.manifest import Manifest, ReportsEntry, write_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.formats.shard import canonical_json
from mrm_stream.packing.shard_writer import PackedSample, write_shard

MakeSet = Callable[..., Path]

VOCABULARY = 50


def build_set(
    out: Path,
    *,
    splits: dict[str, Sequence[int]],
    seed: int = 0,
    tokens: Mapping[str, bytes] = MappingProxyType({}),
    labels: Mapping[str, object] = MappingProxyType({}),
    has_reports: bool = True,
    has_masks: bool = False,
) -> Path:
    """Write a set whose sample i of a split has key `SPLIT-i`, jpeg `jpeg i`, and i % 40 + 4 as its first token id.

    Args:
        out: Directory, made here.
        splits: Sizes of the shards of each split.
        seed: Told to the manifest.
        tokens: Content of `KEY.tok`, for samples that should have another.
        labels: Of samples that should have others than `edema` present.
        has_reports: Else samples have neither token ids nor a report.
        has_masks: Samples have `mask i` for a mask.
    """
    out.mkdir()
    dictionary = learn_dictionary(["the lungs are clear"])
    (out / DICTIONARY).write_bytes(dictionary)
    codec = ReportCodec(dictionary)
    entries = {}
    for split, sizes in splits.items():
        first = 0
        listed = []
        for shard, size in enumerate(sizes):
            samples = []
            for index in range(first, first + size):
                key = f"{split}-{index}"
                ids = [index % 40 + 4, *range(index % 3)]
                samples.append(
                    PackedSample(
                        key=key,
                        jpeg=f"jpeg {index}".encode(),
                        tokens=tokens.get(key, np.array(ids, "<u2").tobytes()) if has_reports else None,
                        metadata=canonical_json(
                            {"subject": f"s{index}", "split": split, "labels": labels.get(key, {"edema": 1})}
                        ),
                        report=codec.compress(f"report {index}: the lungs are clear") if has_reports else None,
                        mask=f"mask {index}".encode() if has_masks else None,
                    )
                )
            entry = write_shard(out / f"{split}-{shard:05d}.tar", samples)
            assert entry is not None
            listed.append(entry)
            first += size
        entries[split] = tuple(listed)
    write_manifest(
        out,
        Manifest(
            source="test",
            options=PackOptions(seed=seed),
            reports=ReportsEntry("0" * 64, hashlib.sha256(dictionary).hexdigest(), VOCABULARY, is_trained=True)
            if has_reports
            else None,
            has_masks=has_masks,
            splits=entries,
        ),
    )
    return out


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Build a set of its own: `make_set("name", splits={"train": [3, 4]})`."""

    def make(name: str = "set", **choices: object) -> Path:
        return build_set(tmp_path / name, **choices)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 training samples in shards of 4, 1 and 6, and 2 to validate with; not to be written to."""
    return build_set(tmp_path_factory.mktemp("small") / "set", splits={"train": [4, 1, 6], "validate": [2]})
