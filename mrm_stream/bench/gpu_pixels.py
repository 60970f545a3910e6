"""The data's side of `mrm-stream bench gpu`: do decoders agree, does each batch keep its pixels, how fast are they."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mrm_stream.bench.gpu_setting import Found, Setting, SkippedError
from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.decode.crops import random_crops
from mrm_stream.decode.dali import DaliDecoder
from mrm_stream.decode.decoder import make_decoder
from mrm_stream.decode.device import Handover
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.formats.folder import MANIFEST
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.packing.workers import Workers
from mrm_stream.records import Batch
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.stream.loader import Loader, LoaderOptions
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.tasks.pretrain_batches import BatchMaker

Backend = Literal["dali", "turbojpeg"]
BACKENDS: tuple[Backend, ...] = ("dali", "turbojpeg")
_BLOCK = 16
"""Side in pixels of the squares whose mean grey is compared: decoders differ by less, patients by far more."""
_LATE_CYCLES = 20_000_000
"""Of the GPU's clock, some 10 ms: by then the loader has made the next batches."""


def check_data(setting: Setting) -> Found:
    """Make and pack synthetic radiographs, unless they are there."""
    count, side = (60, 96) if setting.tiny else (640, 1024)
    started = time.perf_counter()
    if not (setting.shards / MANIFEST).exists():
        shutil.rmtree(setting.work, ignore_errors=True)
        write_phantom_tree(setting.work / "tree", count, size=side, workers=setting.threads)
        options = PackOptions(short_side=side, samples_per_shard=16 if setting.tiny else 64, vocabulary=1000)
        pack("mimic", setting.work / "tree", setting.shards, options=options, workers=Workers(setting.threads))
    shards = ShardSet.open(setting.shards, "train")
    mean = sum(len(shards.sample(index).jpeg) for index in range(len(shards))) / len(shards)
    return Found({"samples": len(shards), "kb_a_jpeg": mean / 1e3, "make_s": time.perf_counter() - started})


def check_decoders(setting: Setting) -> Found:
    """Decode the same crops of the same JPEGs by DALI and by libjpeg-turbo, and compare the grey levels."""
    if not has_dali():
        raise SkippedError("the package nvidia.dali is not installed")
    shards = ShardSet.open(setting.shards, "train")
    jpegs = [bytes(shards.sample(index).jpeg) for index in range(min(len(shards), 256))]
    crops = random_crops(jpeg_sizes(jpegs), 0, np.arange(len(jpegs)), seed=1)
    size = load_config(PretrainConfig, None, setting.settings()).data.hr_size
    images = []
    for backend in BACKENDS:
        decoder = make_decoder(backend, size=size, threads=setting.threads, device=setting.device)
        images.append(decoder.decode(jpegs, crops).short().cpu())
        decoder.close()
    apart = (images[0] - images[1]).abs()
    found = Found({"images": len(jpegs), "within_1": float((apart <= 1).double().mean())})
    # What `tests/decode/test_agreement.py` promises of DALI on a GPU.
    found.at_most("mean", float(apart.double().mean()), 1)
    found.at_most("beyond_4", float((apart > 4).double().mean()), 1e-3)
    found.at_most("largest", float(apart.max()), 48)
    return found


def check_pixels(setting: Setting) -> Found:
    """Read each batch long after the loader has gone on, and compare it with the same batch made on the CPU.

    A buffer that was filled anew, or memory that was handed out again, shows as a square of another grey.
    """
    count, batch = (12, 4) if setting.tiny else (200, 32)
    expected = _late_readings(setting, "turbojpeg", torch.device("cpu"), count, batch)
    found = Found({"batches": count, "batch": batch})
    for backend in BACKENDS:
        if backend == "dali" and not has_dali():
            found.numbers["dali"] = "not installed"
            continue
        compare_readings(found, backend, _late_readings(setting, backend, setting.device, count, batch), expected)
    return found


