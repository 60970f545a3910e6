"""The whole model under the names of the reference code (Zhou et al.'s), in and out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.tensors import check_suffix, load_tensors, portable
from mrm_stream.storage.publish import publish_bytes

# Own names to the reference's, by their beginnings; the first that fits holds.
_PREFIXES = (
    ("image_encoder.", ""),
    ("image_decoder.mask_token", "mask_token"),
    ("image_decoder.", "decoder_"),
    ("report_decoder.image_embed.", "bert_mlp."),
    ("report_decoder.pooler_", "bert_encoder.model.bert.pooler.dense."),
    ("report_decoder.head.", "bert_encoder.model.cls.predictions."),
    ("report_decoder.", "bert_encoder.model.bert."),
)
# One bias, which the reference's checkpoints hold under two names, or, written by safetensors, under one of them.
_TIED_BIAS = ("bert_encoder.model.cls.predictions.decoder.bias", "bert_encoder.model.cls.predictions.bias")
IMAGE_DECODER = ("decoder_", "mask_token")
_REPORT_DECODER = ("bert_",)
# Older releases of transformers save these constants with the weights.
_CONSTANTS = ("bert_encoder.model.bert.embeddings.position_ids", "bert_encoder.model.bert.embeddings.token_type_ids")


def reference_name(name: str) -> str:
    """Return the reference code's name of one of `MaskedRecordModel`'s tensors.

    Example:
        >>> reference_name("image_decoder.blocks.0.norm1.weight")
        'decoder_blocks.0.norm1.weight'
    """
    own, theirs = next(pair for pair in _PREFIXES if name.startswith(pair[0]))
    return theirs + name.removeprefix(own)


def to_reference(model: MaskedRecordModel) -> dict[str, Tensor]:
    """Return every tensor of the model under the reference's names: float32, on the CPU, no memory shared.

    Those of a decoder that the model lacks are absent. `decoder_report_embed`, of a model with hybrid features,
    is a name that the reference does not know.
    """
    tensors = {reference_name(name): portable(value) for name, value in model.state_dict().items()}
    if _TIED_BIAS[0] in tensors:
        tensors[_TIED_BIAS[1]] = tensors[_TIED_BIAS[0]].clone()
    return tensors


def load_reference(model: MaskedRecordModel, tensors: Mapping[str, Tensor], *, where: str = "checkpoint") -> None:
    """Load tensors under the reference's names; those of a decoder that the model lacks are skipped.

    Args:
        model: Of the same sizes.
        tensors: As from `to_reference`, or the `model` of the reference code's own checkpoint.
        where: Named in errors.

    Raises:
        CheckpointError: A tensor is absent, unknown, or of another shape; the model is as it was.
    """
    tensors = {name: value for name, value in tensors.items() if name not in _CONSTANTS}
    biases = [tensors.pop(name) for name in _TIED_BIAS if name in tensors]
    if biases:
        tensors[_TIED_BIAS[0]] = biases[0]
    skipped = (
        *(IMAGE_DECODER if model.image_decoder is None else ()),
        *(_REPORT_DECODER if model.report_decoder is None else ()),
    )
    load_tensors(
        model, {reference_name(name): name for name in model.state_dict()}, tensors, ignored=skipped, where=where
    )


def save_reference(model: MaskedRecordModel, path: Path) -> None:
    """Publish all of the model under the reference's names: safetensors, or, for .pth, as the reference code does.

    Raises:
        MrmStreamError: The name ends otherwise than in .safetensors, .pth or .pt.
        StorageError: The file cannot be written.
    """
    check_suffix(path, "the reference's form", (".pth", ".pt", ".safetensors"))
    tensors = to_reference(model)
    if path.suffix == ".safetensors":
        publish_bytes(path, safetensors.torch.save(tensors))
        return
    buffer = io.BytesIO()
    torch.save({"model": tensors}, buffer)
    publish_bytes(path, buffer.getvalue())
