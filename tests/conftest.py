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
from tests.once import once
from tests.privileges import obeying_permissions
from tests.training.runs import QUIET_THREADS, Run, new_run, torchrun

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
    """36 training and a few other phantoms, in shards of 8; beside them, as `tree`, what they were packed from."""

    def make(folder: Path) -> None:
        write_phantom_tree(folder / "tree", 44, size=96, workers=1, progress=None)
        options = PackOptions(short_side=96, samples_per_shard=8, vocabulary=300)
        pack("mimic", folder / "tree", folder / "shards", options=options)

    return once(tmp_path_factory, "packed", make) / "shards"


@pytest.fixture(scope="session")
def two_ranks(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks told of all that was asked of them in one launch, as `told.jsonl`, and their runs in `runs`."""

    def make(folder: Path) -> None:
        run = new_run(folder, packed)
        run.config.write_text(run.config.read_text().replace("data: {", f"data: {{shards: {packed}, "))
        script = Path(__file__).parent / "training" / "two_ranks.py"
        result = torchrun([str(script), str(run.config), str(folder / "runs")], ranks=2)
        assert result.returncode == 0, result.stderr
        (folder / "told.jsonl").write_text(result.stdout)

    return once(tmp_path_factory, "two_ranks", make)


@pytest.fixture
def run(packed: Path, tmp_path: Path) -> Run:
    """A run that has not begun."""
    return new_run(tmp_path, packed)
