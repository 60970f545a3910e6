"""Run below torchrun, on two ranks: all that needs two of them and no real script, one after another.

In one launch, as to start a rank takes longer than to ask it anything. Each line of standard output is of one case.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mrm_stream.distributed.connection import disconnect
from mrm_stream.distributed.runtime import start_runtime
from tests.distributed import second_rank
from tests.training import gradients, zero_stages


def main(settings: Path, out: Path) -> None:
    runtime = start_runtime()
    torch.set_num_threads(1)
    second_rank.check(settings, out, runtime)
    zero_stages.check(runtime)
    gradients.check(runtime, "sharing", "communication", "skipping")
    disconnect()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
