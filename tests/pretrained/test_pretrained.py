"""Weights in the reference's, MAE's, timm's and our own files."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer, vit_base_patch16_224
from torch import Tensor

from mrm_stream.config.pretrain import MethodConfig, ModelConfig, PretrainDataConfig
from mrm_stream.errors import CheckpointError, MrmStreamError
from mrm_stream.model.mrm import MaskedRecordModel
from mrm_stream.model.patches import sincos_positions
from mrm_stream.pretrained.encoder import export_encoder
from mrm_stream.pretrained.files import read_checkpoint
from mrm_stream.pretrained.initialise import initialise
from mrm_stream.pretrained.reference import load_reference, save_reference, to_reference
from mrm_stream.records import Batch

Maker = Callable[..., MaskedRecordModel]
BIAS = "bert_encoder.model.cls.predictions.bias"
DECODER_BIAS = "bert_encoder.model.cls.predictions.decoder.bias"


def _same(one: MaskedRecordModel, other: MaskedRecordModel, part: str = "") -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if name.startswith(part))


def _timm_vit(**given: Any) -> VisionTransformer:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **given}
    return VisionTransformer(num_classes=5, global_pool="token", **sizes)


# The reference's names


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("method", [{}, {"report_loss_weight": 0.0}, {"hybrid_features": True}])
def test_checkpoints_in_the_references_naming_load_and_save(
    make_model: Maker, tmp_path: Path, name: str, method: dict[str, Any]
) -> None:
    model, other = make_model(seed=1, **method), make_model(seed=2, **method)
    save_reference(model, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not _same(model, other)
    load_reference(other, read_checkpoint(tmp_path / name))
    assert _same(model, other)
    if name.endswith(".pth"):
        assert torch.load(tmp_path / name, weights_only=True)["model"].keys() == to_reference(model).keys()


def test_a_decoder_that_is_left_out_is_passed_over(make_model: Maker) -> None:
    whole = make_model(seed=1)
    for weight in ("image_loss_weight", "report_loss_weight"):
        part = make_model(seed=2, **{weight: 0.0})
        load_reference(part, to_reference(whole))
        assert _same(part, whole)


def test_saved_tensors_share_no_memory_with_the_model_nor_each_other(make_model: Maker) -> None:
    model = make_model()
    saved = to_reference(model)
    assert torch.equal(saved[BIAS], saved[DECODER_BIAS])
    assert len({value.data_ptr() for value in saved.values()}) == len(saved)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for value in saved.values():
        value.fill_(3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_is_saved_as_float32(make_model: Maker) -> None:
    assert {value.dtype for value in to_reference(make_model().bfloat16()).values()} == {torch.float32}


def test_what_other_releases_of_transformers_write_is_taken_up(make_model: Maker) -> None:
    model = make_model(seed=1)
    for name in (BIAS, DECODER_BIAS):  # safetensors keeps one name of a tied tensor, and not always the same
        tensors = to_reference(model)
        del tensors[name]
        tensors["bert_encoder.model.bert.embeddings.position_ids"] = torch.arange(12)[None]
        other = make_model(seed=2)
        load_reference(other, tensors)
        assert _same(model, other)


def test_the_references_own_checkpoint_file_is_taken_up(make_model: Maker, tmp_path: Path) -> None:
    model, other = make_model(seed=1), make_model(seed=2)
    content = {"model": to_reference(model), "epoch": 3, "args": argparse.Namespace(lr=0.1, output_dir="x")}
    torch.save(content, tmp_path / "checkpoint.pth")
    initialise(other, tmp_path / "checkpoint.pth")
    assert _same(model, other)


def test_full_size_checkpoint_and_encoder_go_both_ways(tmp_path: Path) -> None:
    with torch.device("meta"):  # Xavier's draws take longer than all of the rest.
        model = MaskedRecordModel(ModelConfig(), MethodConfig(), PretrainDataConfig(), vocabulary=30_000)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    state = model.state_dict()
    for value in state.values():
        value.uniform_(-1, 1)
    before = {name: value.clone() for name, value in state.items()}

    path = tmp_path / "model.safetensors"
    save_reference(model, path)
    for value in state.values():
        value.zero_()
    tensors = read_checkpoint(path)
    load_reference(model, tensors)
    assert all(torch.equal(value, before[name]) for name, value in state.items())

    # Encoder, image decoder, report decoder; a block of a ViT has 12 tensors, a layer of BERT 16.
    assert len(tensors) == (6 + 12 * 12) + (8 + 4 * 12) + (16 + 6 * 16)
    for name, shape in {
        "pos_embed": (1, 197, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "decoder_pos_embed": (1, 197, 768),
        "decoder_blocks.3.mlp.fc1.weight": (3072, 768),
        "decoder_pred.weight": (3072, 768),
        "bert_mlp.weight": (384, 768),
        "bert_encoder.model.bert.embeddings.position_embeddings.weight": (100, 384),
        "bert_encoder.model.bert.encoder.layer.5.intermediate.dense.weight": (1536, 384),
        "bert_encoder.model.bert.pooler.dense.weight": (384, 384),
        "bert_encoder.model.cls.predictions.decoder.weight": (30_000, 384),
        BIAS: (30_000,),
        DECODER_BIAS: (30_000,),
    }.items():
        assert tensors[name].shape == shape, name

    export_encoder(model, tmp_path / "encoder.safetensors", {})
    with torch.device("meta"):
        vit = vit_base_patch16_224(num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True, assign=True)
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[f"image_encoder.{name}"]), name


# Encoders of other origin


def _mae(with_decoder: bool) -> dict[str, Tensor]:
    vit = _timm_vit()
    encoder = {name: value for name, value in vit.state_dict().items() if not name.startswith("head.")}
    if not with_decoder:
        return encoder
    decoder = {"mask_token": torch.rand(1, 1, 8), "decoder_embed.weight": torch.rand(8, 16)}
    return {**encoder, **decoder, "decoder_pred.weight": torch.rand(192, 8)}


@pytest.mark.parametrize("origin", ["timm", "timm nested", "mae", "mae with decoder", "exported"])
def test_an_encoder_of_any_origin_is_taken_up_and_nothing_else(make_model: Maker, tmp_path: Path, origin: str) -> None:
    torch.manual_seed(5)
    model, path = make_model(seed=2), tmp_path / "weights.pth"
    content: dict[str, Any]
    if origin == "exported":
        path = tmp_path / "weights.safetensors"
        export_encoder(make_model(seed=1), path, {})
        content = load_file(path)
    elif origin.startswith("timm"):
        content = dict(_timm_vit().state_dict())
        torch.save({"model": content} if "nested" in origin else content, path)
    else:
        content = _mae("decoder" in origin)
        torch.save({"model": content}, path)
    initialise(model, path)
    for name, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, content[name]), name
    untouched = make_model(seed=2)
    for part in ("image_decoder.", "report_decoder."):
        assert _same(model, untouched, part)


@pytest.mark.parametrize("origin", ["mae", "exported"])
def test_an_encoder_brings_its_positions_and_the_image_decoder_keeps_the_setting_s(
    make_model: Maker, tmp_path: Path, origin: str
) -> None:
    """Weights know the positions that they were trained with; what is exported later holds these, not the setting's."""
    mae, path = sincos_positions(16, 4, "mae"), tmp_path / "weights.safetensors"
    if origin == "mae":
        save_file({**_mae(True), "pos_embed": mae, "decoder_pos_embed": sincos_positions(8, 4, "mae")}, path)
    else:
        export_encoder(make_model(positions="mae"), path, {})
    model = make_model(positions="reference")
    initialise(model, path)
    assert model.image_decoder is not None
    assert torch.equal(model.image_encoder.pos_embed, mae)
    assert torch.equal(model.image_decoder.pos_embed, sincos_positions(12, 4, "reference"))
    export_encoder(model, tmp_path / "exported.safetensors", {})
    assert torch.equal(load_file(tmp_path / "exported.safetensors")["pos_embed"], mae)


