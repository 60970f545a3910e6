from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import ConfigError, MrmStreamError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.stream.opening import fingerprint_of, open_data
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.training.checkpoint import checkpoints_in, save_checkpoint
from mrm_stream.training.metrics import read_metrics
from mrm_stream.training.run_directory import check_run, prepare_run
from mrm_stream.training.trainer import train
from tests.distributed.second_rank import EXACT
from tests.files import contents
from tests.training.runs import SETTINGS, STEPS


def config(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, None, ["data.shards=shards/a", "run.out=runs/a", *overrides])


def begun(out: Path, settings: PretrainConfig) -> None:
    """A run that has saved a checkpoint."""
    prepare_run(out, settings, []).close()
    state = {"step": 1, "loader": {"fingerprint": fingerprint_of(settings.data)}}
    save_checkpoint(out, {"a": torch.zeros(1)}, {"step": torch.ones(1)}, state, keep=1)


@pytest.fixture(scope="module")
def sets(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets of one tokenizer, `a` and `b`, of other samples a shard."""
    folder = tmp_path_factory.mktemp("sets")
    shutil.copytree(packed, folder / "a")
    options = PackOptions(short_side=96, samples_per_shard=16, vocabulary=300)
    pack("mimic", packed.parent / "tree", folder / "b", options=options, tokenizer=packed / "tokenizer.json")
    return folder


def test_the_settings_are_saved_with_paths_that_hold_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_run(Path("runs/a"), config(), []).close()
    saved = load_config(PretrainConfig, tmp_path / "runs/a/config.yaml")
    assert saved.data.shards == str(tmp_path / "shards/a")
    assert saved.run.out == str(tmp_path / "runs/a")
    assert saved.run.init == ""


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare_run(out, config(), []).close()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out, *out.iterdir()))


def test_a_check_finds_changed_settings_and_changes_nothing(packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(run, config(f"data.shards={packed}"))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"optim.base_lr was 0.00015, is 0.1\n"):
        check_run(run, config(f"data.shards={packed}", "optim.base_lr=0.1"))
    check_run(run, config(f"data.shards={packed}", "run.log_every=3"))
    check_run(tmp_path / "absent", config())
    assert contents(tmp_path) == before


def test_a_change_that_is_only_warned_of_is_logged_when_the_run_begins(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(tmp_path, config(f"data.shards={packed}"))
    changed = config(f"data.shards={packed}", "engine.precision=fp32", "data.threads=1")
    with caplog.at_level(logging.WARNING):
        prepare_run(tmp_path, changed, check_run(tmp_path, changed)).close()
    assert caplog.messages == ["resumed with another setting: engine.precision was 'bf16', is 'fp32'"]


def test_a_check_finds_a_run_in_progress_and_does_not_hold_it_up(tmp_path: Path) -> None:
    lock = prepare_run(tmp_path, config(), [])
    with pytest.raises(ConfigError, match="another process is training"):
        check_run(tmp_path, config())
    lock.close()
    check_run(tmp_path, config())
    prepare_run(tmp_path, config(), []).close()


def test_a_run_that_another_process_has_taken_further_meanwhile_is_not_gone_on_with(
    packed: Path, tmp_path: Path
) -> None:
    seen = checkpoints_in(tmp_path)
    begun(tmp_path, config(f"data.shards={packed}"))
    with pytest.raises(ConfigError, match="has trained in this directory just now"):
        prepare_run(tmp_path, config(f"data.shards={packed}"), seen)
    prepare_run(tmp_path, config(f"data.shards={packed}"), checkpoints_in(tmp_path)).close()


# ---- the data that a run goes on with ----


def test_what_is_read_of_manifests_is_what_the_opened_sets_have(sets: Path) -> None:
    for mixture in ("{}", f"{{{sets / 'b'}: 0.2}}"):
        data = config(f"data.shards={sets / 'a'}", f"data.mixture={mixture}").data
        opened = open_data(data)
        assert fingerprint_of(data) == opened.fingerprint
        opened.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["data.shards=a"], ["data.shards=b"]),
        (["data.shards=a"], ["data.shards=a", "data.mixture={b: 0.2}"]),
        (["data.shards=a", "data.mixture={b: 0.2}"], ["data.shards=a"]),
        (["data.shards=a", "data.mixture={b: 0.2}"], ["data.shards=a", "data.mixture={b: 0.3}"]),
        (["data.shards=a", "data.mixture={b: 1.0}"], ["data.shards=b", "data.mixture={a: 1.0}"]),
        (["data.shards=a"], ["data.shards=a", "data.split=validate"]),
    ],
)
def test_a_run_of_other_data_is_refused_and_left_as_it_is(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: list[str], other: list[str]
) -> None:
    monkeypatch.chdir(sets)
    begun(tmp_path, config(*one))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="holds a run"):
        check_run(tmp_path, config(*other))
    assert contents(tmp_path) == before
    check_run(tmp_path, config(*one))


def test_a_mixture_by_relative_paths_is_resumed_from_here_from_elsewhere_and_moved(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sets)
    mixed = config("data.shards=a", "data.mixture={b: 0.2}")
    begun(tmp_path / "run", mixed)
    check_run(tmp_path / "run", mixed)
    monkeypatch.chdir(sets.parent)
    name = sets.name
    check_run(tmp_path / "run", config(f"data.shards={name}/a", f"data.mixture={{{name}/b: 0.2}}"))
    shutil.copytree(sets, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    check_run(tmp_path / "run", config("data.shards=moved/a", "data.mixture={moved/b: 0.2}"))


def test_real_runs_go_on_and_what_is_refused_changes_nothing(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    """By the trainer itself, without the launcher that would look at the settings first."""
    (tmp_path / "config.yaml").write_text(SETTINGS)
    out = tmp_path / "run"
    short = ("optim.epochs=0.5", "optim.warmup_epochs=0.1", "run.save_every=2", "engine.precision=fp32")

    def trained(run: Path, *overrides: str) -> bool:
        settings = load_config(PretrainConfig, tmp_path / "config.yaml", [*short, f"run.out={run}", *overrides])
        return train(Pretraining(settings), runtime)

    monkeypatch.chdir(sets)
    assert trained(out, "data.shards=a", "data.mixture={b: 0.2}")
    # As if it had been killed before it was complete.
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    (out / "complete.json").unlink()
    monkeypatch.chdir(sets.parent)
    here = sets.name
    elsewhere = f"data.shards={here}/a", f"data.mixture={{{here}/b: 0.2}}"
    assert trained(out, *elsewhere, "optim.micro_batch_size=2")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="holds a run"):
        trained(out, f"data.shards={here}/b", f"data.mixture={{{here}/a: 0.2}}")
    with pytest.raises(MrmStreamError, match=r"absent.pth"):
        trained(out.with_name("new"), *elsewhere, f"run.init={out}/absent.pth")
    assert contents(tmp_path) == before


def test_a_run_that_lacks_its_encoder_alone_exports_it_and_logs_nothing_twice(
    packed: Path, tmp_path: Path, runtime: Runtime
) -> None:
    (tmp_path / "config.yaml").write_text(SETTINGS)
    overrides = [f"data.shards={packed}", "optim.epochs=2", "engine.precision=fp32"]

    def trained(out: Path) -> bool:
        settings = load_config(PretrainConfig, tmp_path / "config.yaml", [*overrides, f"run.out={out}"])
        return train(Pretraining(settings), runtime)

    first, other = tmp_path / "first", tmp_path / "other"
    assert trained(first)
    shutil.copytree(first, other)
    for name in ("complete.json", "encoder.safetensors"):
        (other / name).unlink()
    assert trained(other)
    assert (other / "complete.json").exists()
    # Byte for byte, though the run lies elsewhere: no path of its machine is written into an encoder.
    assert (other / "encoder.safetensors").read_bytes() == (first / "encoder.safetensors").read_bytes()
    assert read_metrics(other) == read_metrics(first)


def test_a_run_goes_on_with_other_ranks_and_another_zero_stage(
    two_ranks: Path, packed: Path, tmp_path: Path, runtime: Runtime
) -> None:
    """Other ranks add up the same gradients in another order, so the losses agree closely, not exactly."""
    (tmp_path / "config.yaml").write_text(SETTINGS)
    overrides = [f"data.shards={packed}", *EXACT, "engine.zero_stage=0"]
    one, moved = tmp_path / "one", tmp_path / "moved"
    shutil.copytree(two_ranks / "runs" / "for-other-ranks", moved)  # Stopped after step 8, at stage 2.
    assert checkpoints_in(moved)[-1].name == "step-00000008"
    for out in (one, moved):
        settings = load_config(PretrainConfig, tmp_path / "config.yaml", [*overrides, f"run.out={out}"])
        assert train(Pretraining(settings), runtime)
    timed = {"samples_per_s", "waiting_share", "decoding_share", "mb_per_s"}
    lines = [[{k: v for k, v in line.items() if k not in timed} for line in read_metrics(out)] for out in (one, moved)]
    assert [line["step"] for line in lines[1]] == list(range(3, STEPS + 1, 3))
    for line, other in zip(*lines, strict=True):
        # A mean over masked tokens is taken on each rank, which have different numbers of them.
        assert line.pop("report_loss_masked") == pytest.approx(other.pop("report_loss_masked"), rel=1e-2)
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_trained_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    prepare_run(tmp_path, config(), []).close()
    assert "has no locks; see that no other process trains there" in caplog.text


def test_a_lock_that_fails_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="cannot be locked: Input/output error"):
        prepare_run(tmp_path, config(), [])
