"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from tests.privileges import obeying_permissions
from tests.training.runs import QUIET_THREADS, Run, new_run

os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_THREADS.items()})  # Before torch comes.


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and reference values, which lie beside the checkout and are not part of it."""
    path = Path(__file__).parents[2] / "shared"
    if not (path / "data").is_dir():
        pytest.skip("no real data: ../shared/data is absent")
    return path


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command run inside a test sets up logging for the whole process; the next test must not see more for it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions bind this thread, its children and what they execute, though the tests may run as root."""
    with obeying_permissions():
        yield


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
