"""What the processes of a run tell the `mrm-stream train` that launched them: the error that one of them meets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrm_stream.distributed.orphan import ERROR_FILE
from mrm_stream.distributed.ranks import FirstRankFailedError
from mrm_stream.errors import MrmStreamError, TrainingError
from mrm_stream.strict import parse_json


@contextmanager
def telling_launcher() -> Iterator[None]:
    """Leave the launcher the error that the block raises.

    Raises:
        FirstRankFailedError: In place of an error that the launcher will tell.
    """
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
