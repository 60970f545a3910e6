"""Pre-training by masked record modelling: a radiograph's encoder learns from what is masked of image and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mrm_stream.config.file import load_config, portable_settings
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.errors import CheckpointError, ConfigError
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.encoder import export_encoder
from mrm_stream.pretrained.files import check_is_file
from mrm_stream.pretrained.initialise import initialise
from mrm_stream.records import Batch
from mrm_stream.storage.access import is_there
from mrm_stream.stream.opening import open_data
from mrm_stream.stream.source import Needs, SampleSource, reports_of
from mrm_stream.tasks.pretrain_batches import BatchMaker
from mrm_stream.training.checkpoint import Checkpoint, load_weights, newest_checkpoint
from mrm_stream.training.run_directory import CONFIG


@dataclass(frozen=True)
class Pretraining:
    """The task, as `mrm_stream.training.task.Task` describes one."""

    config: PretrainConfig

    name: ClassVar[str] = "pretraining"
    exported: ClassVar[str] = "encoder.safetensors"
    shown_losses: ClassVar[Mapping[str, str]] = {
        "image_loss": "image",
        "report_loss": "report",
        "report_loss_masked": "masked words",
    }

    def open_source(self) -> SampleSource:
        """Open the radiographs and reports to train on.

        Raises:
            ShardError: They are absent or damaged, or have no reports; or the tokenizer beside them is not the one that
                they were packed with.
        """
        source = open_data(self.config.data, Needs(reports=True))
        source.tokenizer_file()
        return source

    def make_batches(self, source: SampleSource, device: torch.device) -> BatchMaker:
        """Return the transform that decodes, crops and masks."""
        config = self.config
        return BatchMaker(
            config.data,
            config.method,
            patches=(config.data.lr_size // config.model.patch) ** 2,
            tokenizer=source.tokenizer_file(),
            seed=config.seed,
            device=device,
        )

    def make_model(self, source: SampleSource) -> MaskedRecordModel:
        """Return a freshly initialised model for the source's tokenizer."""
        return make_model(self.config, reports_of(source).vocabulary)

    def check_weights(self, weights: Path) -> None:
        """Refuse what is no file, naming the file that may have been meant."""
        check_is_file(weights)

    def start_from(self, model: nn.Module, weights: Path) -> None:
        """Start from a checkpoint of MRM, MAE or a timm ViT, or from an exported encoder."""
        assert isinstance(model, MaskedRecordModel)
        initialise(model, weights)

    def loss_items(self, batch: Batch) -> Tensor:
        """Return the number of masked tokens in a batch, a float64 scalar."""
        return masked_tokens(batch)

    def identity(self, source: SampleSource) -> Mapping[str, Any]:
        """Return the tokenizer: with another one, the report decoder's embeddings would mean other words."""
        reports = reports_of(source)
        return {"vocabulary": reports.vocabulary, "tokenizer_sha256": reports.tokenizer_sha256}

    def check_identity(self, saved: Mapping[str, Any], source: SampleSource, where: Path) -> None:
        """Compare the tokenizer of a checkpoint with the source's.

        Raises:
            CheckpointError: They differ.
        """
        ours = self.identity(source)
        if {name: saved.get(name) for name in ours} != ours:
            raise CheckpointError(
                "was trained with another tokenizer than the shards'",
                where=where,
                remedy="Give the packed set that the run was begun with, or begin a new run.",
            )

    def export(self, model: nn.Module, path: Path) -> None:
        """Publish the image encoder alone: the report decoder may have memorised reports."""
        assert isinstance(model, MaskedRecordModel)
        export_encoder(model, path, {"config": portable_settings(self.config)})


def make_model(config: PretrainConfig, vocabulary: int) -> MaskedRecordModel:
    """Return a freshly initialised model for a tokenizer of so many entries; the same weights for the same seed."""
    torch.manual_seed(config.seed)
    return MaskedRecordModel(config.model, config.method, config.data, vocabulary=vocabulary)


def masked_tokens(batch: Batch) -> Tensor:
    """Return the number of masked tokens in a batch, a float64 scalar."""
    return batch.token_is_masked_BL.sum(dtype=torch.float64)


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
