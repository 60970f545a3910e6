"""Whatever lies at `run.init`, it starts a run, or is refused in words, and takes no more memory than its size asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mrm_stream.errors import CheckpointError
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.initialise import initialise
from mrm_stream.pretrained.reference import to_reference
from tests.pretrained.junk import Junk

Maker = Callable[..., MaskedRecordModel]
MEMORY = 200 << 20
"""Bytes that may be used beyond those used at the start; the files have some 100,000."""


def _try(make_model: Maker, folder: Path, files: int, seed: int) -> Counter[str]:
    """Start from so many files; return how often each came of it."""
    whole = make_model(seed=1)
    encoder = {name: value.clone() for name, value in whole.image_encoder.state_dict().items()}
    junk = Junk(to_reference(whole), encoder, seed)
    model = make_model(seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcomes: Counter[str] = Counter()
    for number in range(files):
        suffix, content = junk.next()
        path = folder / f"init{suffix}"
        path.write_bytes(content)
        try:
            initialise(model, path)
        except CheckpointError as error:
            refusal: CheckpointError | None = error
        except BaseException as error:
            kept = folder / f"escaped-{seed}-{number}{suffix}"
            path.rename(kept)
            raise AssertionError(f"{type(error).__name__} from {kept}") from error
        else:
            refusal = None
        if refusal is None:
            outcomes["loaded"] += 1
            assert all(bool(value.isfinite().all()) for value in model.state_dict().values()), number
            model.load_state_dict(before)
        else:
            outcomes["refused"] += 1
            assert refusal.where == str(path)
            assert len(str(refusal)) < 2_000
            assert str(refusal).replace("\n", "").isprintable()
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), number
        path.unlink()
    return outcomes


@pytest.mark.filterwarnings("ignore")
def test_no_file_escapes_as_a_traceback_or_takes_much_memory(make_model: Maker, tmp_path: Path) -> None:
    start = _reset_peak()
    outcomes = _try(make_model, tmp_path, files=400, seed=0)
    assert outcomes["refused"] > 200
    assert outcomes["loaded"] > 20
    assert _peak() - start < MEMORY


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 13))
def test_ten_thousand_files(make_model: Maker, tmp_path: Path, seed: int) -> None:
    start = _reset_peak()
    outcomes = _try(make_model, tmp_path, files=1_000, seed=seed)
    assert outcomes.total() == 1_000
    assert outcomes["loaded"] > 50
    assert _peak() - start < MEMORY


@pytest.mark.parametrize("name", ["pipe", "endless"])
def test_what_is_no_file_is_refused_at_once(make_model: Maker, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        initialise(make_model(), tmp_path / name)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ((), "Name the file itself."),
        (("notes.txt", "mae.pth"), "Did you mean {}/mae.pth?"),
        (("model.safetensors", "moments.safetensors", "state.json"), "Name the file itself."),
        (("encoder.safetensors", "config.yaml", "checkpoints"), "It holds an encoder: give {}/encoder.safetensors."),
        (("config.yaml", "checkpoints"), "It is a run: mrm-stream export --run {} --out FILE.safetensors saves one."),
    ],
    ids=["empty", "one", "several", "run", "unfinished"],
)
def test_of_a_folder_the_file_that_was_meant_is_named(
    make_model: Maker, tmp_path: Path, held: tuple[str, ...], said: str
) -> None:
    for name in held:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a folder, where the file of a checkpoint") as caught:
        initialise(make_model(), tmp_path)
    assert caught.value.remedy == said.format(tmp_path)


def _reset_peak() -> int:
    """Begin to watch the most memory that this process holds; return what it holds now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Return the most memory that this process has held since, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
