"""A pre-training run, from an empty directory or from its newest checkpoint, to the saved encoder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrm_stream.config.file import load_config, portable_settings
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.decode.device import Handover
from mrm_stream.distributed.launched import telling_launcher
from mrm_stream.distributed.ranks import Ranks
from mrm_stream.distributed.runtime import Runtime, stop_on_signal
from mrm_stream.errors import CheckpointError, ConfigError, MrmStreamError, TrainingError
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.weights import export_encoder, initialise
from mrm_stream.records import Batch
from mrm_stream.storage.access import is_there, naming_files
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.stream.loader import Loader, LoaderOptions
from mrm_stream.stream.opening import open_data
from mrm_stream.stream.source import SampleSource
from mrm_stream.tasks.pretrain_batches import BatchMaker
from mrm_stream.training.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint, save_checkpoint
from mrm_stream.training.engine import Engine, batch_sizes
from mrm_stream.training.metrics import MetricsLog, Window
from mrm_stream.training.run_directory import COMPLETE, CONFIG, ENCODER, check_paths, check_run, prepare_run
from mrm_stream.training.schedule import learning_rate, total_steps
from mrm_stream.training.throughput import Flow, flow_of_all

MAX_SKIPPED_STEPS = 100
"""DeepSpeed itself leaves out steps with infinite gradients without end; more than a few mean that the run is lost."""
_SHOWN = {"image_loss": "image", "report_loss": "report", "report_loss_masked": "hidden words"}

log = logging.getLogger(__name__)


def make_model(config: PretrainConfig, vocabulary: int) -> MaskedRecordModel:
    """Return a freshly initialised model for a tokenizer of so many entries; the same weights for the same seed."""
    torch.manual_seed(config.seed)
    return MaskedRecordModel(config.model, config.method, config.data, vocabulary=vocabulary)


def make_batches(config: PretrainConfig, shards: SampleSource, device: torch.device) -> BatchMaker:
    """Return the transform from a data set's samples to a model's batches.

    Raises:
        ShardError: The tokenizer beside the shards is not the one that they were packed with.
    """
    return BatchMaker(
        config.data,
        config.method,
        patches=(config.data.lr_size // config.model.patch) ** 2,
        tokenizer=shards.tokenizer_file(),
        seed=config.seed,
        device=device,
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's weights into a model.

    Raises:
        CheckpointError: The two do not have the same tensors; the first that differs is named.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        place = "the checkpoint" if name in weights else "the model"
        raise CheckpointError(
            f"{name} is only in {place}", where=where, remedy="Use the configuration that it was trained with."
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weights[name].shape)}, the model's has {tuple(tensor.shape)}",
                where=where,
                remedy="Use the configuration, and shards with the tokenizer, that it was trained with.",
            )
    model.load_state_dict(weights)


def load_run(run: Path) -> tuple[PretrainConfig, Checkpoint, MaskedRecordModel]:
    """Return a run's settings, its newest whole checkpoint, and the model with its weights, on the CPU.

    Raises:
        ConfigError: There is no run here.
        CheckpointError: It has saved nothing yet, or what it saved is damaged.
    """
    if not is_there(run / CONFIG):
        raise ConfigError("there is no run here", where=run, remedy="Give the directory that a run was told as --out.")
    config = load_config(PretrainConfig, run / CONFIG)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError("has no checkpoint yet", where=run, remedy="Wait until the run has saved one.")
    model = make_model(config, checkpoint.state["vocabulary"])
    load_weights(model, checkpoint.weights(), checkpoint.directory)
    return config, checkpoint, model


def _refusal(config: PretrainConfig, world: int) -> MrmStreamError | None:
    """Return what is wrong with the settings on this machine, if anything is."""
    try:
        check_paths(config)
        batch_sizes(config.optim, world)
    except MrmStreamError as error:
        return error
    return None


def _check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise TrainingError(
                f"{name} holds numbers that are not finite at step {step}; nothing was saved",
                where="training",
                remedy="Resume the run with optim.gradient_clip=1, or begin another with a smaller optim.base_lr.",
            )


class Pretraining:
    """A run in progress on one rank: what the loop needs to step, log, save and stop."""

    def __init__(self, config: PretrainConfig, runtime: Runtime) -> None:
        """Open the data, the model and the newest checkpoint; all ranks together.

        Raises:
            MrmStreamError: Whatever the user must mend before the run can begin.
        """
        self.config, self.runtime = config, runtime
        self.out = Path(config.run.out)
        # Refused before anything slow.
        refusal = _refusal(config, runtime.world)
        self.ranks = Ranks(runtime, run=config.run.out, connect_s=config.run.connect_s, refusal=refusal)
        # Nothing is written until all that can be refused was, a checkpoint taken up among it: a run that is found
        # here must stay what it is, and a mistake in a new one leaves no directory behind.
        seen = self.ranks.first(lambda: check_run(self.out, config))
        # Each rank opens for itself, on its machine: what only one lacks ends them all, and all say why.
        self.shards = self.ranks.all(lambda: open_data(config.data))
        self.steps = total_steps(len(self.shards), config.optim)
        self.batches = self.ranks.all(lambda: make_batches(config, self.shards, runtime.device))
        checkpoint = self._newest()
        model = self.ranks.all(lambda: self._make_model(checkpoint))
        self.engine = Engine(model, config, runtime)
        self.loader = self.ranks.all(self._make_loader)
        self.window = Window()
        self._flow = Flow(self.loader, self.batches, self.shards)
        self.step, self.rate, self._skipped_before = 0, 0.0, 0
        if checkpoint is not None:
            self.ranks.all(lambda: self._take_up(checkpoint))
            log.info("continuing at step %d of %d, from %s", self.step, self.steps, checkpoint.directory)
        self.metrics: MetricsLog | None = None  # On the first rank alone.
        self.ranks.first(lambda: self._begin(seen))
        # What the clock has seen: a stretch that an earlier process began is only in part this one's work.
        self._clock, self._clocked = time.perf_counter(), self.step

    @property
    def epoch(self) -> float:
        """Passes over the data set so far."""
        return self.step * self.config.optim.batch_size / len(self.shards)

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the run began, in processes before this one too: a restart buys no new patience."""
        return self._skipped_before + self.engine.skipped_steps

    def train_step(self) -> None:
        """Take the next batch and one optimizer step."""
        batch = next(self.loader).take()
        self.rate = learning_rate(self.epoch, self.config.optim)
        self.window.add(self.engine.step(batch, step=self.step, learning_rate=self.rate))
        self.step += 1

    def report(self) -> None:
        """Log the stretch since the last report.

        Raises:
            TrainingError: The loss is no longer a finite number, or too many samples or steps had to be left out.
        """
        assert self.step > self._clocked, "nothing was trained since the last report"
        now = time.perf_counter()
        losses = self.window.finite_means(self.step)
        self.window.clear()
        elapsed = now - self._clock
        samples_per_s = (self.step - self._clocked) * self.config.optim.batch_size / elapsed
        bad = len({index for found in self.ranks.gather(self.loader.bad_samples) for index in found})
        flow = flow_of_all(self.ranks.gather(self._flow.since_last()), elapsed)
        values = {
            "epoch": self.epoch,
            **losses,
            "learning_rate": self.rate,
            "samples_per_s": samples_per_s,
            **flow,
            "bad_samples": bad,
            "skipped_steps": self.skipped_steps,
        }
        self._clock, self._clocked = now, self.step
        self._check_budgets(bad)
        # A disk that is full ends all ranks, not the first alone.
        self.ranks.first(lambda: self.metrics.write(self.step, values) if self.metrics is not None else None)
        left = timedelta(seconds=round((self.steps - self.step) * self.config.optim.batch_size / samples_per_s))
        parts = ", ".join(f"{shown} {losses[name]:.3f}" for name, shown in _SHOWN.items() if name in losses)
        log.info(
            "step %d/%d, epoch %.1f: loss %.3f (%s); %.1f samples/s, waiting %.0f %%, %s left",
            self.step,
            self.steps,
            self.epoch,
            losses["loss"],
            parts,
            samples_per_s,
            100 * values["waiting_share"],
            left,
        )

    def save(self) -> dict[str, Tensor]:
        """Publish a checkpoint; return the whole weights, on the first rank.

        Raises:
            TrainingError: A weight is not a finite number: such weights are not saved over good ones.
        """
        weights, moments = self.engine.full_weights(), self.engine.full_moments()
        windows = self.ranks.gather(self.window.state_dict())
        loaders = self.ranks.gather(self.loader.state_dict())
        bad = sorted({index for loader in loaders for index in loader["bad_samples"]})
        state = {
            "step": self.step,
            "loader": {**loaders[0], "bad_samples": bad},
            "windows": windows,
            "skipped_steps": self.skipped_steps,
            "vocabulary": self.shards.reports.vocabulary,
            "tokenizer_sha256": self.shards.reports.tokenizer_sha256,
        }

        def publish() -> Path:
            _check_finite(weights, self.step)
            return save_checkpoint(self.out, weights, moments, state, keep=self.config.run.keep)

        saved = self.ranks.first(publish)
        log.info("step %d: saved %s", self.step, saved)
        return weights

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Export the encoder and leave the mark of a complete run; on the first rank."""
        # A model of its own: under ZeRO-3 the trained one is spread over the ranks.
        model = make_model(self.config, self.shards.reports.vocabulary)
        load_weights(model, weights, self.out)
        export_encoder(model, self.out / ENCODER, {"config": portable_settings(self.config)})
        publish_bytes(self.out / COMPLETE, json.dumps({"step": self.step, "encoder": ENCODER}).encode() + b"\n")
        log.info("complete: the encoder is %s", self.out / ENCODER)

    def close(self) -> None:
        """Stop the threads and close the files."""
        self.loader.close()
        self.batches.close()
        self.shards.close()
        if self.metrics is not None:
            self.metrics.close()

    def _newest(self) -> Checkpoint | None:
        def choose() -> Path | None:
            newest = newest_checkpoint(self.out)
            return newest.directory if newest is not None else None

        # One rank chooses: ranks that each looked for themselves could continue from different steps.
        directory = self.ranks.first(choose)
        return self.ranks.all(lambda: open_checkpoint(directory) if directory is not None else None)

    def _make_model(self, checkpoint: Checkpoint | None) -> MaskedRecordModel:
        model = make_model(self.config, self.shards.reports.vocabulary)
        if checkpoint is not None:
            load_weights(model, checkpoint.weights(), checkpoint.directory)
        elif self.config.run.init:
            initialise(model, Path(self.config.run.init))
        return model

    def _make_loader(self) -> Loader[Handover[Batch]]:
        config = self.config
        options = LoaderOptions(
            seed=config.seed,
            batch_size=config.optim.batch_size,
            window=config.data.window,
            prefetch=config.data.prefetch,
            max_bad_samples=config.data.max_bad_samples,
        )
        return Loader(self.shards, self.batches, options, rank=self.runtime.rank, world=self.runtime.world)

    def _begin(self, seen: Sequence[Path]) -> None:
        self._lock = prepare_run(self.out, self.config, seen)
        self.metrics = MetricsLog(self.out, resumed_at=self.step)

    def _check_budgets(self, bad: int) -> None:
        if bad > self.config.data.max_bad_samples:
            raise TrainingError(
                f"{bad} damaged samples were replaced, more than data.max_bad_samples allows",
                where=self.shards.directory,
                remedy="Mend the set (`mrm-stream repair DIR --root SOURCE`), or raise data.max_bad_samples.",
            )
        if self.skipped_steps > MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{self.skipped_steps} steps were skipped, as their gradients were not finite",
                where="training",
                remedy="Resume the run with optim.gradient_clip=1, or begin another with a smaller optim.base_lr.",
            )

    def _take_up(self, checkpoint: Checkpoint) -> None:
        state: dict[str, Any] = checkpoint.state
        reports = self.shards.reports
        if (state["vocabulary"], state["tokenizer_sha256"]) != (reports.vocabulary, reports.tokenizer_sha256):
            raise CheckpointError(
                "was trained with another tokenizer than the shards'",
                where=checkpoint.directory,
                remedy="Give the packed set that the run was begun with, or begin a new run.",
            )
        self.engine.load_moments(checkpoint.moments())
        self.loader.load_state_dict(state["loader"])
        self.window.load_state_dict(state["windows"], self.runtime.rank, self.runtime.device)
        self.step, self._skipped_before = state["step"], state["skipped_steps"]


def pretrain(config: PretrainConfig, runtime: Runtime) -> bool:
    """Run to the end, or until a signal asks to stop; every rank calls it.

    Returns:
        Whether the run is complete. A run that was stopped has saved, and goes on when it is started again.

    Raises:
        MrmStreamError: What the user must mend; checkpoints saved so far are whole.
    """
    with telling_launcher(), naming_files(), stop_on_signal() as stop:
        run = Pretraining(config, runtime)
        try:
            log.info("%d samples, %d steps on %d rank(s)", len(run.shards), run.steps, runtime.world)
            # Every step may have been taken before, and only the encoder be missing.
            weights = run.engine.full_weights() if run.step == run.steps else {}
            stopping = False
            while run.step < run.steps and not stopping:
                run.train_step()
                at_the_end = run.step == run.steps
                # Before it is saved: a run that is killed after its last checkpoint has then logged all of it.
                if run.step % config.run.log_every == 0 or at_the_end:
                    run.report()
                stopping = run.ranks.any(bool(stop))
                if run.step % config.run.save_every == 0 or at_the_end or stopping:
                    weights = run.save()
            if run.step < run.steps:
                log.warning("stopped at step %d of %d; start it again to continue", run.step, run.steps)
                return False
            run.ranks.first(lambda: run.finish(weights))
            return True
        finally:
            run.close()
