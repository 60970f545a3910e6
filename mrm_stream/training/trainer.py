"""The training loop: a task is stepped, logged, saved and exported, from an empty directory or a checkpoint.

What the loop promises, and how:

- **A run that is killed and resumed has the losses of one left alone, bit for bit.** Everything a step depends on is
  either a pure function of the step's number (order, crops, masks, dropout, learning rate) or part of a checkpoint
  (weights, moments, the running sums of the log). Nothing is drawn from a generator that runs on.
- **All ranks do the same at the same step.** A request to stop may reach one of them alone, and a disk may be full on
  the first: whatever one rank decides, all are asked or told (`Ranks`), so that none waits in a collective operation
  for one that has left.
- **The GPU never waits for the log.** Losses are added up on the device and read once a line; the next batches are
  made in a thread meanwhile (`Loader`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic

from torch import Tensor

from mrm_stream.distributed.launched import telling_launcher
from mrm_stream.distributed.runtime import Runtime, stop_on_signal
from mrm_stream.errors import TrainingError
from mrm_stream.storage.access import naming_files
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.training.checkpoint import Checkpoint, load_weights, save_checkpoint
from mrm_stream.training.engine import Engine
from mrm_stream.training.metrics import LossSums, MetricsLog
from mrm_stream.training.run_directory import COMPLETE, check_run, prepare_run
from mrm_stream.training.schedule import learning_rate, total_steps
from mrm_stream.training.start import choose_checkpoint, connect_ranks, initial_model, make_loader
from mrm_stream.training.task import B, Task
from mrm_stream.training.throughput import Throughput, throughput_of_all

MAX_SKIPPED_STEPS = 100
"""DeepSpeed itself skips steps with infinite gradients without end; more than a few mean that the run is lost."""

log = logging.getLogger(__name__)


def train(task: Task[B], runtime: Runtime) -> bool:
    """Run to the end, or until a signal asks to stop; every rank calls it.

    Returns:
        Whether the run is complete. A run that was stopped has saved, and resumes when it is started again.

    Raises:
        MrmStreamError: What the user must correct; checkpoints saved so far are whole.
    """
    with telling_launcher(), naming_files(), stop_on_signal() as stop:
        trainer = Trainer(task, runtime)
        try:
            settings = task.config.run
            log.info("%d samples, %d steps on %d rank(s)", len(trainer.source), trainer.steps, runtime.world)
            # Every step may have been taken before, and only the export be missing.
            weights = trainer.engine.state.weights() if trainer.is_at_the_end else {}
            stopping = False
            while not trainer.is_at_the_end and not stopping:
                trainer.train_step()
                # Before it is saved: a run that is killed after its last checkpoint has then logged all of it.
                if trainer.step % settings.log_every == 0 or trainer.is_at_the_end:
                    trainer.report()
                stopping = trainer.ranks.any(bool(stop))
                if trainer.step % settings.save_every == 0 or trainer.is_at_the_end or stopping:
                    weights = trainer.save()
            if not trainer.is_at_the_end:
                log.warning("stopped at step %d of %d; start it again to continue", trainer.step, trainer.steps)
                return False
            trainer.ranks.first(lambda: trainer.finish(weights))
            return True
        finally:
            trainer.close()


class Trainer(Generic[B]):
    """A run in progress on one rank: what the loop needs to step, log, save and finish."""

    def __init__(self, task: Task[B], runtime: Runtime) -> None:
        """Open the data, the model and the newest checkpoint; all ranks together. See `start.py` for the order.

        Raises:
            MrmStreamError: Whatever the user must correct before the run can begin.
        """
        self.task, self.config, self.runtime = task, task.config, runtime
        self.out = Path(self.config.run.out)
        self._open = ExitStack()
        with ExitStack() as opened:  # What has been opened is closed where the rest cannot be.
            opened.callback(self.close)
            self._start()
            opened.pop_all()
        # What the clock has seen: a stretch that an earlier process began is only in part this one's work.
        self._clock, self._clocked = time.perf_counter(), self.step

    def _start(self) -> None:
        task, runtime = self.task, self.runtime
        self.ranks = connect_ranks(self.config, runtime)
        seen = self.ranks.first(lambda: check_run(self.out, self.config))
        self.source = self.ranks.all(task.open_source)
        self._open.callback(self.source.close)
        self.steps = total_steps(len(self.source), self.config.optim)
        self.batches = self.ranks.all(lambda: task.make_batches(self.source, runtime.device))
        self._open.callback(self.batches.close)
        checkpoint = choose_checkpoint(self.ranks, self.out)
        model = self.ranks.all(lambda: initial_model(task, self.source, checkpoint))
        self.engine = Engine(model, self.config, runtime, task.loss_items)
        self.loader = self.ranks.all(lambda: make_loader(self.config, self.source, self.batches, runtime))
        self._open.callback(self.loader.close)
        self.sums = LossSums()
        self._throughput = Throughput(self.loader, self.batches, self.source)
        self.step, self.rate, self._skipped_before = 0, 0.0, 0
        if checkpoint is not None:
            self.ranks.all(lambda: self._resume(checkpoint))
            log.info("continuing at step %d of %d, from %s", self.step, self.steps, checkpoint.directory)
        self.metrics: MetricsLog | None = None  # On the first rank alone.
        self.ranks.first(lambda: self._begin(seen))

    @property
    def is_at_the_end(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= self.steps

    @property
    def epoch(self) -> float:
        """Passes over the data set so far."""
        return self.step * self.config.optim.batch_size / len(self.source)

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the run began, in processes before this one too: a restart buys no new patience."""
        return self._skipped_before + self.engine.skipped_steps

    def train_step(self) -> None:
        """Take the next batch and one optimizer step."""
        batch = next(self.loader).take()
        self.rate = learning_rate(self.epoch, self.config.optim)
        self.sums.add(self.engine.step(batch, step=self.step, learning_rate=self.rate))
        self.step += 1

    def report(self) -> None:
        """Log the stretch since the last report.

        Raises:
            TrainingError: The loss is no longer a finite number, or too many samples or steps had to be skipped.
        """
        assert self.step > self._clocked, "nothing was trained since the last report"
        now = time.perf_counter()
        losses = self.sums.finite_means(self.step)
        self.sums.clear()
        elapsed = now - self._clock
        samples_per_s = (self.step - self._clocked) * self.config.optim.batch_size / elapsed
        bad = len({index for found in self.ranks.gather(self.loader.bad_samples) for index in found})
        flow = throughput_of_all(self.ranks.gather(self._throughput.since_last()), elapsed)
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
        parts = ", ".join(
            f"{shown} {losses[name]:.3f}" for name, shown in self.task.shown_losses.items() if name in losses
        )
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
        weights, moments = self.engine.state.weights(), self.engine.state.moments()
        windows = self.ranks.gather(self.sums.state_dict())
        loaders = self.ranks.gather(self.loader.state_dict())
        bad = sorted({index for loader in loaders for index in loader["bad_samples"]})
        state = {
            "step": self.step,
            "loader": {**loaders[0], "bad_samples": bad},
            "windows": windows,
            "skipped_steps": self.skipped_steps,
            "task": self.task.name,
        }
        identity = self.task.identity(self.source)
        assert not identity.keys() & state.keys(), "the task's identity takes the place of the trainer's own state"
        state.update(identity)

        def publish() -> Path:
            _check_finite(weights, self.step)
            return save_checkpoint(self.out, weights, moments, state, keep=self.config.run.keep)

        saved = self.ranks.first(publish)
        log.info("step %d: saved %s", self.step, saved)
        return weights

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Export what the task keeps, and leave the mark of a complete run; on the first rank."""
        # A model of its own: under ZeRO-3 the trained one is spread over the ranks.
        model = self.task.make_model(self.source)
        load_weights(model, weights, self.out)
        path = self.out / self.task.exported
        self.task.export(model, path)
        publish_bytes(self.out / COMPLETE, json.dumps({"step": self.step, "exported": path.name}).encode() + b"\n")
        log.info("complete: what is kept is %s", path)

    def close(self) -> None:
        """Stop the threads and close the files; another process may train in the directory from now on."""
        self._open.close()

    def _begin(self, seen: Sequence[Path]) -> None:
        self._open.callback(prepare_run(self.out, self.config, seen).close)
        self.metrics = MetricsLog(self.out, resumed_at=self.step)
        self._open.callback(self.metrics.close)

    def _check_budgets(self, bad: int) -> None:
        if bad > self.config.data.max_bad_samples:
            raise TrainingError(
                f"{bad} damaged samples were replaced, more than data.max_bad_samples allows",
                where=self.source.directory,
                remedy="Repair the set (`mrm-stream repair DIR --root SOURCE`), or raise data.max_bad_samples.",
            )
        if self.skipped_steps > MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{self.skipped_steps} steps were skipped, as their gradients were not finite",
                where="training",
                remedy="Resume the run with optim.gradient_clip=1, or begin another with a smaller optim.base_lr.",
            )

    def _resume(self, checkpoint: Checkpoint) -> None:
        state: dict[str, Any] = checkpoint.state
        self.engine.state.load_moments(checkpoint.moments())
        self.loader.load_state_dict(state["loader"])
        self.sums.load_state_dict(state["windows"], self.runtime.rank, self.runtime.device)
        self.step, self._skipped_before = state["step"], state["skipped_steps"]


def _check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise TrainingError(
                f"{name} holds numbers that are not finite at step {step}; nothing was saved",
                where="training",
                remedy="Resume the run with optim.gradient_clip=1, or begin another with a smaller optim.base_lr.",
            )
