"""A rank in the tests' own process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mrm_stream.distributed.connection import disconnect
from mrm_stream.distributed.runtime import Runtime, start_runtime


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """The only rank of a run, connected to itself; what it changes of the process is changed back."""
    before, threads = dict(os.environ), torch.get_num_threads()
    started = start_runtime()
    torch.set_num_threads(1)  # Of models this small a step takes a twentieth of the time, beside other tests.
    yield started
    disconnect()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
