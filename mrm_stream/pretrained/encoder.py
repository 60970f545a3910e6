"""The image encoder alone: from files of MAE, timm and this project, and to the file that users keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.pretrained.reference import IMAGE_DECODER
from mrm_stream.pretrained.tensors import check_suffix, load_tensors, portable
from mrm_stream.storage.publish import publish_bytes
from mrm_stream.strict import parse_json

ENCODER_FORMAT, ENCODER_VERSION = "mrm-stream-encoder", "1"

_ENCODER = "image_encoder."
_CLASSIFIER = ("head.", "fc_norm.")


def load_encoder(model: MaskedRecordModel, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load the tensors of a ViT, with the names that MAE and timm give them, into the image encoder.

    Args:
        model: Its positions become the file's, too: they are what the file's weights were trained with.
        tensors: Of the file; its classifier, or MAE's decoder, is skipped.
        where: Named in errors.

    Raises:
        CheckpointError: It is of another architecture or size.
    """
    names = {name.removeprefix(_ENCODER): name for name in model.state_dict() if name.startswith(_ENCODER)}
    # The decoder of MAE reconstructs other patches than ours.
    load_tensors(model, names, tensors, ignored=(*IMAGE_DECODER, *_CLASSIFIER), where=where)


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
    check_suffix(path, "an encoder", (".safetensors",))
    state = model.state_dict()
    tensors = {n.removeprefix(_ENCODER): portable(value) for n, value in state.items() if n.startswith(_ENCODER)}
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
