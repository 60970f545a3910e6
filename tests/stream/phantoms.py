"""A packed set of phantoms with the real decoding and masking, and fingerprints of what a model would be given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mrm_stream.config.pretrain import MethodConfig, PretrainDataConfig
from mrm_stream.decode.device import Handover
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.records import Batch
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.stream.loader import Draw, Loader, LoaderOptions
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.tasks.pretrain_batches import BatchMaker

SEED = 5
WINDOW = 2
NAMES = tuple(field.name for field in fields(Batch))
Seen = tuple[int, str, tuple[str, ...]]
"""Epoch, key, and a digest of each tensor of the sample: crop and flip, patch noise, tokens, masked tokens."""


def packed_phantoms(factory: pytest.TempPathFactory) -> Path:
    """About 90 training phantoms in shards of 16, packed once a session; not to be written to."""
    folder = factory.getbasetemp() / "phantoms"
    if not folder.exists():
        tree = factory.mktemp("tree")
        write_phantom_tree(tree, 100, size=64, workers=1, progress=None)
        pack("mimic", tree, folder, options=PackOptions(short_side=64, samples_per_shard=16, vocabulary=300))
    return folder


def batch_maker(
    shards: ShardSet, *, threads: int = 1, size: int = 32, backend: Literal["dali", "turbojpeg"] = "turbojpeg"
) -> BatchMaker:
    """The transform of a run, at small sizes."""
    data = PretrainDataConfig(hr_size=size, lr_size=size // 2, report_length=24, threads=threads, backend=backend)
    return BatchMaker(
        data, MethodConfig(), patches=16, tokenizer=shards.tokenizer_file(), seed=SEED, device=torch.device("cpu")
    )


def fingerprints(maker: Callable[[Sequence[Draw]], Handover[Batch]]) -> Callable[[Sequence[Draw]], list[Seen]]:
    """A transform that makes the batch and returns a fingerprint of each of its samples."""

    def transform(draws: Sequence[Draw]) -> list[Seen]:
        batch = maker(draws).take()
        tensors = [getattr(batch, name) for name in NAMES]
        return [
            (draw.epoch, draw.sample.key, tuple(_digest(tensor[slot]) for tensor in tensors))
            for slot, draw in enumerate(draws)
        ]

    return transform


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def load(shards: ShardSet, transform: Callable[[Sequence[Draw]], Any], **choices: Any) -> Loader[Any]:
    """The real loader."""
    which = {name: choices.pop(name) for name in ("rank", "world") if name in choices}
    defaults = {"seed": SEED, "batch_size": 24, "window": WINDOW, "prefetch": 2, "max_bad_samples": 100}
    return Loader(shards, transform, LoaderOptions(**{**defaults, **choices}), **which)
