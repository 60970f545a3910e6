"""One rank's run in this process, looked into: what its optimizer is told, and what a checkpoint's parts are for."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import ConfigError, MrmStreamError, StorageError, TrainingError
from mrm_stream.records import Batch
from mrm_stream.storage.publish import sha256_of
from mrm_stream.tasks import pretrain
from mrm_stream.tasks.pretrain import Pretraining, load_run, make_model
from mrm_stream.training import trainer
from mrm_stream.training.checkpoint import newest_checkpoint, signed_state
from mrm_stream.training.engine import Engine
from mrm_stream.training.metrics import read_metrics
from mrm_stream.training.run_directory import COMPLETE
from mrm_stream.training.trainer import Trainer
from tests.training.runs import SETTINGS

SHORT = ("optim.warmup_epochs=0.5", "optim.epochs=2", "engine.precision=fp32", "engine.zero_stage=0")
STEPS_AN_EPOCH = 6
"""36 training samples / 6."""
STEPS = 2 * STEPS_AN_EPOCH
TINY = ("model.image_encoder={width: 32, depth: 1, heads: 2}", "model.image_decoder={width: 32, depth: 1, heads: 2}")
LOGGED = {
    "step",
    "loss",
    "image_loss",
    "report_loss",
    "report_loss_masked",
    "learning_rate",
    "bad_samples",
    "skipped_steps",
}


@dataclass
class Opened:
    """A way to open the run of one directory, again and again."""

    runtime: Runtime
    packed: Path
    out: Path

    @contextmanager
    def __call__(self, *overrides: str) -> Iterator[Trainer[Batch]]:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        file = self.out.parent / "settings.yaml"
        file.write_text(SETTINGS)
        places = (f"data.shards={self.packed}", f"run.out={self.out}")
        run = Trainer(Pretraining(load_config(PretrainConfig, file, [*SHORT, *places, *overrides])), self.runtime)
        try:
            yield run
        finally:
            run.close()


@pytest.fixture
def opened(runtime: Runtime, packed: Path, tmp_path: Path) -> Opened:
    return Opened(runtime, packed, tmp_path / "run")


def train(run: Trainer[Batch], steps: int) -> None:
    """Take steps as the loop does, reporting where it does."""
    for _ in range(steps):
        run.train_step()
        if run.step % run.config.run.log_every == 0:
            run.report()


# ---- what AdamW is told ----


def test_adamw_is_told_its_betas_its_decay_and_the_rate_of_the_step_that_it_takes(opened: Opened) -> None:
    told: list[list[dict[str, Any]]] = []
    with opened("optim.base_lr=2.56", "optim.betas=[0.8, 0.9]", "optim.weight_decay=0.03") as run:
        optimizer = run.engine.state._base
        optimizer.register_step_pre_hook(
            lambda taking, *_: told.append([{**group, "params": None} for group in taking.param_groups])
        )
        train(run, STEPS)
        names = {id(parameter): name for name, parameter in run.engine.model.named_parameters()}
        decayed = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    peak = 2.56 * 6 / 256
    rates = [peak * step / 3 for step in range(3)]  # Half an epoch of warm-up; step 0 has none of it behind it.
    rates += [peak / 2 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 3))) for step in range(3, STEPS)]
    assert [[group["lr"] for group in step] for step in told] == [pytest.approx([rate] * 2) for rate in rates]
    for group in (group for step in told for group in step):
        assert group["betas"] == (0.8, 0.9)
        assert group["eps"] == 1e-8
        assert not group["amsgrad"]
        assert not group["maximize"]
    assert decayed.keys() == set(names.values())
    for name, decay in decayed.items():
        assert decay == (0.0 if name.endswith("bias") or "norm" in name.lower() else 0.03), name


@pytest.mark.parametrize(("clip", "least", "most"), [(0, 1000.0, math.inf), (0.25, 0.0, 0.2501)])
def test_gradients_are_clipped_where_asked_and_by_default_are_not(
    opened: Opened, clip: float, least: float, most: float
) -> None:
    norms: list[float] = []
    with opened(*([f"optim.gradient_clip={clip}"] if clip else [])) as run:
        for parameter in run.engine.model.parameters():
            cast(Any, parameter).register_hook(lambda gradient: gradient * 1e4)
        run.engine.state._base.register_step_pre_hook(
            lambda taking, *_: norms.append(
                math.hypot(*(float(p.grad.norm()) for group in taking.param_groups for p in group["params"]))
            )
        )
        train(run, 2)
    assert least <= min(norms) <= max(norms) <= most


# ---- what a line of the log says of time ----


def test_each_line_is_of_its_own_stretch_and_tells_the_time_that_is_left(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: now))
    with caplog.at_level(logging.INFO, logger=trainer.__name__), opened("run.log_every=3") as run:
        for seconds in (2.0, 6.0):
            train(run, 2)
            now += seconds
            train(run, 1)
    lines = read_metrics(opened.out)
    assert [line["samples_per_s"] for line in lines] == [9.0, 3.0]  # 3 steps of 6 samples.
    assert [line["epoch"] for line in lines] == [0.5, 1.0]
    said = [message for message in caplog.messages if "samples/s" in message]
    assert ["step 3/12" in said[0], "step 6/12" in said[1]] == [True, True]
    assert ["0:00:06 left" in said[0], "0:00:12 left" in said[1]] == [True, True]  # 9 and 6 steps more.


# ---- what ends a run ----


def test_weights_that_are_not_finite_are_not_saved(opened: Opened) -> None:
    with opened() as run:
        train(run, 2)
        with torch.no_grad():
            next(iter(run.engine.model.parameters())).view(-1)[-1] = float("nan")
        with pytest.raises(TrainingError, match="not finite at step 2; nothing was saved"):
            run.save()
    assert newest_checkpoint(opened.out) is None


def test_a_run_ends_when_more_steps_are_skipped_than_one_can_trust(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = 100
    with opened() as run:
        monkeypatch.setattr(type(run.engine), "skipped_steps", property(lambda _: skipped))
        train(run, 3)
        skipped = 101
        with pytest.raises(TrainingError, match="101 steps"):
            train(run, 3)


def test_steps_that_every_earlier_process_has_skipped_count(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "skipped_steps", property(lambda _: 40))
        for _ in range(2):
            with opened() as run:
                train(run, 3)
                run.save()
        with opened() as run, pytest.raises(TrainingError, match="120 steps were skipped"):
            train(run, 3)


def test_a_run_whose_encoder_could_not_be_written_is_not_complete(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("cannot be written: No space left on device")

    with opened() as run:
        weights = run.engine.state.weights()
        with monkeypatch.context() as patched:
            patched.setattr(pretrain, "export_encoder", refuse)
            with pytest.raises(StorageError):
                run.finish(weights)
        assert not (opened.out / COMPLETE).exists()
        with caplog.at_level(logging.INFO, logger=trainer.__name__):
            run.finish(weights)
    assert (opened.out / COMPLETE).exists()
    assert f"complete: what is kept is {opened.out / Pretraining.exported}" in caplog.messages


# ---- what a step is made of ----


@pytest.mark.parametrize("stage", [0, 1])
def test_each_step_has_all_its_passes_after_one_that_was_skipped_too(opened: Opened, stage: int) -> None:
    passes, poisoned = 0, False
    taken: list[int] = []

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    with opened(f"engine.zero_stage={stage}", "optim.micro_batch_size=2") as run:
        run.engine.model.register_forward_pre_hook(count)
        run.engine.state._base.register_step_pre_hook(lambda *_: taken.append(passes))
        parameter = next(iter(run.engine.model.parameters()))
        cast(Any, parameter).register_hook(lambda gradient: gradient * (math.nan if poisoned else 1))
        for step in range(4):
            poisoned = step == 1
            run.train_step()
        assert run.skipped_steps == 1
    assert list(dict.fromkeys(taken)) == [3, 9, 12]  # At stage 1 AdamW steps for each of its two groups.


def test_each_pass_of_each_step_draws_a_dropout_of_its_own(opened: Opened) -> None:
    seeds: list[int] = []
    with opened("optim.micro_batch_size=3") as run:
        run.engine.model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        train(run, 3)
    # As on record: a run goes on with the draws it was begun with, whatever the release.
    assert seeds == [1667719189, 3051185864, 2129963480, 1237356119, 304438511, 1384534032]


def test_the_seed_decides_the_initial_weights() -> None:
    weights = []
    for seed in (1, 2, 1):
        weights.append(make_model(load_config(PretrainConfig, None, [f"seed={seed}", *TINY]), 300).state_dict())
    names = [name for name, value in weights[0].items() if value.std() > 0 and "pos_embed" not in name]
    assert len(names) > 10
    assert all(torch.equal(weights[0][name], weights[2][name]) for name in names)
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in names)


# ---- what each part of a checkpoint is for ----

SAVED_AT = 4
"""Between two lines of the log, so that the sums of the stretch are among what is saved."""
Parts = dict[str, Any]


@pytest.fixture(scope="module")
def saved(runtime: Runtime, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at step 4."""
    out = tmp_path_factory.mktemp("saved") / "run"
    with Opened(runtime, packed, out)() as run:
        train(run, SAVED_AT)
        run.save()
    return out


