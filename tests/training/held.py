"""`train.py`, each rank of which waits before one step until it is killed: `held.py STEP FOLDER ARGUMENTS_OF_TRAIN`.

A run of this size takes its last step in less time than a test on a busy machine needs to see the first.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from mrm_stream.train import main
from mrm_stream.training.trainer import Trainer


def held_at(step: int, folder: Path) -> None:
    """Run `train.py`; a rank that comes to `step` leaves a file of its number in `folder`."""
    train_step = Trainer.train_step

    def hold(run: Trainer[Any]) -> None:
        if run.step == step:
            (folder / f"held-{run.runtime.rank}").touch()
            time.sleep(600)
        train_step(run)

    with mock.patch.object(Trainer, "train_step", hold):
        main()


if __name__ == "__main__":
    _, _step, _folder, *_arguments = sys.argv
    sys.argv = ["train.py", *_arguments]
    held_at(int(_step), Path(_folder))
