"""Retries of remote storage: transient errors with growing pauses, and none of what another attempt would only repeat.

A run over weeks meets every transient error that a network has, so none of them may end it. But a wrong bucket name
must be told in a second, not after half a minute of pauses: hence the two lists of what is final.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mrm_stream.errors import StorageError

T = TypeVar("T")

ATTEMPTS = 8
FIRST_PAUSE_S = 0.25
"""Seconds before the second attempt; doubled before each later one, so that eight attempts pause for half a minute."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
"""Errors that another attempt would only meet again."""
# Final too, by name, so that botocore need not be imported.
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "UnknownServiceError"}

log = logging.getLogger(__name__)


def retrying(act: Callable[[], T], where: object) -> T:
    """Return what `act` returns, tried again with growing pauses while remote storage fails with transient errors.

    What is final (no such file, no permission) is raised at once, as is anything of a local disk.

    Raises:
        StorageError: It still failed at the last attempt.
    """
    if isinstance(where, Path):
        return act()
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act()
        except Exception as error:  # every client has its own: botocore, aiohttp, asyncio and requests among them
            failure = _true_cause(error)
        # Outside of the handler: raised in it, a cause would become the context of what it has caused.
        if isinstance(failure, FINAL):
            raise failure
        final = type(failure).__name__ in _FINAL_NAMES
        if attempt == ATTEMPTS or final:
            raise _failed(failure, where, 0 if final else attempt) from failure
        log.warning("%s: %s; trying again in %.2g s", where, type(failure).__name__, pause)
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _failed(error: Exception, where: object, attempts: int) -> StorageError:
    """Return the error of storage that failed so many times, or, 0, of what no other attempt would change."""
    if not attempts:
        return StorageError(
            f"remote storage failed: {told(error)}", where=where, remedy="Check the URL and your credentials."
        )
    what, remedy = _told_connection(error)
    return StorageError(
        f"remote storage failed {attempts} times: {what}{told(error)}",
        where=where,
        remedy=f"{remedy}Run the same command again when the storage answers: what is done is kept.",
    )


def permitted(act: Callable[[], T], where: object) -> T:
    """Return what `act` returns; see `retrying`.

    Raises:
        StorageError: As there, or permission is denied.
    """
    try:
        return retrying(act, where)
    except PermissionError as error:
        raise StorageError(
            f"permission denied: {told(error)}", where=where, remedy="Check your credentials, and what they allow."
        ) from error


def told(error: BaseException) -> str:
    """Return a client's error as a clause of a message, in bounded length."""
    return f"{type(error).__name__}: {str(error)[:200]}"


def _true_cause(error: Exception) -> Exception:
    """Return what went wrong: over HTTP, fsspec tells whatever it was as a file that is not there."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    status = getattr(cause, "status", None)
    if isinstance(cause, FileNotFoundError) or status in (404, 410):
        return error
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"{type(cause).__name__}: {str(cause)[:200]}")
    is_of_the_way = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if is_of_the_way else error


def _told_connection(error: BaseException) -> tuple[str, str]:
    """Return why storage was not reached, and what to check; two empty texts where it was, or that is not known."""
    link: BaseException | None = error
    for _ in range(20):  # Some clients' chains lead back into themselves.
        if getattr(link, "errno", None) == errno.ECONNREFUSED:
            return "the connection was refused: ", "Check the URL's host and port, and whether a server runs there. "
        if isinstance(link, socket.gaierror):
            return "the host is not found: ", "Check the URL's host, and whether this machine has a network. "
        link = (link.__cause__ or link.__context__) if link is not None else None
    return "", ""
