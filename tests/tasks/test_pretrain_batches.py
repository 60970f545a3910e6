"""Where packing, decoding and training meet: what one makes, the other takes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrm_stream.config.pretrain import ON_RESUME, MethodConfig, PretrainConfig, PretrainDataConfig
from mrm_stream.decode import jpeg
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.images.checks import MAX_PIXELS, MAX_SIDE
from mrm_stream.packing.images.sizes import target_size
from mrm_stream.records import Batch
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.tasks.pretrain import Pretraining
from mrm_stream.tasks.pretrain_batches import BatchMaker
from tests.config.test_resume import changed
from tests.decode.fake_gpu import DEVICE, FakeGpu


def test_the_largest_image_that_is_packed_by_default_is_one_that_is_decoded() -> None:
    """An image is shrunk by its short side alone: a strip may be as long as packing allows."""
    short_side = PackOptions().short_side
    strip = (short_side, MAX_SIDE)
    assert strip[0] * strip[1] <= MAX_PIXELS
    height, width = target_size(strip, short_side)
    assert height * width <= jpeg.MAX_PIXELS


SEEN = [name for name, rule in ON_RESUME.items() if rule == ON_RESUME["data.flip"]]
DRAWN = ["seed", "method.report_mask_ratio", "method.token_masking"]


def batch_of(packed: Path, config: PretrainConfig) -> dict[str, Tensor]:
    shards = ShardSet.open(packed, "train")
    maker = Pretraining(config).make_batches(shards, torch.device("cpu"))
    batch = maker([Draw(shards.sample(index), epoch=0) for index in range(16)]).take()
    maker.close()
    shards.close()
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


@pytest.mark.parametrize("name", SEEN + DRAWN)
def test_each_setting_of_what_the_model_sees_changes_what_it_sees(packed: Path, name: str) -> None:
    default, other = batch_of(packed, PretrainConfig()), batch_of(packed, changed(name))
    assert not all(torch.equal(default[field], other[field]) for field in default)


@pytest.mark.parametrize("whole", [False, True])
def test_on_a_gpu_all_of_a_batch_is_made_on_the_loader_s_stream(
    packed: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    gpu = FakeGpu()
    shards = ShardSet.open(packed, "train")
    data = PretrainDataConfig(hr_size=64, lr_size=32, report_length=24, backend="turbojpeg")
    draws = [Draw(shards.sample(index), epoch=0) for index in range(3)]
    with monkeypatch.context() as patch:
        gpu.install(patch)
        maker = BatchMaker(data, MethodConfig(), patches=16, tokenizer=shards.tokenizer_file(), seed=0, device=DEVICE)
        made = maker.whole(draws) if whole else maker(draws)
        assert gpu.happened == ["copy pinned on loader of GPU 1"] * 4 + ["record loader"]
        batch = made.take()
        assert gpu.happened[5] == "step waits for loader"
        assert len(gpu.happened) == 6 + len(fields(Batch))
    maker.close()
    assert batch.image_hr_BCHW.shape == (3, 1, 64, 64)
