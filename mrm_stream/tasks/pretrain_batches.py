"""Draws to batches: the transform that a loader runs ahead of the model. Stream, decode and model meet here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mrm_stream.config.pretrain import MethodConfig, PretrainDataConfig
from mrm_stream.decode.crops import Crops, central_crops, random_crops
from mrm_stream.decode.decoder import make_decoder
from mrm_stream.decode.device import DeviceSide, Handover
from mrm_stream.decode.jpeg import jpeg_sizes
from mrm_stream.decode.views import ViewMaker
from mrm_stream.model.masking import mask_tokens, pad_reports, patch_noise
from mrm_stream.records import Batch
from mrm_stream.stream.loader import Draw
from mrm_stream.text.tokenizer import continuation_table, load_tokenizer


class BatchMaker:
    """Decodes, crops and masks; everything random is keyed by seed, epoch and sample.

    Args:
        data: What is cut from each radiograph and report.
        method: How much is masked.
        patches: Patches of a low-resolution image.
        tokenizer: File of the set's tokenizer: tells which tokens continue a word.
        seed: Of the run.
        device: Where batches are wanted.
    """

    def __init__(
        self,
        data: PretrainDataConfig,
        method: MethodConfig,
        *,
        patches: int,
        tokenizer: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self._data, self._method = data, method
        self._patches, self._seed = patches, seed
        self._side = DeviceSide(device)
        self.seconds_decoding, self.bytes_decoded = 0.0, 0
        """So far: time and JPEG bytes of what became batches."""
        self._is_continuation_V = continuation_table(load_tokenizer(tokenizer))
        self._decoder = make_decoder(data.backend, size=data.hr_size, threads=data.threads, device=device)
        self._make_views = ViewMaker(
            self._decoder, mean=data.mean, std=data.std, lr_size=data.lr_size, antialias=data.antialias
        )

    def __call__(self, draws: Sequence[Draw]) -> Handover[Batch]:
        """Return a training batch, for the step to take: a random crop, perhaps flipped, of each sample.

        Raises:
            DamagedSamplesError: Some radiographs cannot be decoded.
        """
        epochs_B, indexes_B, sizes_B2 = self._identities(draws)
        crops = random_crops(
            sizes_B2,
            epochs_B,
            indexes_B,
            seed=self._seed,
            area=self._data.crop_area,
            ratio=self._data.crop_ratio,
            flip=self._data.flip,
        )
        return self._batch(draws, epochs_B, indexes_B, crops)

    def whole(self, draws: Sequence[Draw]) -> Handover[Batch]:
        """Return the same without augmentation: the central square of each radiograph; masks are drawn as ever."""
        epochs_B, indexes_B, sizes_B2 = self._identities(draws)
        return self._batch(draws, epochs_B, indexes_B, central_crops(sizes_B2))

    def close(self) -> None:
        """Stop the decoder's threads."""
        self._decoder.close()

    def _identities(self, draws: Sequence[Draw]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        epochs_B = np.array([draw.epoch for draw in draws], np.int64)
        indexes_B = np.array([draw.sample.index for draw in draws], np.int64)
        return epochs_B, indexes_B, jpeg_sizes([draw.sample.jpeg for draw in draws])

    def _batch(
        self, draws: Sequence[Draw], epochs_B: NDArray[np.int64], indexes_B: NDArray[np.int64], crops: Crops
    ) -> Handover[Batch]:
        token_ids_BL = pad_reports([_token_ids(draw) for draw in draws], self._data.report_length)
        token_is_masked_BL = mask_tokens(
            token_ids_BL,
            seed=self._seed,
            epochs_B=epochs_B,
            indexes_B=indexes_B,
            ratio=self._method.report_mask_ratio,
            mode=self._method.token_masking,
            is_continuation_V=self._is_continuation_V,
        )
        noise_BN = patch_noise(self._seed, epochs_B, indexes_B, self._patches)
        with self._side.making():
            started = time.perf_counter()
            image_lr_BCHW, image_hr_BCHW = self._make_views([draw.sample.jpeg for draw in draws], crops)
            self.seconds_decoding += time.perf_counter() - started
            self.bytes_decoded += sum(len(draw.sample.jpeg) for draw in draws)
            batch = Batch(
                image_hr_BCHW=image_hr_BCHW,
                image_lr_BCHW=image_lr_BCHW,
                patch_noise_BN=self._side.copied(noise_BN),
                token_ids_BL=self._side.copied(token_ids_BL),
                token_is_masked_BL=self._side.copied(token_is_masked_BL),
            )
            return self._side.handover(batch)


def _token_ids(draw: Draw) -> NDArray[np.uint16]:
    assert draw.sample.token_ids is not None, "pre-training opens sets with reports alone"
    return draw.sample.token_ids
