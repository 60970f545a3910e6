"""What `run.init` names -> a model that starts from it, whatever project the file is of."""

from __future__ import annotations

import logging
from pathlib import Path

from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.encoder import load_encoder
from mrm_stream.pretrained.files import read_checkpoint
from mrm_stream.pretrained.reference import load_reference

log = logging.getLogger(__name__)


def initialise(model: MaskedRecordModel, path: Path) -> None:
    """Start a model from a file: all of it from a checkpoint of the reference, else its image encoder alone.

    Args:
        model: Its positions become the file's, too: they are what the file's weights were trained with.
        path: Checkpoint of MRM, MAE or a timm ViT, or an encoder of `export_encoder`.

    Raises:
        CheckpointError: The file cannot be read, or is of another architecture or size.
    """
    tensors = read_checkpoint(path)
    if "bert_mlp.weight" in tensors:
        load_reference(model, tensors, where=str(path))
        log.info("started from all of %s", path)
        return
    load_encoder(model, tensors, where=str(path))
    log.info("started from the image encoder of %s", path)
