from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mrm_stream.errors import CheckpointError
from mrm_stream.training import checkpoint as module
from mrm_stream.training.checkpoint import newest_checkpoint, open_checkpoint, save_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3)}
MOMENTS = {"step": torch.tensor([5.0]), "exp_avg.a.bias": torch.full((3,), 0.25)}


def save(run: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(run, WEIGHTS, MOMENTS, {"step": step, "loader": {"position": 8 * step}}, keep=keep)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 5)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.state["step"], found.state["loader"]) == (5, {"position": 40})
    for saved, loaded in ((WEIGHTS, found.weights()), (MOMENTS, found.moments())):
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(value, loaded[name]) for name, value in saved.items())


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        save(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000009", "step-00000010"]


def test_every_damaged_byte_is_found_and_the_one_before_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    chance = random.Random(0)
    for name in ("model.safetensors", "moments.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        damaged = [whole[: chance.randrange(len(whole))] for _ in range(10)]
        for _ in range(40):
            bit = chance.randrange(8 * len(whole))
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(flipped))
        for content in damaged:
            (newest / name).write_bytes(content)
            found = newest_checkpoint(tmp_path)
            assert found is not None
            assert found.state["step"] == 1
        (newest / name).write_bytes(whole)
    assert open_checkpoint(newest).state["step"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_give_way_to_those_of_the_continued_run(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 500)
    (save(tmp_path, 1000) / "model.safetensors").write_bytes(b"")
    for step in (600, 1000):
        save(tmp_path, step, keep=keep)
        found = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.state["step"] == step


def test_when_all_are_damaged_it_says_so_rather_than_start_again(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged: step-00000001"):
        newest_checkpoint(tmp_path)


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "state.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(CheckpointError, match="has version 3, not 1 or 2"):
        open_checkpoint(path.parent)


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("keep", [1, 2])
def test_one_that_was_cut_off_while_saving_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    save(tmp_path, 1)

    class PowerCut(BaseException):
        pass

    def cut(*_: Any) -> None:
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut)
        with pytest.raises(PowerCut):
            save(tmp_path, 2, keep=keep)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    save(tmp_path, 3, keep=keep)
    kept = ["step-00000001", "step-00000003"][-keep:]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == kept


def test_all_that_is_renamed_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed first, a power cut could leave a whole name over half a file."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return rename(path, target)

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    save(tmp_path, 1)
    at = done.index("rename step-00000001")
    files = {f"sync {name}" for name in ("model.safetensors", "moments.safetensors", "state.json")}
    assert {*done[:at]} == files | {"sync .step-00000001.tmp"}
    assert done[at - 1] == "sync .step-00000001.tmp"
    assert done[at + 1 :] == ["sync checkpoints"]


def test_one_of_the_version_before_is_read_and_its_tensors_are_compared(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]["state.json"]
    (folder / "state.json").write_text(json.dumps(state | {"version": 1}))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(folder)
