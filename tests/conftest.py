"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileges import obeying_permissions


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
