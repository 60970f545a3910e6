"""A rank in the tests' own process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mrm_stream.distributed.connection import connect, disconnect
from mrm_stream.distributed.runtime import Runtime, start_runtime


@pytest.fixture(scope="session")
def _rank() -> Iterator[tuple[Runtime, dict[str, str]]]:
    """Connected once a process: DeepSpeed goes on using the groups that it has made first."""
    before, threads = dict(os.environ), torch.get_num_threads()
    runtime = start_runtime()
    torch.set_num_threads(threads)
    connect(runtime, "", 60)
    inside = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    yield runtime, inside
    disconnect()


@pytest.fixture(scope="module")
def runtime(_rank: tuple[Runtime, dict[str, str]]) -> Iterator[Runtime]:
    """The only rank of a run, connected to itself; what it changes of the process is changed back."""
    runtime, inside = _rank
    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ.update(inside)
    torch.set_num_threads(1)  # Of models this small a step takes a twentieth of the time, beside other tests.
    yield runtime
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
