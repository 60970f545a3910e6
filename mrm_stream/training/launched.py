"""What binds the processes of a run to the `mrm-stream train` that launched them.

None of them outlives the launcher, however it ends, and the error that one of them meets is told by it, once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrm_stream.errors import MrmStreamError, TrainingError
from mrm_stream.strict import parse_json
from mrm_stream.training.ranks import FirstRankFailedError

ERROR_FILE = "MRM_STREAM_ERROR_FILE"
"""Environment variable that only the launcher sets: the file that takes the first error. Standard input is then a pipe
which nothing is written to, and which closes when the launcher ends."""


def end_with_launcher() -> None:
    """Make this process end at once when its launcher ends; without a launcher, do nothing.

    At once, not after one more checkpoint: the same command, given again, would find the directory in use meanwhile.
    """
    if ERROR_FILE not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def bound_to_launcher() -> Iterator[None]:
    """End with the launcher, and leave it the error that the block raises.

    Raises:
        FirstRankFailedError: In place of an error that the launcher will tell.
    """
    end_with_launcher()
    try:
        yield
    except FirstRankFailedError:
        raise
    except MrmStreamError as error:
        if leave_error(error):
            raise FirstRankFailedError("the launcher tells why") from None
        raise


def leave_error(error: MrmStreamError) -> bool:
    """Leave an error for the launcher, unless another process has; return whether the launcher has one now."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    try:
        with Path(path).open("x") as file:
            json.dump({"what": error.what, "where": error.where, "remedy": error.remedy}, file)
    except FileExistsError:
        pass  # Most errors meet every rank.
    except OSError:
        return False
    return True


def error_left(path: Path) -> TrainingError | None:
    """Return the error that was left in a file, if there is a whole one."""
    try:
        said = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    return TrainingError(said["what"], where=said["where"], remedy=said["remedy"])