def resumed(opened: Opened, saved: Path, change: Callable[[Parts], object]) -> tuple[object, ...]:
    """Change a copy of the checkpoint, resume from it, and return what the run logs and holds two steps later."""
    shutil.copytree(saved, opened.out)
    (folder,) = (opened.out / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "moments")}
    state["sha256"] = {name: value for name, value in state["sha256"].items() if name != "state.json"}
    change({"state": state, **tensors})
    for name, content in tensors.items():
        save_file(content, folder / f"{name}.safetensors")
        if f"{name}.safetensors" in state["sha256"]:
            state["sha256"][f"{name}.safetensors"] = sha256_of(folder / f"{name}.safetensors")
    (folder / "state.json").write_text(signed_state(state))
    try:
        with opened() as run:
            if run.step < STEPS:
                train(run, 2)
            held = {name: value.clone() for name, value in run.engine.state.weights().items()}
    except MrmStreamError as error:
        return (type(error).__name__,)
    lines = [{k: v for k, v in line.items() if k in LOGGED} for line in read_metrics(opened.out)]
    digest = hashlib.sha256(b"".join(held[name].numpy().tobytes() for name in sorted(held))).hexdigest()
    return json.dumps(lines), digest


@pytest.fixture(scope="module")
def unchanged(runtime: Runtime, packed: Path, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    opened = Opened(runtime, packed, tmp_path_factory.mktemp("unchanged") / "run")
    return resumed(opened, saved, lambda _: None)


def test_a_checkpoint_resumed_is_the_run_left_alone(opened: Opened, unchanged: object) -> None:
    with opened() as run:
        train(run, SAVED_AT + 2)
        held = run.engine.state.weights()
        digest = hashlib.sha256(b"".join(held[name].numpy().tobytes() for name in sorted(held))).hexdigest()
    lines = [{k: v for k, v in line.items() if k in LOGGED} for line in read_metrics(opened.out)]
    assert (json.dumps(lines), digest) == unchanged


STATE_CHANGES: dict[str, Callable[[Parts], object]] = {
    "format": lambda parts: parts["state"].update(format="other"),
    "version": lambda parts: parts["state"].update(version=99),
    "step": lambda parts: parts["state"].update(step=SAVED_AT + 1),
    "skipped_steps": lambda parts: parts["state"].update(skipped_steps=3),
    "task": lambda parts: parts["state"].update(task="another"),
    "vocabulary": lambda parts: parts["state"].update(vocabulary=299),
    "tokenizer_sha256": lambda parts: parts["state"].update(tokenizer_sha256="0" * 64),
    "sha256": lambda parts: parts["state"]["sha256"].clear(),
    "windows.steps": lambda parts: parts["state"]["windows"][0].update(steps=3),
    "windows.sums": lambda parts: parts["state"]["windows"][0]["sums"].update(loss=0.0),
    "loader.version": lambda parts: parts["state"]["loader"].update(version=99),
    "loader.seed": lambda parts: parts["state"]["loader"].update(seed=5),
    "loader.window": lambda parts: parts["state"]["loader"].update(window=3),
    "loader.fingerprint": lambda parts: parts["state"]["loader"].update(fingerprint="other"),
    "loader.position": lambda parts: parts["state"]["loader"].update(position=6),
    "loader.bad_samples": lambda parts: parts["state"]["loader"].update(bad_samples=list(range(30))),
}


def test_every_part_of_the_state_is_known_here(saved: Path) -> None:
    (folder,) = (saved / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    parts = {name for name in state if name not in ("windows", "loader")}
    parts |= {f"windows.{name}" for name in state["windows"][0]} | {f"loader.{name}" for name in state["loader"]}
    assert parts == STATE_CHANGES.keys()


@pytest.mark.parametrize("part", STATE_CHANGES)
def test_every_part_of_the_state_changes_what_is_resumed(
    opened: Opened, saved: Path, unchanged: object, part: str
) -> None:
    assert resumed(opened, saved, STATE_CHANGES[part]) != unchanged


@pytest.mark.parametrize("part", ["model", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("dimensions", [1, 2], ids=["not decayed", "decayed"])
def test_every_tensor_of_a_checkpoint_changes_what_is_resumed(
    opened: Opened, saved: Path, unchanged: object, part: str, dimensions: int
) -> None:
    """One tensor of each group of AdamW's stands for its group: they are saved and loaded together."""

    def change(parts: Parts) -> None:
        tensors = parts["model" if part == "model" else "moments"]
        names = [
            n for n, t in tensors.items() if (part == "model" or n.startswith(f"{part}.")) and t.dim() == dimensions
        ]
        tensors[sorted(names)[-1]] += 0.5

    assert resumed(opened, saved, change) != unchanged


def test_the_count_of_adam_s_steps_changes_what_is_resumed(opened: Opened, saved: Path, unchanged: object) -> None:
    assert resumed(opened, saved, lambda parts: parts["moments"]["step"].fill_(40.0)) != unchanged


def test_a_run_of_an_earlier_release_is_told_as_that_and_not_resumed(opened: Opened, saved: Path) -> None:
    shutil.copytree(saved, opened.out)
    (folder,) = (opened.out / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]["state.json"]
    (folder / "state.json").write_text(json.dumps(state | {"version": 1}))
    with pytest.raises(ConfigError, match="a run of an earlier release"), opened():
        pass
    assert load_run(opened.out)[1].state["step"] == SAVED_AT
