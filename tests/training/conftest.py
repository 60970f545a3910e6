"""A small packed set, and runs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from tests.training.runs import Run, new_run


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and a few other phantoms, in shards of 8."""
    folder = tmp_path_factory.mktemp("packed")
    write_phantom_tree(folder / "tree", 44, size=96, workers=1, progress=None)
    pack(
        "mimic",
        folder / "tree",
        folder / "shards",
        options=PackOptions(short_side=96, samples_per_shard=8, vocabulary=300),
    )
    return folder / "shards"


@pytest.fixture
def run(packed: Path, tmp_path: Path) -> Run:
    """A run that has not begun."""
    return new_run(tmp_path, packed)
