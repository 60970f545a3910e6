"""`mrm-stream shard` as a person types it, rightly and wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mrm_stream.cli import main
from mrm_stream.errors import ConfigError
from mrm_stream.formats.options import PackOptions
from mrm_stream.sources.phantom.tree import write_phantom_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shard") / "tree"
    write_phantom_tree(folder, 24, size=64, workers=1, progress=None)
    return folder


def shard(root: Path, out: object, *more: object) -> Result:
    words = ["shard", "--src", "mimic", "--root", root, "--out", out, "--workers", 1, *more]
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result) -> str:
    """What a command says that ends with the user's mistake."""
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output


def test_a_file_in_the_place_of_the_set_is_refused_in_words(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is not a directory" in refused(shard(tree, tmp_path / "file"))


def test_conditions_are_told_once_and_only_of_a_data_set_that_is_there(tree: Path, tmp_path: Path) -> None:
    said = refused(shard(tmp_path / "absent", tmp_path / "out"))
    assert "no such directory" in said
    assert "Conditions" not in said
    result = shard(tree, tmp_path / "out", "--short-side", 64, "--vocabulary", 200)
    assert result.exit_code == 0, result.output
    assert result.output.count("Conditions of use") == 1


def test_a_short_side_out_of_range_is_answered_with_the_range(tree: Path, tmp_path: Path) -> None:
    assert "100000 is not in the range 32<=x<=16384" in refused(shard(tree, tmp_path / "out", "--short-side", 100_000))
    with pytest.raises(ConfigError, match=r"short_side: must be between 16 and 16384\n  Give a whole number"):
        PackOptions(short_side=100_000)


def test_no_sections_are_a_mistake(tree: Path, tmp_path: Path) -> None:
    assert "the name of a section is empty" in refused(shard(tree, tmp_path / "out", "--sections", ""))


def test_two_tokenizers_are_a_mistake(tree: Path, tmp_path: Path) -> None:
    said = refused(shard(tree, tmp_path / "out", "--tokenizer", tmp_path / "t.json", "--vocabulary", 30_000))
    assert "are two tokenizers" in said
    assert not (tmp_path / "out").exists()


def test_an_estimate_is_in_sensible_units(tree: Path, tmp_path: Path) -> None:
    said = shard(tree, tmp_path / "out", "--dry-run").output
    assert "under a minute with 1 process\n" in said
    assert not (tmp_path / "out").exists()


def test_an_estimate_for_a_cluster_counts_no_cores_of_this_machine(tree: Path, tmp_path: Path) -> None:
    words = ["shard", "--src", "mimic", "--root", tree, "--out", tmp_path / "out", "--dry-run"]
    result = CliRunner().invoke(main, [str(word) for word in [*words, "--scheduler", "tcp://node:8786"]])
    assert "under a minute of one process's time" in result.output
    assert "processes" not in result.output


_SLOW = """
import sys, time
from mrm_stream import cli
from mrm_stream.storage import publish

true_upload = publish.upload

def upload(local, to):
    true_upload(local, to)
    if to.name.endswith(".tar"):
        print("uploading", flush=True)
        time.sleep(60)

publish.upload = upload
cli.main()
"""


def test_sigterm_leaves_no_patient_s_data_in_the_temporary_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    options = ["--workers", "1", "--vocabulary", "200", "--i-may-store-this-there"]
    command = [sys.executable, "-c", _SLOW, "shard", "--src", "mimic", "--root", str(tree), "--out", "memory://b/set"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    job = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    try:
        while "uploading" not in (line := job.stdout.readline()):
            assert line, "ended before it uploaded"
        assert list((tmp_path / "temporary").rglob("*.tar"))
        start = time.monotonic()
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 10
    finally:
        job.kill()
        job.communicate()
    assert list((tmp_path / "temporary").iterdir()) == []
