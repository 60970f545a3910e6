from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mrm_stream.config.file import dump_config, load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.decode.crops import central_crops
from mrm_stream.decode.decoder import make_decoder
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.errors import CheckpointError, ConfigError, MrmStreamError, ShardError
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.stream.source import reports_of
from mrm_stream.tasks.pretrain import make_model
from mrm_stream.training.checkpoint import save_checkpoint
from mrm_stream.visual.figures import PANEL, RIGHT, WRONG, check_picture, curves_figure, reconstruction_figure
from mrm_stream.visual.reconstructions import ReconstructedSample, Word, counted_words, reconstruct_samples, words_of

SETTINGS = """
data: {hr_size: 64, lr_size: 32, report_length: 40, threads: 1}
model:
  patch: 8
  image_encoder: {width: 32, depth: 1, heads: 2}
  image_decoder: {width: 32, depth: 1, heads: 2}
  report_decoder: {width: 32, depth: 1, heads: 2, feed_forward: 32}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visual")
    write_phantom_tree(folder / "tree", 24, size=80, workers=1, progress=None)
    pack("mimic", folder / "tree", folder / "shards", options=PackOptions(short_side=80, vocabulary=300))
    return folder / "shards"


def make_run(folder: Path, shards: Path, *overrides: str, **changes: object) -> Path:
    """A run with a checkpoint of an untrained model."""
    (folder / "settings.yaml").write_text(SETTINGS)
    config: PretrainConfig = load_config(
        PretrainConfig, folder / "settings.yaml", [f"data.shards={shards}", *overrides]
    )
    reports = reports_of(ShardSet.open(shards, "train"))
    state = {"step": 1, "vocabulary": reports.vocabulary, "tokenizer_sha256": reports.tokenizer_sha256, **changes}
    weights = make_model(config, reports.vocabulary).state_dict()
    save_checkpoint(folder, {k: v.clone() for k, v in weights.items()}, {"step": torch.ones(1)}, state, keep=1)
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def test_a_run_s_samples_are_masked_and_reconstructed(shards: Path, tmp_path: Path) -> None:
    samples = reconstruct_samples(make_run(tmp_path, shards), None, None, 2)
    assert len(samples) == 2
    assert samples[0].key != samples[1].key
    assert {sample.split for sample in samples} == {"validate"}
    for sample in samples:
        # 3/4 of the 16 patches of 16 x 16 pixels are masked; the others are the truth, in both pictures.
        patches = [
            (slice(top, top + 16), slice(left, left + 16)) for top in range(0, 64, 16) for left in range(0, 64, 16)
        ]
        masked = [patch for patch in patches if (sample.masked_HW[patch] == 128).all()]
        assert len(masked) == 12
        for patch in patches:
            if patch not in masked:
                np.testing.assert_array_equal(sample.masked_HW[patch], sample.truth_HW[patch])
                np.testing.assert_array_equal(sample.reconstructed_HW[patch], sample.truth_HW[patch])
        assert sample.truth_HW.std() > 20
        assert sample.words[0].truth == "final"
        assert any(word.reconstructed is not None for word in sample.words)
        assert any(word.reconstructed is None for word in sample.words)


def test_they_are_spread_over_the_split_and_the_truth_is_what_the_radiographs_decode_to(
    shards: Path, tmp_path: Path
) -> None:
    samples, opened = (
        reconstruct_samples(make_run(tmp_path, shards), shards, "train", 3),
        ShardSet.open(shards, "train"),
    )
    assert len(opened) >= 9
    last = len(opened) - 1
    drawn = [opened.sample(index) for index in (0, round(last / 2), last)]
    assert [sample.key for sample in samples] == [sample.key for sample in drawn]
    jpegs = [sample.jpeg for sample in drawn]
    decoder = make_decoder("turbojpeg", size=64, threads=1, device=torch.device("cpu"))
    truth_BHW = decoder.decode(jpegs, central_crops(jpeg_sizes(jpegs)))[:, 0].numpy()
    decoder.close()
    opened.close()
    for sample, truth_HW in zip(samples, truth_BHW, strict=True):
        np.testing.assert_array_equal(sample.truth_HW, truth_HW)


def test_the_picture_of_a_sample_is_the_same_each_time(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, shards)
    one, other = (reconstruct_samples(run, shards, "train", 1)[0] for _ in range(2))
    assert one.words == other.words
    np.testing.assert_array_equal(one.reconstructed_HW, other.reconstructed_HW)


def test_shards_of_another_tokenizer_are_refused(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, shards, tokenizer_sha256="0" * 64)
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        reconstruct_samples(run, None, None, 1)


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        reconstruct_samples(tmp_path, None, None, 1)


def test_a_run_of_images_alone_is_refused(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, shards, "method.report_loss_weight=0")
    with pytest.raises(ConfigError, match="reconstructs only one of image and report"):
        reconstruct_samples(run, None, None, 1)


def test_a_set_without_validation_samples_shows_training_ones(tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "tree", 2, size=80, workers=1, progress=None)
    pack("mimic", tmp_path / "tree", tmp_path / "shards", options=PackOptions(short_side=80, vocabulary=100))
    samples = reconstruct_samples(make_run(tmp_path, tmp_path / "shards"), None, None, 2)
    assert {sample.split for sample in samples} == {"train"}


def test_damaged_validation_samples_do_not_become_training_ones(shards: Path, tmp_path: Path) -> None:
    run, damaged = make_run(tmp_path, shards), tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    found = list(damaged.glob("validate-*.tar"))
    assert found
    for shard in found:
        shard.unlink()
    with pytest.raises(ShardError, match=r"validate-\d+.tar: cannot be read"):
        reconstruct_samples(run, damaged, None, 1)


def test_a_data_set_that_was_moved_can_be_named(shards: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, shards, f"data.shards={tmp_path / 'moved'}")
    with pytest.raises(ShardError, match="is not here\n  Say where it is now: --shards DIR"):
        reconstruct_samples(run, None, None, 1)
    assert len(reconstruct_samples(run, shards, None, 1)) == 1


def test_punctuation_is_not_counted_as_words() -> None:
    flat = np.zeros((64, 64), np.uint8)
    words = [Word("clear", "clear"), Word(".", "."), Word("___", "___"), Word("2", "3"), Word("lungs", None)]
    samples = [ReconstructedSample(key, flat, flat, flat, words, "train") for key in "ab"]
    assert counted_words(samples) == (2, 4)


def test_words_are_put_together_from_their_pieces() -> None:
    tokens = ["no", "pneumo", "##thorax", "##es", ".", "##x"]
    reconstructed = ["a", "pneumo", "##nia", "##s", ":", "y"]
    words = words_of(tokens, reconstructed, [False, True, True, False, True, False])
    assert words == [Word("no", None), Word("pneumothoraxes", "pneumoniaes"), Word(".x", ":x")]


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour)).all(axis=-1).any())


@pytest.mark.parametrize(
    ("reconstructed", "green", "red"), [("clear", True, False), ("dark", False, True), (None, False, False)]
)
def test_the_figure_shows_the_images_and_marks_the_words(reconstructed: str | None, green: bool, red: bool) -> None:
    masked_HW, reconstructed_HW, truth_HW = (np.full((64, 64), value, np.uint8) for value in (10, 90, 200))
    words = [Word("lungs", None), Word("clear", reconstructed)]
    sample = ReconstructedSample("k", masked_HW, reconstructed_HW, truth_HW, words, "train")
    picture = np.asarray(reconstruction_figure([sample]))
    middle = 34 + PANEL // 2
    assert [int(picture[middle, 16 + PANEL // 2 + number * (PANEL + 16), 0]) for number in range(3)] == [10, 90, 200]
    report = picture[34 : 34 + PANEL, 3 * (PANEL + 16) :]
    assert has_colour(report, RIGHT) == green
    assert has_colour(report, WRONG) == red


def test_a_long_report_stays_inside_its_row() -> None:
    flat = np.zeros((64, 64), np.uint8)
    words = [Word("pneumothorax", "effusion")] * 400
    picture = np.asarray(reconstruction_figure([ReconstructedSample("k", flat, flat, flat, words, "train")]))
    below = picture[34 + PANEL : 34 + PANEL + 16, 3 * (PANEL + 16) :]
    assert (below == 255).all()


def test_curves_need_a_log_and_pass_over_half_a_line(tmp_path: Path) -> None:
    with pytest.raises(MrmStreamError, match="has logged nothing yet"):
        curves_figure(tmp_path)
    line = '{"step": 1, "epoch": 0.5, "image_loss": 1.0, "report_loss": 2.0, "report_loss_masked": 2.5}\n'
    (tmp_path / "metrics.jsonl").write_text(line + line[:20])
    assert curves_figure(tmp_path).size == (1320, 330)
    # Over masked words alone, as the paper's recipe has it, the two are one.
    (tmp_path / "metrics.jsonl").write_text(line.replace("2.5", "2.0"))
    assert curves_figure(tmp_path).size == (880, 330)


def test_a_picture_that_is_no_png_or_has_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MrmStreamError, match="written as PNG"):
        check_picture(tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(MrmStreamError, match="cannot be written: Not a directory"):
        check_picture(tmp_path / "file" / "a.png")
