"""Who makes pairs of views: ours as training does, the reference's transforms in a DataLoader, and bare decoding.

A pair is a random crop of 448 x 448, perhaps mirrored and normalised, and the same crop at 224 x 224. The reference
code (Zhou et al., ICLR 2023) makes three channels of every radiograph before it crops, and again after; a second
contender does all the same, but keeps grey images grey. Where a choice had to be made it favours these two: their
workers run before the clock starts, and they make no reports, masks and noise, where ours makes them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Literal

import simplejpeg
import torch

from mrm_stream.bench.data_result import DALI, OURS, Run
from mrm_stream.bench.data_sets import SEED, SPLIT, WINDOW, tar_names
from mrm_stream.bench.machine import cpu_seconds, peak_bytes
from mrm_stream.config.pretrain import MethodConfig, PretrainDataConfig
from mrm_stream.stream.loader import Loader, LoaderOptions
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.tasks.pretrain_batches import BatchMaker

PATCHES = 196
_FASTER = 8
"""Times as many samples for contenders that take a fraction of the reference's time."""
_WARM = 4
"""Batches before the clock starts: by then threads, workers and buffers are there."""


def run_pairs(name: str, directory: Path, count: int, batch: int, threads: int) -> Run:
    """Measure one contender in this process.

    Args:
        name: Of the contender.
        directory: Of the packed set.
        count: Samples that the reference is timed over; the others have more of them.
        batch: Samples of a batch; divides `count`.
        threads: Or worker processes.
    """
    contenders: dict[str, partial[Iterator[int]]] = {
        OURS: partial(_ours, backend="turbojpeg"),
        DALI: partial(_ours, backend="dali"),
        "pil+torchvision": partial(_reference, channels=3),
        "the same, all grey": partial(_reference, channels=1),
        "libjpeg-turbo": partial(_bare),
    }
    timed = count // batch * (1 if contenders[name].func is _reference else _FASTER)
    # Each worker makes as many batches as any other.
    timed += -(timed + _WARM) % threads
    # Yields 0 once all is imported and open, then the sizes of the batches that are handed on.
    sizes = contenders[name](directory, timed + _WARM, batch, threads)
    assert next(sizes) == 0
    warm = sum(islice(sizes, _WARM))
    start, cpu_start = time.perf_counter(), cpu_seconds()
    samples = sum(islice(sizes, timed))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    assert warm == _WARM * batch, f"{name} warmed up with {warm} samples"
    assert samples == timed * batch, f"{name} made {samples} samples, not {timed * batch}"
    assert next(sizes, None) is None, f"{name} made more than it was asked for"  # its processes end here
    return Run(samples, seconds, 1000 * cpu / samples, peak_bytes())


def batch_maker(shards: ShardSet, threads: int, backend: Literal["turbojpeg", "dali"] = "turbojpeg") -> BatchMaker:
    """Return what makes a run's batches, with the default settings."""
    return BatchMaker(
        PretrainDataConfig(threads=threads, backend=backend),
        MethodConfig(),
        patches=PATCHES,
        tokenizer=shards.tokenizer_file(),
        seed=SEED,
        device=torch.device("cpu"),
    )


def load(shards: ShardSet, maker: BatchMaker, batch: int) -> Loader[Any]:
    """Return the loader of a run on one rank, with the default settings."""
    options = LoaderOptions(seed=SEED, batch_size=batch, window=WINDOW, prefetch=2, max_bad_samples=0)
    return Loader(shards, maker, options)


def _ours(
    directory: Path, batches: int, batch: int, threads: int, *, backend: Literal["turbojpeg", "dali"]
) -> Iterator[int]:
    shards = ShardSet.open(directory, SPLIT)
    maker = batch_maker(shards, threads, backend)
    yield 0
    with load(shards, maker, batch) as loader:
        for made in islice(loader, batches):
            yield len(made.take().image_lr_BCHW)
    maker.close()


def _reference(directory: Path, batches: int, batch: int, threads: int, *, channels: int) -> Iterator[int]:
    import webdataset
    from torch.utils.data import DataLoader

    tars = tar_names(directory)
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED).shuffle(100).to_tuple("jpg", "tok")
    dataset = samples.map(_ReferenceTransforms(channels)).repeat().with_epoch(batches * batch // threads)
    yield 0
    # Forked, as on Linux by default; a spawned process, as this is, would spawn them, and they would import it all.
    loader = DataLoader(dataset, batch_size=batch, num_workers=threads, multiprocessing_context="fork")
    for hr_BCHW, lr_BCHW in loader:
        assert hr_BCHW.shape[1:] == (channels, 448, 448)
        yield len(lr_BCHW)


class _ReferenceTransforms:
    """The reference's transforms, in its order and with its settings: three channels, or one."""

    def __init__(self, channels: int) -> None:
        from torchvision import transforms

        self._mode = "RGB" if channels == 3 else "L"
        data = PretrainDataConfig()
        bicubic = transforms.InterpolationMode.BICUBIC
        self._crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    data.hr_size, scale=data.crop_area, ratio=data.crop_ratio, interpolation=bicubic
                ),
                transforms.RandomHorizontalFlip(data.flip),
                transforms.Grayscale(channels),
                transforms.ToTensor(),
                transforms.Normalize([data.mean], [data.std]),
            ]
        )
        self._shrink = transforms.Resize(data.lr_size, interpolation=bicubic, antialias=False)

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (hr, lr) of a sample."""
        from PIL import Image

        hr_CHW: torch.Tensor = self._crop(Image.open(io.BytesIO(sample[0])).convert(self._mode))
        lr_CHW: torch.Tensor = self._shrink(hr_CHW)
        return hr_CHW, lr_CHW


def _bare(directory: Path, batches: int, batch: int, threads: int) -> Iterator[int]:
    shards = ShardSet.open(directory, SPLIT)
    # Read beforehand: decoding is all that is timed.
    jpegs = [bytes(shards.sample(index).jpeg) for index in range(len(shards))]
    endless = chain.from_iterable(repeat(jpegs))
    yield 0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(batches):
            yield sum(pool.map(_decode, islice(endless, batch)))


def _decode(jpeg: bytes) -> int:
    simplejpeg.decode_jpeg(jpeg, "GRAY")
    return 1
