"""What a trained model reconstructs of some samples: the contents of the paper's Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mrm_stream.config.pretrain import PretrainDataConfig
from mrm_stream.errors import CheckpointError, ConfigError, ShardError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.storage.access import is_folder
from mrm_stream.storage.paths import AnyPath, parse_path
from mrm_stream.stream.loader import Draw
from mrm_stream.stream.opening import open_set
from mrm_stream.stream.shard_set import ShardSet
from mrm_stream.stream.source import Needs, reports_of
from mrm_stream.tasks.pretrain import Pretraining, load_run
from mrm_stream.text.tokenizer import CLS, PAD, load_tokenizer, token_strings


@dataclass(frozen=True)
class Word:
    """One word of a report, as the figure shows it."""

    truth: str
    reconstructed: str | None
    """What the model predicted; None where the word was visible."""

    @property
    def is_counted(self) -> bool:
        """Whether this word was masked and is more than punctuation, which is easily predicted."""
        return self.reconstructed is not None and any(character.isalnum() for character in self.truth)


@dataclass(frozen=True)
class ReconstructedSample:
    """One radiograph and its report: as the model saw them, as it reconstructed them, and as they are."""

    key: str
    masked_HW: NDArray[np.uint8]
    """What the encoder saw, at high resolution, (H, H); masked patches are mid-grey."""
    reconstructed_HW: NDArray[np.uint8]
    """Masked patches as the model reconstructed them, visible ones as they were, (H, H)."""
    truth_HW: NDArray[np.uint8]
    """The radiograph's central square, (H, H)."""
    words: list[Word]
    split: str
    """The split of the data set that it was drawn from."""


def reconstruct_samples(run: Path, shards: AnyPath | None, split: str | None, count: int) -> list[ReconstructedSample]:
    """Mask some samples as in training, without augmentation, and reconstruct them with a run's newest checkpoint.

    Args:
        run: Directory of a run.
        shards: Packed data set; None: the one that the run was trained on.
        split: Part of it; None: validate where there is one, else train.
        count: Samples to take, spread evenly over the split.

    Raises:
        CheckpointError: The run has no checkpoint, or it does not fit the data set's tokenizer.
        ConfigError: There is no run here, or it has no image decoder or no report decoder.
        ShardError: The data set cannot be read, or is no longer where the run found it.
    """
    config, checkpoint, model = load_run(run)
    if not config.method.image_loss_weight or not config.method.report_loss_weight:
        raise ConfigError("the run reconstructs only one of image and report", where=run, remedy="Take a run of both.")
    directory = shards if shards is not None else parse_path(config.data.shards)
    if shards is None and not is_folder(directory):
        raise ShardError(
            "the data set that the run was trained on is not here",
            where=config.data.shards,
            remedy="Say where it is now: --shards DIR.",
        )
    opened = _open(directory, split, config.data)
    if reports_of(opened).tokenizer_sha256 != checkpoint.state["tokenizer_sha256"]:
        raise CheckpointError(
            f"was trained with another tokenizer than that of {opened.directory}",
            where=checkpoint.directory,
            remedy="Pack the set with --tokenizer and the tokenizer.json of the shards that the run was trained on.",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    batches = Pretraining(config).make_batches(opened, device)
    indexes = np.linspace(0, len(opened) - 1, min(count, len(opened))).round().astype(int).tolist()
    draws = [Draw(opened.sample(index), epoch=0) for index in indexes]
    batch = batches.whole(draws).take()
    batches.close()
    reconstruction = model.reconstruct(batch)
    assert reconstruction.image_BCHW is not None
    assert reconstruction.token_ids_BL is not None
    tokenizer = load_tokenizer(opened.tokenizer_file())
    token_ids_BL, is_masked_BL = batch.token_ids_BL.cpu(), batch.token_is_masked_BL.cpu()
    reconstructed_ids_BL = reconstruction.token_ids_BL.cpu()
    is_word_BL = (token_ids_BL != PAD) & (token_ids_BL != CLS)
    samples = []
    for number, draw in enumerate(draws):
        truth_HW = _to_uint8(batch.image_hr_BCHW[number, 0] * config.data.std + config.data.mean)
        seen_HW = _upsampled(reconstruction.is_visible_BN[number].cpu().numpy(), truth_HW.shape[0])
        reconstructed_HW = _to_uint8(_resized(reconstruction.image_BCHW[number, 0], truth_HW.shape[0]))
        samples.append(
            ReconstructedSample(
                key=draw.sample.key,
                masked_HW=np.where(seen_HW, truth_HW, np.uint8(128)),
                reconstructed_HW=np.where(seen_HW, truth_HW, reconstructed_HW),
                truth_HW=truth_HW,
                words=words_of(
                    token_strings(tokenizer, token_ids_BL[number][is_word_BL[number]].tolist()),
                    token_strings(tokenizer, reconstructed_ids_BL[number][is_word_BL[number]].tolist()),
                    is_masked_BL[number][is_word_BL[number]].tolist(),
                ),
                split=opened.split,
            )
        )
    return samples


def counted_words(samples: Sequence[ReconstructedSample]) -> tuple[int, int]:
    """Return how many masked words were reconstructed correctly, and how many were masked; punctuation is no word."""
    counted = [word for sample in samples for word in sample.words if word.is_counted]
    return sum(word.reconstructed == word.truth for word in counted), len(counted)


def words_of(tokens: Sequence[str], reconstructed: Sequence[str], is_masked: Sequence[bool]) -> list[Word]:
    """Join `##` pieces to words; a word of which any piece was masked counts as masked.

    Args:
        tokens: The report's tokens.
        reconstructed: What the model predicts at each of their positions.
        is_masked: Whether the token was masked; predictions at visible positions are ignored.

    Example:
        >>> words_of(["pleural", "effu", "##sion"], ["the", "effu", "##sions"], [False, True, True])
        [Word(truth='pleural', reconstructed=None), Word(truth='effusion', reconstructed='effusions')]
    """
    words: list[list[tuple[str, str, bool]]] = []
    for piece in zip(tokens, reconstructed, is_masked, strict=True):
        if piece[0].startswith("##") and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    return [
        Word(
            truth="".join(truth.removeprefix("##") for truth, _, _ in pieces),
            reconstructed="".join((guess if masked else truth).removeprefix("##") for truth, guess, masked in pieces)
            if any(masked for _, _, masked in pieces)
            else None,
        )
        for pieces in words
    ]


def _open(directory: AnyPath, split: str | None, data: PretrainDataConfig) -> ShardSet:
    if split is None:
        # By the manifest, not by what opens: where the validation split is damaged, that is an error, never a reason
        # to show samples that the model was trained on.
        split = "validate" if read_manifest(directory).samples("validate") else "train"
    return open_set(directory, split, data, Needs(reports=True))


def _to_uint8(image_HW: torch.Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = (image_HW.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return array


def _resized(image_HW: torch.Tensor, side: int) -> torch.Tensor:
    # Without super-resolution the reconstruction has the encoder's resolution.
    return torch.nn.functional.interpolate(image_HW[None, None].float(), (side, side), mode="bilinear")[0, 0]


def _upsampled(is_visible_N: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    grid = round(len(is_visible_N) ** 0.5)
    return np.kron(is_visible_N.reshape(grid, grid), np.ones((side // grid, side // grid), bool))
