"""What the trainer must know of a task: pre-training is one, a classifier another.

The trainer steps, logs, saves, resumes and stops; it knows no model and no loss. A task knows nothing of ranks and
steps: it makes a model and batches for it, and says what is kept at the end. So whatever makes training
faster or safer serves every task, and a new task is one file.

A task's model is a `torch.nn.Module` that is called as `model(batch, loss_items)` and returns scalars by name, `loss`
among them; see `Task.loss_items`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mrm_stream.config.base import TrainConfig
from mrm_stream.decode.device import Handover
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.source import SampleSource

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

B = TypeVar("B", bound="DataclassInstance")
"""A task's batch: a dataclass of tensors whose first dimension is the samples."""


class Batches(Protocol[B]):
    """The transform from samples to batches; called in the loader's thread."""

    seconds_decoding: float
    bytes_decoded: int
    """So far: time and JPEG bytes of what became batches."""

    def __call__(self, draws: Sequence[Draw]) -> Handover[B]:
        """Return a batch, for the step to take.

        Raises:
            DamagedSamplesError: Some samples cannot be decoded; the loader calls again with others in their places.
        """

    def close(self) -> None:
        """Stop its threads."""


class Task(Protocol[B]):
    """One thing that can be trained."""

    @property
    def config(self) -> TrainConfig:
        """Its settings."""

    @property
    def name(self) -> str:
        """Kept in each checkpoint: a run of one task is not resumed as another's."""

    @property
    def exported(self) -> str:
        """Name of the file that `export` publishes in the run's directory."""

    @property
    def shown_losses(self) -> Mapping[str, str]:
        """Scalars of the model that the log shows beside `loss`, each with its short name there."""

    def open_source(self) -> SampleSource:
        """Open the samples to train on.

        Raises:
            MrmStreamError: They are absent or damaged, or lack what the task needs.
        """

    def make_batches(self, source: SampleSource, device: torch.device) -> Batches[B]:
        """Return the transform from the source's samples to the model's batches."""

    def make_model(self, source: SampleSource) -> nn.Module:
        """Return a freshly initialised model, on the CPU or the current default device; the same for the same seed."""

    def check_weights(self, weights: Path) -> None:
        """Refuse what cannot be a file of `run.init`, without reading all of it: before any rank is started.

        Raises:
            MrmStreamError: There is no such file, or it is none of weights.
        """

    def start_from(self, model: nn.Module, weights: Path) -> None:
        """Load the file of `run.init` into a fresh model.

        Raises:
            CheckpointError: It cannot be read, or is of another architecture.
        """

    def loss_items(self, batch: B) -> Tensor:
        """Return over how many items (masked tokens, labels, ...) the losses of a batch are means, a float64 scalar.

        Ranks and micro-batches have different numbers of them, so that a mean of their means would weigh some items
        more than others, and depend on how a step is cut up. The engine adds the numbers up over a step and hands the
        model their mean over its passes; a model that divides its sum by that has one mean over the step's items. Where
        every sample counts alike, return the number of samples, and the model need not look at it. On any device.
        """

    def identity(self, source: SampleSource) -> Mapping[str, Any]:
        """Return what of the data the weights depend on, in JSON's types; a checkpoint holds it."""

    def check_identity(self, saved: Mapping[str, Any], source: SampleSource, where: Path) -> None:
        """Compare what a checkpoint holds with `identity`.

        Raises:
            CheckpointError: The weights belong to other data.
        """

    def export(self, model: nn.Module, path: Path) -> None:
        """Publish what of the trained model is kept: for pre-training, the encoder alone."""
