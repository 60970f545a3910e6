"""Run below torchrun: begin a run, resume it in ways that are allowed and in ways that are not; tell what became of it.

As `train.py` does, without the launcher that would look at the settings first; in one process, as each start is slow.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.connection import disconnect
from mrm_stream.distributed.runtime import start_runtime
from mrm_stream.errors import MrmStreamError
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.training.trainer import train
from tests.files import contents


def main(settings: Path, sets: Path, out: Path) -> None:
    runtime = start_runtime()

    def attempt(told: str, run: Path, *overrides: str) -> None:
        before = contents(out.parent)
        short = ["optim.epochs=0.5", "optim.warmup_epochs=0.1", "run.save_every=2", f"run.out={run}"]
        try:
            train(Pretraining(load_config(PretrainConfig, settings, [*short, *overrides])), runtime)
        except MrmStreamError:
            sys.stdout.write(f"{told}: refused, {'unchanged' if contents(out.parent) == before else 'changed'}\n")
        else:
            sys.stdout.write(f"{told}: trained\n")

    os.chdir(sets)
    attempt("relative paths", out, "data.shards=a", "data.mixture={b: 0.2}")
    # As if it had been killed before it was complete.
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    os.chdir(sets.parent)
    here = sets.name
    elsewhere = f"data.shards={here}/a", f"data.mixture={{{here}/b: 0.2}}"
    attempt("another folder and another micro-batch", out, *elsewhere, "optim.micro_batch_size=2")
    attempt("another set first", out, f"data.shards={here}/b", f"data.mixture={{{here}/a: 0.2}}")
    attempt("absent initial weights", out.with_name("new"), *elsewhere, f"run.init={out}/absent.pth")
    disconnect()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
