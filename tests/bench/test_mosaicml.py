"""The real library is not here, as it cannot lie beside mrm_stream: a stand-in is, in a real environment of its own."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from mrm_stream.bench.data_result import MOSAICML
from mrm_stream.bench.mosaicml import Mosaicml
from mrm_stream.errors import MrmStreamError
from mrm_stream.packing.shard_writer import PackedSample, write_shard

STAND_IN = """
import json
from pathlib import Path

print("a library that talks")

class MDSWriter:
    def __init__(self, out, columns):
        assert columns == {"jpg": "bytes", "tok": "bytes"}
        self.out, self.rows = Path(out), []
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.out.mkdir()
        (self.out / "rows.json").write_text(json.dumps(self.rows))
    def write(self, sample):
        self.rows.append({name: list(value) for name, value in sample.items()})

class StreamingDataset:
    def __init__(self, local, shuffle, shuffle_seed, batch_size):
        assert (shuffle, shuffle_seed, batch_size) == (True, 7, 2)
        self.rows = json.loads((Path(local) / "rows.json").read_text())
    def __iter__(self):
        return iter({name: bytes(value) for name, value in row.items()} for row in self.rows)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, with_pip=False)
    library = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (library / "streaming.py").write_text(STAND_IN)
    record = library / "mosaicml_streaming-9.8.7.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MOSAICML}\nVersion: 9.8.7\n")
    return folder / "bin" / "python"


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    samples = [PackedSample(f"s{number}", b"j" * number, b"{}", b"t" * (2 * number), b"") for number in range(1, 6)]
    write_shard(tmp_path / "train-00000.tar", iter(samples[:3]))
    write_shard(tmp_path / "train-00001.tar", iter(samples[3:]))
    return [str(tmp_path / f"train-0000{number}.tar") for number in range(2)]


def test_it_gets_every_sample_and_is_timed_over_there(python: Path, tars: list[str], tmp_path: Path) -> None:
    other = Mosaicml(python)
    assert other.version == "9.8.7"
    other.write(tars, tmp_path / "mds")
    run = other.run(tmp_path / "mds", 5, 2, seed=7)
    assert run.samples % 5 == 0
    assert run.seconds >= 0.5
    assert run.cpu_ms > 0
    assert run.bytes
    # Far less than torch takes: nothing of this environment was imported.
    assert run.bytes < 100_000_000


def test_a_sample_that_it_loses_is_found_out(python: Path, tars: list[str], tmp_path: Path) -> None:
    other = Mosaicml(python)
    other.write(tars[:1], tmp_path / "mds")
    with pytest.raises(MrmStreamError, match="a pass had 3 of 5 samples"):
        other.run(tmp_path / "mds", 5, 2, seed=7)


def test_a_python_without_it_or_none_at_all_is_told_apart(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    with pytest.raises(MrmStreamError, match="No module named 'streaming'") as caught:
        Mosaicml(tmp_path / "bare" / "bin" / "python")
    assert "pip install mosaicml-streaming" in str(caught.value)
    with pytest.raises(MrmStreamError, match=r"cannot run .*no-python: No such file"):
        Mosaicml(tmp_path / "no-python")
