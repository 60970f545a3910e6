"""Reads tensors from a file that somebody else wrote, and that may be damaged, hostile, or no checkpoint at all."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mrm_stream.errors import CheckpointError, command_line
from mrm_stream.storage.access import check_readable, is_file, is_folder, is_there, matching

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAME_LIMIT = 100
"""Characters of a tensor's name that a message repeats."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_OF_A_RUN = ("encoder.safetensors", "config.yaml", "checkpoints")
"""What a run's directory holds: its encoder, once it is complete, and what tells that it is one before."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file: .safetensors, or a file of torch.save, of which nothing but tensors is unpickled.

    Tensors of the latter may lie in the file, mapped: they are for copying from.

    Raises:
        CheckpointError: The file is absent, damaged, or holds something else.
        StorageError: It may not be read.
    """
    check_is_file(path)
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            "is damaged, or holds Python objects, which could run code when they are read",
            where=path,
            remedy="Convert it to safetensors where it comes from.",
        ) from None
    except Exception as error:
        # Of a file that is none of theirs, the readers say KeyError, IndexError, struct.error, AssertionError, ...
        raise CheckpointError(
            f"cannot be read: {type(error).__name__}", where=path, remedy="Fetch or write it again."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError("holds no table of tensors, nor one named `model`", where=path)
    return dict(content)


def check_is_file(path: Path) -> None:
    """Check that there is a file to read tensors from: a pipe would never end, nor /dev/zero.

    Raises:
        CheckpointError: There is none, or something else: of a folder, what to give in its place.
        StorageError: It may not be read.
    """
    if not is_there(path):
        raise CheckpointError("no such file", where=path)
    if is_folder(path):
        raise _folder(path)
    if not is_file(path):
        raise CheckpointError("is not a regular file", where=path, remedy="Give the file of a checkpoint.")
    check_readable(path)


def fault_of(tensor: Tensor) -> str | None:
    """Return what keeps a tensor, (...), from being weights, or None: a copy of integers would be wrong in silence."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "is sparse, nested or quantized"
    if tensor.is_meta:
        return "has a shape but no values"
    if tensor.dtype not in _DTYPES:
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    return None


def name_to_tell(name: str) -> str:
    """Return a tensor's name as a message may repeat it: the file may call it anything.

    Example:
        >>> name_to_tell("blocks.0.norm1.weight"), name_to_tell("a" * 200 + chr(27))[-6:]
        ('blocks.0.norm1.weight', "aa'...")
    """
    if len(name) <= _NAME_LIMIT and name.isprintable():
        return name
    return ascii(name[:_NAME_LIMIT]) + ("..." if len(name) > _NAME_LIMIT else "")


def _folder(path: Path) -> CheckpointError:
    """Return the error for a folder, which names the file in it that was probably meant."""
    names = [entry.name for entry in matching(path, "*")]
    encoder, *marks = _OF_A_RUN
    files = [name for name in names if name.endswith(_SUFFIXES)]
    if encoder in files:
        remedy = f"It holds an encoder: give {path / encoder}."
    elif set(marks) <= set(names):
        remedy = f"It is a run: {command_line('mrm-stream', 'export', '--run', path)} --out FILE.safetensors saves one."
    elif len(files) == 1:
        remedy = f"Did you mean {path / files[0]}?"
    else:
        remedy = "Name the file itself."
    return CheckpointError(
        "is a folder, where the file of a checkpoint or of an exported encoder is wanted", where=path, remedy=remedy
    )


def _unpickled(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    # The reference code and MAE save their command line beside the weights; it is a plain bag of settings.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old protocols and of sparse tensors
        # Mapped: a slice of the file cannot be longer than the file. Read as records, a tensor may claim more numbers
        # than its record has, and torch then reads what lies behind it in memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_zip(path: Path) -> None:
    """torch.save compresses nothing; what is mapped, torch does not compare with its CRC."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise CheckpointError(
                    "is a zip with compressed members, as torch.save writes none",
                    where=path,
                    remedy="Fetch or write it again; if it is an archive of several files, unpack it first.",
                )
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f"is damaged: the checksum of {name_to_tell(damaged)} is another",
            where=path,
            remedy="Fetch or write it again.",
        )