def compare_readings(found: Found, name: str, readings: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    """Keep by how much what was read differs from what should have been: views (B, C, H, W), and other tensors."""
    pairs = [pair for one, other in zip(readings, expected, strict=True) for pair in zip(one, other, strict=True)]
    views = [(ours - theirs).abs().max() for ours, theirs in pairs if ours.ndim == 4]
    others = sum(not torch.equal(ours, theirs) for ours, theirs in pairs if ours.ndim != 4)
    grey = float(torch.stack(views).max())  # Python's own max() would pass over what is not a number.
    found.at_most(f"{name}_grey_levels", grey, 6)
    found.at_most(f"{name}_other_tensors", others, 0)


def check_decoding(setting: Setting) -> Found:
    """Time decoding to batches on the device, and by which share for the JPEG engine DALI is fastest."""
    count, batch = (6, 8) if setting.tiny else (24, 256)
    found = Found({"batch": batch, "threads": setting.threads})
    for backend in BACKENDS:
        if backend == "dali" and not has_dali():
            found.numbers["dali"] = "not installed"
            continue
        config = _config(setting, backend, batch)
        with loading(config, setting) as (loader, _):
            for _ in range(3):
                next(loader).take()
            started = time.perf_counter()
            for _ in range(count):
                made = next(loader).take()
            float(made.image_lr_BCHW.sum())  # Waits for the GPU.
        found.numbers[f"{backend}_per_s"] = count * batch / (time.perf_counter() - started)
    if setting.device.type == "cuda" and has_dali():
        for load in (0.0, 0.35, 0.65, 0.9, 1.0):
            found.numbers[f"dali_engine_{load:g}_per_s"] = _dali_rate(setting, load, batch)
    return found


def _dali_rate(setting: Setting, engine_load: float, batch: int) -> float:
    shards = ShardSet.open(setting.shards, "train")
    jpegs = [bytes(shards.sample(index % len(shards)).jpeg) for index in range(batch)]
    crops = random_crops(jpeg_sizes(jpegs), 0, np.arange(batch), seed=1)
    decoder = DaliDecoder(
        size=_config(setting, "dali", batch).data.hr_size,
        threads=setting.threads,
        device=setting.device,
        engine_load=engine_load,
    )
    decoder.decode(jpegs, crops)
    started = time.perf_counter()
    for _ in range(6):
        decoder.decode(jpegs, crops)
    decoder.close()
    return 6 * batch / (time.perf_counter() - started)


@contextmanager
def loading(config: PretrainConfig, setting: Setting) -> Iterator[tuple[Loader[Handover[Batch]], BatchMaker]]:
    """Yield the loader of a run on the packed set, and what makes its batches."""
    shards = ShardSet.open(setting.shards, "train")
    maker = Pretraining(config).make_batches(shards, setting.device)
    with _loader(config, shards, maker) as loader:
        yield loader, maker
    maker.close()


def _loader(config: PretrainConfig, shards: ShardSet, maker: BatchMaker) -> Loader[Handover[Batch]]:
    options = LoaderOptions(
        seed=config.seed,
        batch_size=config.optim.batch_size,
        window=config.data.window,
        prefetch=config.data.prefetch,
        max_bad_samples=0,
    )
    return Loader(shards, maker, options)


def _config(setting: Setting, backend: Backend, batch: int) -> PretrainConfig:
    more = f"data.backend={backend}", f"optim.batch_size={batch}", "data.prefetch=4", "optim.warmup_epochs=0"
    return load_config(PretrainConfig, None, setting.settings(*more))


def _late_readings(
    setting: Setting, backend: Backend, device: torch.device, count: int, batch: int
) -> list[list[Tensor]]:
    """Return of each batch the mean grey of squares of both views, and its other tensors, as read late."""
    config = _config(setting, backend, batch)
    shards = ShardSet.open(setting.shards, "train")
    maker = Pretraining(config).make_batches(shards, device)
    readings = []
    with _loader(config, shards, maker) as loader:
        for handover in islice(loader, count):
            made = handover.take()
            if device.type == "cuda":
                torch.cuda._sleep(_LATE_CYCLES)  # type: ignore[no-untyped-call]
            views = [
                functional.avg_pool2d(view, _BLOCK * view.shape[-1] // config.data.hr_size) * config.data.std * 255
                for view in (made.image_hr_BCHW, made.image_lr_BCHW)
            ]
            others = [made.patch_noise_BN, made.token_ids_BL, made.token_is_masked_BL]
            readings.append([*views, *(other.clone() for other in others)])
            del made, handover  # As the step does, long before the GPU has read it.
    maker.close()
    return [[reading.cpu() for reading in each] for each in readings]


def has_dali() -> bool:
    """Return whether DALI is installed."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
