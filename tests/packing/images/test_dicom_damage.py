"""DICOMs against their decoders: damage of every kind, decoders that die or never end, nothing printed."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pydicom import dcmread, uid

from mrm_stream.errors import MrmStreamError
from mrm_stream.packing.images import gdcm_process
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image
from tests.packing.images.dicoms import LOSSLESS, code_of, dicom_of, grey_of, picture


def test_nothing_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    for syntax in LOSSLESS:
        data = bytearray(dicom_of(picture(50, 60, 12), 12, syntax, SpecificCharacterSet="ISO_IR 100"))
        data = data.replace(b"ISO_IR 100", b"A DISEASE ")
        with pytest.warns(UserWarning, match="A DISEASE"):
            dcmread(io.BytesIO(data))
        capfd.readouterr()
        recwarn.clear()
        caplog.clear()
        middle = data.index(b"\xe0\x7f\x10\0") + 400
        data[middle : middle + 200] = bytes(200)
        with contextlib.suppress(ImageError):
            encode_image(bytes(data), short_side=64, quality=95)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
        assert not recwarn.list


def test_gdcm_that_does_not_start_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom_of(picture(50, 60, 12), 12, uid.JPEGLSLossless)
    gdcm_process.shared_decoder.cache_clear()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MrmStreamError, match="gdcm") as caught:
        grey_of(data)
    assert not isinstance(caught.value, ImageError)
    monkeypatch.undo()
    grey_of(data)


def test_a_decoder_that_is_killed_is_no_damage_and_is_started_again() -> None:
    # Large enough for its stream not to fit into a pipe: the writer is there when the reader goes.
    data = dicom_of(picture(500, 600, 12), 12, uid.JPEGLSLossless)
    grey = grey_of(data)
    process = gdcm_process.shared_decoder()._process
    assert process is not None
    process.kill()
    process.wait()
    np.testing.assert_array_equal(grey_of(data), grey)
    process = gdcm_process.shared_decoder()._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    with pytest.raises(MrmStreamError, match="killed") as caught:
        grey_of(data)
    assert not isinstance(caught.value, ImageError)
    np.testing.assert_array_equal(grey_of(data), grey)


def test_a_decoder_that_crashes_or_never_ends_is_damage() -> None:
    data = dicom_of(picture(500, 600, 12), 12, uid.JPEGLSLossless)
    grey = grey_of(data)
    for end in (signal.SIGSEGV, signal.SIGABRT, signal.SIGPROF):
        process = gdcm_process.shared_decoder()._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

        def crash(process: subprocess.Popen[bytes] = process, end: signal.Signals = end) -> None:
            process.send_signal(end)
            process.send_signal(signal.SIGCONT)

        threading.Timer(0.2, crash).start()
        assert code_of(data) == "image-damaged"
        np.testing.assert_array_equal(grey_of(data), grey)


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = """
        class Anything:
            def __getattr__(self, name): return self
            def __call__(self, *_): return self
            def __iter__(self): return iter(())
            def GetBuffer(self):
                while True: pass

        def __getattr__(name): return Anything()
    """
    (tmp_path / "gdcm.py").write_text(textwrap.dedent(endless))
    data = dicom_of(picture(50, 60, 12), 12, uid.JPEGLSLossless)
    gdcm_process.shared_decoder()._stop()
    monkeypatch.syspath_prepend(tmp_path)
    watch = threading.Timer(60, lambda: gdcm_process.shared_decoder()._stop())
    watch.start()
    try:
        start = os.times().children_user
        assert code_of(data) == "image-damaged"
        assert 1.5 < os.times().children_user - start < 4
    finally:
        watch.cancel()
    monkeypatch.undo()
    grey_of(data)


def test_the_decoder_ends_with_its_parent() -> None:
    code = (
        "import os, sys; from pathlib import Path; from mrm_stream.packing.images import gdcm_process; "
        "print(gdcm_process.shared_decoder()._start().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # `run` returns when stdout is closed, which the decoder shares with nobody; it sees its stdin close.
    process = Path("/proc") / run.stdout.strip()
    deadline = time.monotonic() + 10
    while process.exists() and "(zombie)" not in (process / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FUZZ = """
import json, sys, time
import numpy as np
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.encode import encode_image

data, cases, seed = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
start, codes, slowest = data.index(b"\\xe0\\x7f\\x10\\0"), {}, 0.0
for case in range(cases):
    draws = np.random.default_rng([seed, case])
    damaged = bytearray(data)
    if case % 5 == 0:
        damaged = damaged[: draws.integers(132, len(data))]
    else:
        # Headers are where one bit matters most: the DICOM's, the stream's, then all of it.
        low, high = ((132, start), (start, start + 300), (start, len(data)), (0, len(data)))[case % 4]
        for _ in range(draws.integers(1, 4)):
            damaged[draws.integers(low, min(high, len(data)))] ^= 1 << int(draws.integers(8))
    began = time.perf_counter()
    try:
        encode_image(bytes(damaged), short_side=32, quality=90, rendering=("window", "equalized")[case % 2])
        code = "read"
    except ImageError as error:
        code = error.code
    codes[code] = codes.get(code, 0) + 1
    slowest = max(slowest, time.perf_counter() - began)
print(json.dumps({"codes": codes, "slowest": slowest}))
"""


def fuzz(path: Path, cases: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-c", FUZZ, str(path), str(cases), str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    outcome: dict[str, Any] = json.loads(run.stdout)
    return outcome


def check_fuzz(tmp_path: Path, syntax: uid.UID, cases: int, seed: int) -> None:
    path = tmp_path / "radiograph.dcm"
    stored, bits, stream = picture(50, 60, 12), 12, None
    if syntax == uid.JPEGBaseline8Bit:
        stored, bits = picture(50, 60, 8), 8
        stream = simplejpeg.encode_jpeg(np.ascontiguousarray(stored[..., None]), 95, "GRAY", "Gray")
    path.write_bytes(dicom_of(stored, bits, syntax, stream=stream, ViewPosition="PA"))
    outcome = fuzz(path, cases, seed)
    assert outcome["slowest"] < 5
    assert sum(outcome["codes"].values()) == cases
    assert outcome["codes"]["image-truncated"] >= cases // 10
    assert set(outcome["codes"]) > {"image-truncated", "read"}


@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_damage_is_an_image_error_and_no_more(syntax: uid.UID, tmp_path: Path) -> None:
    check_fuzz(tmp_path, syntax, 80, 0)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_damage_of_every_kind_is_an_image_error(syntax: uid.UID, seed: int, tmp_path: Path) -> None:
    check_fuzz(tmp_path, syntax, 500, seed)
