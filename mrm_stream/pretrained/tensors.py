"""Tensors of a file into a model, all or none; and out of one, as any reader can take them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mrm_stream.errors import CheckpointError, MrmStreamError
from mrm_stream.pretrained.files import fault_of, name_to_tell


def load_tensors(
    model: nn.Module,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    *,
    ignored: tuple[str, ...],
    where: str,
) -> None:
    """Copy a file's tensors into a model.

    Args:
        model: Of the same sizes.
        names: The model's name for each name of the file that it must have.
        tensors: The file's, by its own names.
        ignored: Beginnings of names that the file may have besides.
        where: Named in errors.

    Raises:
        CheckpointError: A tensor is absent, unknown, of another shape, or not finite; the model is as it was.
    """
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


def check_suffix(path: Path, form: str, suffixes: tuple[str, ...]) -> None:
    """Raise MrmStreamError where a file's name would promise something else than its content."""
    # Readers go by the name: safetensors under another is taken for a pickle, and found damaged.
    if path.suffix not in suffixes:
        raise MrmStreamError(
            f"is no name for {form}", where=path, remedy=f"Give one that ends in {' or '.join(suffixes)}."
        )


def portable(value: Tensor) -> Tensor:
    """Return a copy of a tensor (of any shape) in float32, on the CPU, that shares no memory."""
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()


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
