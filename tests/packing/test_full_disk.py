"""Packing on a disk that is full, and what a power cut could take."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.formats.folder import FOLDER
from mrm_stream.storage import publish
from tests.packing.torture import digests, pack_set, publishing_in_place

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds files through /proc")


@pytest.fixture(scope="module")
def packed(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    pack_set(mixed_set, out)
    return out


# ---- no room ----


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_grows_too_large_is_named_and_nothing_is_half_published(
    mixed_set: Path, packed: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "set"
    largest_but_shards = max(path.stat().st_size for path in packed.iterdir() if path.suffix != ".tar")
    limit = min(path.stat().st_size for path in packed.glob("*.tar")) - 1
    assert limit > largest_but_shards
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # workers inherit it
    try:
        with pytest.raises(StorageError, match=r"\.tar: cannot be written: File too large") as caught:
            pack_set(mixed_set, out, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Made-up" not in str(caught.value)
    assert not list(out.rglob("*.tar"))
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
    pack_set(mixed_set, out)
    assert digests(out) == digests(packed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """(tmpfs options) -> its folder, mounted anew, or changed if it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        how = f"remount,{options}" if folder.is_mount() else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


# Room for next to nothing, some shards, all shards but not the rest; inodes for the folders alone, and some files.
_SHORT = ["size=4k", "size=40k", "size=100k", "size=316k", "size=350k", "size=360k"]
_SHORT += [f"size=1m,nr_inodes={count}" for count in (2, 3, 4, 5, 12, 25)]
_LONG = [f"size={size}k" for size in range(4, 420, 4)] + [f"size=1m,nr_inodes={count}" for count in range(1, 40)]


@pytest.mark.parametrize("limits", [_SHORT, pytest.param(_LONG, marks=pytest.mark.campaign)], ids=["short", "long"])
def test_on_a_full_disk_nothing_is_half_published(
    mixed_set: Path, packed: Path, small_disk: Callable[[str], Path], limits: list[str]
) -> None:
    refused = 0
    for limit in limits:
        out = small_disk(limit) / "set"
        said = None
        try:
            pack_set(mixed_set, out)
        except StorageError as error:
            said = str(error)
        if said is not None:
            refused += 1
            assert os.strerror(errno.ENOSPC) in said
            assert not (out / "manifest.json").exists()
            assert not list(out.rglob("*.tmp"))
            for name, digest in digests(out).items():
                assert name.startswith(FOLDER) or digest == digests(packed)[name]
            small_disk("size=8m,nr_inodes=1000")
            pack_set(mixed_set, out)
        assert digests(out) == digests(packed)
        subprocess.run(["umount", str(out.parent)], check=True)
    assert refused > len(limits) / 2


# ---- power cuts ----

Events = list[tuple[str, str, str]]


def record_writes(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Events:
    """Pack, and return what was asked of the disk, in order: (write, path, ""), (fsync, path, ""), (rename, from,
    to)."""
    events: Events = []
    write, fsync, rename = os.write, os.fsync, os.rename

    def name_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def recorded_write(descriptor: int, data: bytes) -> int:
        events.append(("write", name_of(descriptor), ""))
        return write(descriptor, data)

    def recorded_fsync(descriptor: int) -> None:
        events.append(("fsync", name_of(descriptor), ""))
        fsync(descriptor)

    def recorded_rename(source: Any, target: Any) -> None:
        events.append(("rename", str(source), str(target)))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", recorded_write)
        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "rename", recorded_rename)
        pack_set(root, out)
    return events


def lost_in_a_power_cut(events: Events, out: Path) -> list[str]:
    """What a power cut at some instant would take although later steps built on it."""
    problems = []
    renamed = {target for kind, _, target in events if kind == "rename"}
    problems += [f"{path.name} was not renamed into place" for path in out.iterdir() if str(path) not in renamed]
    for place, (kind, source, target) in enumerate(events):
        if kind == "rename":
            of_source = [event for event in events[:place] if event[1] == source]
            if not of_source or of_source[-1][0] != "fsync":
                problems.append(f"{Path(target).name} was not synced before it was renamed")
            if events[place + 1 : place + 2] != [("fsync", str(Path(target).parent), "")]:
                problems.append(f"the folder of {Path(target).name} was not synced at once")
    if ("fsync", str(out.parent), "") not in events:
        problems.append("the new folder's own entry was not synced")
    order = [Path(target).name for kind, _, target in events if kind == "rename"]
    if order[-1:] != ["manifest.json"]:
        problems.append("the manifest was not the last")
    for path in out.glob("*.tar"):
        names = [f"{path.stem}{end}" for end in (".tar", ".idx", ".json")]
        if [name for name in order if name in names] != names:
            problems.append(f"{path.name} was noted before it was published")
    return problems


@NEEDS_PROC
def test_every_step_is_on_the_disk_before_the_next_one(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record_writes(mixed_set, tmp_path / "set", monkeypatch)
    assert sum(kind == "rename" for kind, _, _ in events) == 2 * 9 + 9 + 6
    assert lost_in_a_power_cut(events, tmp_path / "set") == []


@contextmanager
def _unsynced(path: Path, staging: Path) -> Iterator[publish.HashingFile]:
    temporary = staging / f".{path.name}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    yield publish.HashingFile(descriptor, path)
    os.close(descriptor)
    temporary.rename(path)
    publish.sync_folder(path.parent)


@NEEDS_PROC
@pytest.mark.parametrize(
    ("name", "planted", "found"),
    [
        ("sync_folder", lambda folder: None, "the folder of train-00000.tar was not synced at once"),
        ("_publishing_locally", _unsynced, "manifest.json was not synced before it was renamed"),
        ("_publishing_locally", publishing_in_place, "manifest.json was not renamed into place"),
    ],
)
def test_planted_faults_show_as_losses_in_a_power_cut(
    mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, planted: Any, found: str
) -> None:
    monkeypatch.setattr(publish, name, planted)
    events = record_writes(mixed_set, tmp_path / "set", monkeypatch)
    assert found in lost_in_a_power_cut(events, tmp_path / "set")
