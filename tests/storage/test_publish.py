"""Files are whole or not there, on a local disk and elsewhere."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.storage import publish
from mrm_stream.storage.files import names_in, read_whole, remove
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.storage.publish import (
    HashingFile,
    make_private_folder,
    publish_bytes,
    publishing,
    sha256_of,
    staging_folder,
    sweep_staging,
)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    if request.param == "local":
        return tmp_path
    return parse_path(f"memory://publish{tmp_path}")


def test_a_file_is_published_with_its_digest(folder: AnyPath) -> None:
    with publishing(folder / "a") as file:
        file.write(b"con")
        file.write(b"tent")
        assert not (folder / "a").exists()
    assert read_whole(folder / "a", 100) == b"content"
    assert file.size == 7
    digest = hashlib.sha256(b"content").hexdigest()
    assert file.sha256() == digest == sha256_of(folder / "a") == publish_bytes(folder / "b", b"content")
    assert names_in(folder) == {"a", "b"}


def _write_half(file: HashingFile) -> None:
    file.write(b"half of wh")
    raise KeyboardInterrupt


def test_what_was_there_stays_until_the_whole_is(folder: AnyPath) -> None:
    publish_bytes(folder / "a", b"before")
    with pytest.raises(KeyboardInterrupt), publishing(folder / "a") as file:
        _write_half(file)
    assert read_whole(folder / "a", 100) == b"before"
    assert names_in(folder) == {"a"}
    publish_bytes(folder / "a", b"after")
    assert read_whole(folder / "a", 100) == b"after"


def test_local_files_and_folders_are_their_owner_s_alone(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "x" / "y")
    publish_bytes(tmp_path / "x" / "y" / "a", b"content")
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x", "x/y")} == {0o700}
    assert stat.S_IMODE((tmp_path / "x" / "y" / "a").stat().st_mode) == 0o600


def test_a_folder_that_is_there_stays_as_open_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o755)
    make_private_folder(tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="cannot be written"):
            make_private_folder(path)


def test_an_empty_file_is_a_file(folder: AnyPath) -> None:
    assert publish_bytes(folder / "empty", b"") == hashlib.sha256().hexdigest() == sha256_of(folder / "empty")
    remove(folder / "empty")
    with pytest.raises(FileNotFoundError):
        sha256_of(folder / "empty")


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        publish_bytes(tmp_path / "a", b"content")
    assert caught.value.where == str(tmp_path / "a")
    assert names_in(tmp_path) == {"a"}


def test_what_was_staged_for_an_upload_is_gone_even_where_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged: list[Path] = []

    def fail(local: Path, to: Any) -> None:
        staged.append(local)
        assert local.read_bytes() == b"content"
        raise StorageError("made up", where=to)

    monkeypatch.setattr(publish, "upload", fail)
    with pytest.raises(StorageError, match="made up"):
        publish_bytes(parse_path("memory://publish/failed"), b"content")
    assert [local.parent.exists() for local in staged] == [False]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


_STAGE = """
import sys, time
from mrm_stream.storage.publish import staging_folder
with staging_folder() as folder:
    (folder / "patient").write_bytes(b"content")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_staged_is_swept_and_what_a_living_one_stages_is_not(temporary: Path) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", _STAGE]
    killed, living = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2))
    try:
        folders = []
        for process in (killed, living):
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
        killed.kill()
        killed.wait()
        assert (folders[0] / "patient").exists()
        sweep_staging()
        assert [folder.exists() for folder in folders] == [False, True]
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


def test_a_sweep_takes_no_folder_that_is_not_ours(temporary: Path) -> None:
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "lock").touch()
    (temporary / "mrm-stream-staging-link").symlink_to(temporary / "elsewhere")
    (temporary / "mrm-stream-staging-beginning").mkdir()  # its owner has not locked it yet
    (temporary / "mrm-stream-staging-left").mkdir()
    (temporary / "mrm-stream-staging-left" / "lock").touch()
    (temporary / "thesis").mkdir()
    (temporary / "thesis" / "lock").touch()
    sweep_staging()
    assert names_in(temporary) == {"elsewhere", "mrm-stream-staging-link", "mrm-stream-staging-beginning", "thesis"}


def test_a_staging_folder_that_a_sweep_got_hold_of_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swept between the making of its lock and the locking."""
    flock, calls = fcntl.flock, iter(range(9))

    def late(file: Any, operation: int) -> None:
        if next(calls) == 0:
            (swept,) = temporary.glob("mrm-stream-staging-*")
            shutil.rmtree(swept)
        flock(file, operation)

    publish.sweep_staging()
    monkeypatch.setattr(fcntl, "flock", late)
    with staging_folder() as folder:
        assert folder.is_dir()
    assert names_in(temporary) == set()
