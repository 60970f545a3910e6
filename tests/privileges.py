"""Lets permissions bind a process that runs as root, as tests in a container do."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522
_DAC = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read and write whatever it likes."""
_PR_SET_SECUREBITS, _NOROOT = 28, 1


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Word(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def obeying_permissions() -> Iterator[None]:
    """Lay down root's right to read and write everything while the block lasts.

    The user stays root, who owns the files of a test: their modes bind it as they bind any owner. What the block
    executes has no rights of root's either.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = _Header(_VERSION, 0), (_Word * 2)()
    _check(libc.capget(ctypes.byref(header), words))
    before = words[0].effective
    words[0].effective = before & ~_DAC
    _check(libc.prctl(_PR_SET_SECUREBITS, _NOROOT, 0, 0, 0))
    _check(libc.capset(ctypes.byref(header), words))
    try:
        yield
    finally:
        words[0].effective = before
        _check(libc.capset(ctypes.byref(header), words))
        _check(libc.prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "root's rights cannot be laid down here")