@torch.no_grad()
def test_a_timm_vit_keeps_its_features_and_its_learned_positions(
    make_model: Maker, batch: Batch, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model, vit = make_model(), _timm_vit().eval()
    vit.pos_embed.normal_()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    initialise(model, tmp_path / "vit.safetensors")
    ours_BVD = model.image_encoder(batch.image_lr_BCHW, torch.arange(16).expand(3, -1))
    theirs_BVD = vit.forward_features(batch.image_lr_BCHW.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours_BVD, theirs_BVD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 48}, r"pos_embed has shape \(1, 37, 16\).*\(1, 17, 16\).*grid of 6 x 6 patches"),
        ({"embed_dim": 24}, r"has shape \(1, 1, 24\), the model's has \(1, 1, 16\)"),
        ({"depth": 3}, r"holds blocks\.2\..* and \d+ more, which the model has not"),
        ({"depth": 1}, r"lacks blocks\.1\."),
        ({"init_values": 0.1}, r"holds blocks\.0\.ls1\.gamma"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight has shape \(16, 1, 8, 8\), the model's has \(16, 3, 8, 8\)"),
        ({"class_token": False}, r"lacks cls_token"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(
    make_model: Maker, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "vit.safetensors"
    pool = {"global_pool": "avg", "fc_norm": False} if "class_token" in change else {}
    vit = _timm_vit(**change) if not pool else VisionTransformer(32, 8, 3, 5, embed_dim=16, depth=2, num_heads=2,
                                                                 **pool, **change)  # fmt: skip
    save_file(vit.state_dict(), path)
    model = make_model()
    with pytest.raises(CheckpointError, match=message) as caught:
        initialise(model, path)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    assert _same(model, make_model())


def test_a_checkpoint_of_another_vocabulary_or_with_holes_is_refused(make_model: Maker) -> None:
    model = make_model()
    name = "bert_encoder.model.bert.embeddings.word_embeddings.weight"
    for tensors, message in (
        (to_reference(model) | {name: torch.rand(7, 16)}, rf"{name} has shape \(7, 16\), the model's has \(40, 16\)"),
        (to_reference(model) | {"surprise": torch.rand(1)}, "holds surprise, which the model has not"),
        ({n: value for n, value in to_reference(model).items() if n != "bert_mlp.bias"}, "lacks bert_mlp.bias"),
        ({n: value for n, value in to_reference(model).items() if "bias" not in n}, "lacks .* and [0-9]+ more"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_reference(model, {n: value + 1 for n, value in tensors.items()})
        assert _same(model, make_model())


# Files


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_objects_in_a_file_are_not_unpickled(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    for name, save in (("a.pth", torch.save), ("b.pth", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        save({"model": _Hostile(target)}, tmp_path / name)
        with pytest.raises(CheckpointError, match="could run code"):
            read_checkpoint(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_damaged_or_absent_files_are_refused(make_model: Maker, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(path)
    save_reference(make_model(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[:1000], whole[: len(whole) // 2], whole[:-1000]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    for content in ({"model": {"a": 1}}, [torch.rand(2)], {"epoch": 3}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="holds no table of tensors"):
            read_checkpoint(tmp_path / "a.pth")


def test_exported_encoder_gives_timm_the_same_features(make_model: Maker, batch: Batch, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "encoder.safetensors"
    export_encoder(model, path, {"config": "recipe: reference", "step": "7"})
    vit = VisionTransformer(32, 8, num_classes=0, global_pool="", embed_dim=16, depth=2, num_heads=2).eval()
    vit.load_state_dict(load_file(path), strict=True)
    theirs_BVD = vit(batch.image_lr_BCHW.expand(-1, 3, -1, -1))
    every_BN = torch.arange(16).expand(3, -1)
    ours_BVD = model.image_encoder(batch.image_lr_BCHW, every_BN)
    torch.testing.assert_close(ours_BVD, theirs_BVD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours_BVD[:, 1:].mean(dim=1), theirs_BVD[:, 1:].mean(dim=1), rtol=1e-5, atol=1e-5)
    backwards_BVD = model.image_encoder(batch.image_lr_BCHW, every_BN.flip(1))
    torch.testing.assert_close(backwards_BVD[:, 1:].flip(1), ours_BVD[:, 1:], rtol=1e-4, atol=1e-5)


def test_equal_encoders_are_equal_files(make_model: Maker, tmp_path: Path) -> None:
    model, paths = make_model(), [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        export_encoder(model, path, {"config": "a: µ", "step": "7", "of": "b"})
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], "pt") as file:
        assert file.metadata()["config"] == "a: µ"
        assert all(torch.equal(file.get_tensor(n), v) for n, v in model.image_encoder.state_dict().items())


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.pt", "encoder"])
def test_an_encoder_is_not_written_under_a_name_that_promises_something_else(
    make_model: Maker, tmp_path: Path, name: str
) -> None:
    with pytest.raises(MrmStreamError, match=r"is no name for an encoder\n  Give one that ends in .safetensors"):
        export_encoder(make_model(), tmp_path / name, {})
    assert not (tmp_path / name).exists()


def test_nor_is_the_references_form(make_model: Maker, tmp_path: Path) -> None:
    with pytest.raises(MrmStreamError, match=r"ends in .pth or .pt or .safetensors"):
        save_reference(make_model(), tmp_path / "model.bin")
    assert not (tmp_path / "model.bin").exists()


def test_export_holds_the_encoder_alone_and_says_what_it_is(make_model: Maker, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "encoder.safetensors"
    export_encoder(model, path, {"config": "recipe: reference"})
    assert load_file(path).keys() == model.image_encoder.state_dict().keys()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "mrm-stream-encoder"
    assert metadata["config"] == "recipe: reference"
    expected = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}
    assert json.loads(metadata["architecture"]) == expected
    normalisation = json.loads(metadata["normalisation"])
    assert (normalisation["mean"], normalisation["std"]) == (0.4978, 0.2449)
