"""mosaicml-streaming's part of `bench data`, which another environment's Python runs.

It asks for transformers below 5 and numpy below 2.2, so it cannot lie beside mrm_stream. What runs over there imports
nothing that is not in the standard library, but mosaicml-streaming itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrm_stream.bench.data_result import MOSAICML, Run
from mrm_stream.bench.passes import time_passes
from mrm_stream.errors import MrmStreamError


class Mosaicml:
    """The other environment.

    Args:
        python: Its interpreter.

    Raises:
        MrmStreamError: It cannot be run, or has no mosaicml-streaming.
    """

    def __init__(self, python: Path) -> None:
        self._python = python
        self.version: str = self._ask("version")

    def write(self, tars: list[str], out: Path) -> None:
        """Write the samples of these shards as its own, in one folder."""
        self._ask("write", str(out), *tars)

    def run(self, directory: Path, count: int, batch: int, seed: int) -> Run:
        """Time passes over what `write` wrote."""
        return Run(**self._ask("run", str(directory), str(count), str(batch), str(seed)))

    def _ask(self, *arguments: str) -> Any:
        from mrm_stream.strict import parse_json  # Not up there: over there it lacks what it imports.

        with tempfile.TemporaryDirectory() as folder:
            # This package alone: with its whole folder, that Python would find the libraries beside it, too.
            Path(folder, "mrm_stream").symlink_to(Path(__file__).parents[1])
            try:
                done = subprocess.run(
                    [self._python, "-m", __name__, *arguments],
                    env=os.environ | {"PYTHONPATH": folder},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            except OSError as error:
                raise MrmStreamError(
                    f"cannot run {self._python}: {error.strerror}", remedy="Give a Python with mosaicml-streaming."
                ) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            is_missing = "No module named" in lines[-1]
            install = f"It needs an environment of its own. Run: {self._python} -m pip install {MOSAICML}"
            raise MrmStreamError(
                f"{MOSAICML} in {self._python} failed: {lines[-1]}", remedy=install if is_missing else None
            )
        return parse_json(done.stdout.splitlines()[-1])


def _main(task: str, *arguments: str) -> Any:
    streaming = import_module("streaming")
    if task == "write":
        out, *tars = arguments
        with streaming.MDSWriter(out=out, columns={"jpg": "bytes", "tok": "bytes"}) as writer:
            for sample in _samples(tars):
                writer.write(sample)
    elif task == "run":
        directory, count, batch, seed = arguments
        # Its own shuffle, and the batch size that it asks for, as in its documentation.
        dataset = streaming.StreamingDataset(
            local=directory, shuffle=True, shuffle_seed=int(seed), batch_size=int(batch)
        )
        return asdict(time_passes(MOSAICML, lambda epoch: (len(sample["jpg"]) for sample in dataset), int(count)))
    return version(MOSAICML)


def _samples(tars: list[str]) -> Iterator[dict[str, bytes]]:
    for name in tars:
        with tarfile.open(name) as tar:
            sample: dict[str, bytes] = {}
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                sample[member.name.rpartition(".")[2]] = content.read()
                if {"jpg", "tok"} <= sample.keys():
                    yield {"jpg": sample.pop("jpg"), "tok": sample.pop("tok")}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(*sys.argv[1:])) + "\n")
