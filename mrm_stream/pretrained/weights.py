"""Weights in and out: the reference code's checkpoints, encoders of other origin, and the encoder that users keep."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mrm_stream.errors import CheckpointError, MrmStreamError
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.files import fault_of, name_to_tell, read_checkpoint
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.strict import parse_json

ENCODER_FORMAT, ENCODER_VERSION = "mrm-stream-encoder", "1"

_ENCODER = "image_encoder."
# Own names to the reference's, by their beginnings; the first that fits holds.
_PREFIXES = (
    (_ENCODER, ""),
    ("image_decoder.mask_token", "mask_token"),
    ("image_decoder.", "decoder_"),
    ("report_decoder.image_embed.", "bert_mlp."),
    ("report_decoder.pooler_", "bert_encoder.model.bert.pooler.dense."),
    ("report_decoder.head.", "bert_encoder.model.cls.predictions."),
    ("report_decoder.", "bert_encoder.model.bert."),
)
# One bias, which the reference's checkpoints hold under two names, or, written by safetensors, under one of them.
_TIED_BIAS = ("bert_encoder.model.cls.predictions.decoder.bias", "bert_encoder.model.cls.predictions.bias")
_IMAGE_DECODER = ("decoder_", "mask_token")
_REPORT_DECODER = ("bert_",)
_CLASSIFIER = ("head.", "fc_norm.")
# Older releases of transformers save these constants with the weights.
_CONSTANTS = ("bert_encoder.model.bert.embeddings.position_ids", "bert_encoder.model.bert.embeddings.token_type_ids")

log = logging.getLogger(__name__)


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
    tensors = {reference_name(name): _portable(value) for name, value in model.state_dict().items()}
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
        *(_IMAGE_DECODER if model.image_decoder is None else ()),
        *(_REPORT_DECODER if model.report_decoder is None else ()),
    )
    _load(model, {reference_name(name): name for name in model.state_dict()}, tensors, ignored=skipped, where=where)


def save_reference(model: MaskedRecordModel, path: Path) -> None:
    """Publish all of the model under the reference's names: safetensors, or, for .pth, as the reference code does.

    Raises:
        MrmStreamError: The name ends otherwise than in .safetensors, .pth or .pt.
        StorageError: The file cannot be written.
    """
    _check_suffix(path, "the reference's form", (".pth", ".pt", ".safetensors"))
    tensors = to_reference(model)
    if path.suffix == ".safetensors":
        publish_bytes(path, safetensors.torch.save(tensors))
        return
    buffer = io.BytesIO()
    torch.save({"model": tensors}, buffer)
    publish_bytes(path, buffer.getvalue())


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
    names = {name.removeprefix(_ENCODER): name for name in model.state_dict() if name.startswith(_ENCODER)}
    # The decoder of MAE reconstructs other patches than ours.
    _load(model, names, tensors, ignored=(*_IMAGE_DECODER, *_CLASSIFIER), where=str(path))
    log.info("started from the image encoder of %s", path)


def export_encoder(model: MaskedRecordModel, path: Path, metadata: Mapping[str, str]) -> None:
    """Publish the image encoder as safetensors that timm's ViT loads by name; never the report decoder.

    Args:
        model: Whose encoder is wanted.
        path: Of the file.
        metadata: Written into the file beside format, architecture and normalisation; `config`, say.

    Raises:
        MrmStreamError: The name does not end in .safetensors.
        StorageError: The file cannot be written.
    """
    _check_suffix(path, "an encoder", (".safetensors",))
    state = model.state_dict()
    tensors = {n.removeprefix(_ENCODER): _portable(value) for n, value in state.items() if n.startswith(_ENCODER)}
    encoder = model.sizes.image_encoder
    architecture = {
        "width": encoder.width,
        "depth": encoder.depth,
        "heads": encoder.heads,
        "patch": model.sizes.patch,
        "image_size": model.data.lr_size,
    }
    normalisation = {"mean": model.data.mean, "std": model.data.std, "of": "grey in [0, 1], repeated to 3 channels"}
    own = {
        "format": ENCODER_FORMAT,
        "version": ENCODER_VERSION,
        "architecture": json.dumps(architecture),
        "normalisation": json.dumps(normalisation),
    }
    publish_bytes(path, _ordered(safetensors.torch.save(tensors, {**metadata, **own})))


def _ordered(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order, which is otherwise another each time."""
    length = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors begin at a multiple of 8 bytes.
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _check_suffix(path: Path, form: str, suffixes: tuple[str, ...]) -> None:
    # Readers go by the name: safetensors under another is taken for a pickle, and found damaged.
    if path.suffix not in suffixes:
        raise MrmStreamError(
            f"is no name for {form}", where=path, remedy=f"Give one that ends in {' or '.join(suffixes)}."
        )


def _portable(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()


def _load(
    model: MaskedRecordModel,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    *,
    ignored: tuple[str, ...],
    where: str,
) -> None:
    """Copy tensors into the model, all or none; `names` gives the model's name for each name of the file."""
    state = model.state_dict()
    absent = names.keys() - tensors.keys()
    unknown = [name for name in tensors.keys() - names.keys() if not name.startswith(ignored)]
    if absent:
        remedy = "Is it a ViT with CLS token and final norm, or a checkpoint of MRM? Nothing else can be loaded."
        raise CheckpointError(f"lacks {_listed(absent)}", where=where, remedy=remedy)
    if unknown:
        remedy = "It is of another architecture; choose another file, or sizes of the model that fit this one."
        raise CheckpointError(f"holds {_listed(unknown)}, which the model has not", where=where, remedy=remedy)
    for name, own in names.items():
        fault = fault_of(tensors[name])
        if fault is not None:
            raise CheckpointError(f"{name} {fault}", where=where, remedy="Save it as float32, dense.")
        if tensors[name].shape != state[own].shape:
            raise _misfit(name, tensors[name], state[own], where)
    with torch.no_grad():
        new = {own: tensors[name].to(state[own].dtype) for name, own in names.items()}
        for name, own in names.items():
            if not bool(new[own].isfinite().all()):
                remedy = "It was saved by a run that failed, or is damaged: choose an earlier one."
                raise CheckpointError(f"{name} holds numbers that are not finite", where=where, remedy=remedy)
        for own, value in new.items():
            state[own].copy_(value)


def _misfit(name: str, theirs: Tensor, ours: Tensor, where: str) -> CheckpointError:
    what = f"{name} has shape {tuple(theirs.shape)}, the model's has {tuple(ours.shape)}"
    remedy = "Set the sizes under `model` (and the vocabulary) to the checkpoint's, or choose another file."
    if name.endswith("pos_embed") and theirs.ndim == 3 and theirs.shape[2] == ours.shape[2]:
        grid = math.isqrt(max(theirs.shape[1] - 1, 0))
        what += f": positions of a grid of {grid} x {grid} patches"
        remedy = f"Set data.lr_size to {grid} times model.patch, or choose a checkpoint for the size that is set."
    return CheckpointError(what, where=where, remedy=remedy)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(map(name_to_tell, ordered[:3])) + more
