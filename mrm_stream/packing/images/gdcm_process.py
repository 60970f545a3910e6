"""gdcm, which decodes what DICOMs compress, kept at arm's length."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from importlib import import_module
from typing import IO, Any

from mrm_stream.errors import MrmStreamError
from mrm_stream.packing.images.checks import ImageError


@lru_cache(maxsize=1)
def shared_decoder() -> GdcmProcess:
    """Return the one of this process."""
    return GdcmProcess()


class GdcmProcess:
    """gdcm in a process of its own, started when first needed.

    One bit wrong in a stream can make gdcm abort, write past its memory, or take minutes; its libraries print what they
    find wrong to stderr. There it cannot take the packing with it, and what it prints tells of damage.
    """

    _REQUEST = struct.Struct("<32sBIII")
    _REPLY = struct.Struct("<BI")
    _READY, _DONE, _CUT_SHORT, _DAMAGED = range(4)
    _MEMORY = 4 << 30

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self._stop)

    def decode(self, codec: str, bits: int, shape_HW: tuple[int, int], stream: bytes) -> bytes:
        """Return the values, one byte each where `bits` is 8, else two, little endian."""
        size = shape_HW[0] * shape_HW[1] * (1 if bits == 8 else 2)
        with self._lock:
            if self._process and self._process.poll() is not None:
                self._stop()
            process = self._process or self._start()
            assert process.stdin
            request = self._REQUEST.pack(codec.encode(), bits, *shape_HW, len(stream))
            try:
                process.stdin.write(request + stream)
                process.stdin.flush()
                outcome, raw = self._read_reply(process)
            except (OSError, EOFError):
                outcome, raw, end = self._DAMAGED, b"", process.wait()
                self._stop()
                if end == -signal.SIGKILL:  # Not by the image's fault.
                    remedy = "Often memory was short: take fewer workers."
                    raise MrmStreamError("the process that decodes DICOMs was killed", remedy=remedy) from None
            except BaseException:
                self._stop()  # Its reply must not be taken for the next image's.
                raise
        if outcome == self._CUT_SHORT:
            raise ImageError("image-truncated", "the DICOM's pixels are cut short")
        if outcome != self._DONE or len(raw) != size:
            raise ImageError("image-damaged", "the DICOM's pixels are damaged")
        return raw

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(folder for folder in sys.path if folder)
        # Each thread that numpy would keep takes from the memory allowed.
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        code = f"from {__name__} import GdcmProcess; GdcmProcess.serve()"
        pipe, command = subprocess.PIPE, [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)
        self._process = process
        try:
            self._read_reply(process)
        except (OSError, EOFError):
            self._stop()
            what, remedy = "gdcm, which decodes compressed DICOMs, does not start", "Install python-gdcm again."
            raise MrmStreamError(what, remedy=remedy) from None
        return process

    def _read_reply(self, process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
        assert process.stdout
        outcome, length = self._REPLY.unpack(_read_exactly(process.stdout, self._REPLY.size))
        return outcome, _read_exactly(process.stdout, length)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()

    @classmethod
    def serve(cls) -> None:
        """Be the process: answer requests on stdin until it closes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A core file would hold a patient's image.
        resource.setrlimit(resource.RLIMIT_AS, (cls._MEMORY, cls._MEMORY))
        gdcm: Any = import_module("gdcm")
        gdcm.Trace.WarningOff()
        gdcm.Trace.ErrorOff()
        with os.fdopen(os.dup(1), "wb") as replies, tempfile.TemporaryFile() as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            replies.write(cls._REPLY.pack(cls._READY, 0))
            replies.flush()
            while request := sys.stdin.buffer.read(cls._REQUEST.size):
                codec, bits, height, width, length = cls._REQUEST.unpack(request)
                stream = _read_exactly(sys.stdin.buffer, length)
                # Processor time: 2 s, and some ten times what an image of this size takes. Past it the process ends.
                signal.setitimer(signal.ITIMER_PROF, 2 + height * width * 2e-6)
                raw = _decode_frame(gdcm, codec.rstrip(b"\0").decode(), bits, (height, width), stream)
                signal.setitimer(signal.ITIMER_PROF, 0)
                printed.seek(0)
                complaint = printed.read()
                printed.truncate(0)
                outcome = cls._DONE if raw and not complaint else cls._DAMAGED
                if b"premature end" in complaint:
                    outcome = cls._CUT_SHORT
                replies.write(cls._REPLY.pack(outcome, len(raw)) + raw)
                replies.flush()


def _read_exactly(file: IO[bytes], length: int) -> bytes:
    content = file.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _decode_frame(gdcm: Any, codec: str, bits: int, shape_HW: tuple[int, int], stream: bytes) -> bytes:
    """Return the decoded values, or nothing where gdcm says that it failed."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((shape_HW[1], shape_HW[0], 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
    # The stream's bits, and without sign: what the bits mean is looked up afterwards.
    image.SetPixelFormat(gdcm.PixelFormat(1, 8 if bits == 8 else 16, bits, bits - 1, 0))
    text = image.GetBuffer()  # None on failure; else text, as SWIG makes of a `char *`.
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else b""
