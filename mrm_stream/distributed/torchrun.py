"""torchrun as `mrm-stream train` starts it: it ends with its launcher, and leaves an error instead of a traceback.

python -m mrm_stream.distributed.torchrun ARGUMENTS_OF_TORCHRUN
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from mrm_stream.distributed.launched import leave_error
from mrm_stream.distributed.orphan import end_with_launcher
from mrm_stream.errors import TrainingError

REMEDY = "Correct what is said above, if anything; the same command continues the run from its last checkpoint."


def main(arguments: Sequence[str]) -> int:
    """Run a script on several ranks; return the exit status: 0, 1 if a rank failed, 128 and the number of a signal."""
    end_with_launcher()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    torchrun: Any = run  # Not annotated.
    # What torchrun has to say of a failed rank is a table of where no error file was found.
    logging.disable(logging.ERROR)
    try:
        torchrun.run(torchrun.parse_args(list(arguments)))
    except SignalException as request:
        return 128 + int(request.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        leave_error(TrainingError(f"rank {rank} {_ending(failure.exitcode)}", where="training", remedy=REMEDY))
        return 1
    return 0


def _ending(exit_code: int) -> str:
    """Return in words how a process has ended; a negative code is the number of a signal.

    Example:
        >>> _ending(3), _ending(-9)
        ('has ended with exit status 3', 'was ended by SIGKILL')
    """
    if exit_code >= 0:
        return f"has ended with exit status {exit_code}"
    return f"was ended by {signal.Signals(-exit_code).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
