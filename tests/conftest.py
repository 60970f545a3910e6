"""Fixtures that every folder of tests may use."""

from __future__ import annotations

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


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions bind this thread, its children and what they execute, though the tests may run as root."""
    with obeying_permissions():
        yield
