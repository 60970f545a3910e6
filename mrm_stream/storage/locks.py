"""Locks on open files: the kernel releases them when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

_UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What `flock` fails with on a file system that knows no locks (Lustre without `-o flock`, NFS without lockd)."""


def try_lock(file: IO[bytes] | int, *, shared: bool = False) -> bool:
    """Take a lock, or fail at once; return whether there are locks on this file system.

    Args:
        file: An open file, or its descriptor; the lock lasts as long as it is open.
        shared: Together with others that share it; else alone.

    Raises:
        BlockingIOError: Another open file holds it.
        OSError: It fails for another reason.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True
