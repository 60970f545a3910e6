"""The settings of pre-training alone: what is cut from a sample, the model, what is masked and compared.

A recipe is a set of defaults; each of its lines is its own setting too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mrm_stream.config.base import LARGEST_SIDE, DataConfig, TrainConfig, require
from mrm_stream.config.on_resume import SHARED, OnResume, refused

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # Zhou et al.'s code; the dataclasses' own defaults.
    "reference": {},
    # Zhou et al., ICLR 2023, where the text and the code differ.
    "paper": {
        "model": {"positions": "mae"},
        "method": {"pixel_target": "pixels", "report_loss_over": "masked", "token_masking": "token"},
    },
}


def require_grey(setting: str, value: float, *, is_positive: bool) -> None:
    """Both ends of [0, 1] are given in grey levels by many another program."""
    levels = next((levels for levels in (255, 65_535) if 1 < value <= levels), None)
    remedy = None if levels is None else f"{value:g} of {levels} is {value / levels:.4g}."
    what = "is of grey values in [0, 1]"
    require(0 <= value <= 1 and not (is_positive and value == 0), setting, what, remedy)


@dataclass(frozen=True)
class PretrainDataConfig(DataConfig):
    """Also what is cut from each radiograph and its report."""

    hr_size: int = 448
    """Side of the crop and of what the image decoder reconstructs, in pixels."""
    lr_size: int = 224
    """Side of the encoder's input, in pixels; must divide hr_size."""
    antialias: bool = False
    """Low-pass before down-sampling to lr_size. The reference code did not."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Share of the radiograph's area that a crop covers, least and most."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop, least and most."""
    flip: float = 0.5
    """Chance of a horizontal flip. It contradicts "left" and "right" in the report; the reference code flips."""
    mean: float = 0.4978
    """Subtracted from grey values in [0, 1]; of MIMIC-CXR."""
    std: float = 0.2449
    """Grey values are divided by this after the mean is subtracted."""
    report_length: int = 100
    """Tokens of a report that are used, the leading [CLS] included."""

    def __post_init__(self) -> None:
        """Check each range."""
        super().__post_init__()
        require(self.lr_size >= 1, "data.lr_size", "must be at least 1")
        require(self.hr_size <= LARGEST_SIDE, "data.hr_size", f"must be at most {LARGEST_SIDE:,} pixels")
        require(
            self.hr_size >= self.lr_size and self.hr_size % self.lr_size == 0,
            "data.hr_size",
            f"must be a multiple of lr_size ({self.lr_size})",
        )
        low, high = self.crop_area
        # Of less, a crop may round to no pixel at all, and the largest is taken in its place.
        require(0.001 <= low <= high <= 1, "data.crop_area", "must be two numbers in [0.001, 1], the smaller first")
        low, high = self.crop_ratio
        require(0.1 <= low <= high <= 10, "data.crop_ratio", "must be two numbers in [0.1, 10], the smaller first")
        require(0 <= self.flip <= 1, "data.flip", "is a chance: 0 to 1")
        require_grey("data.mean", self.mean, is_positive=False)
        require_grey("data.std", self.std, is_positive=True)
        require(self.report_length >= 3, "data.report_length", "must be at least 3")


@dataclass(frozen=True)
class ViTConfig:
    """Size of a stack of transformer blocks."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        """Check that the heads share the width."""
        # Which of the two stacks it is, the file's reader knows.
        require(min(self.width, self.depth, self.heads) >= 1, "", "width, depth and heads must be at least 1")
        require(self.width % self.heads == 0, "", f"heads ({self.heads}) must divide the width ({self.width})")
        is_sane = self.width <= LARGEST_SIDE and self.depth <= 1000
        require(is_sane, "", f"width must be at most {LARGEST_SIDE:,}, and depth 1,000")


@dataclass(frozen=True)
class ReportDecoderConfig:
    """Size of the BERT that reconstructs reports."""

    width: int = 384
    depth: int = 6
    heads: int = 6
    feed_forward: int = 1536
    dropout: float = 0.1
    positions: int = 100
    """Learnable positions: the longest report it can take."""

    def __post_init__(self) -> None:
        """Check that the heads share the width."""
        name = "model.report_decoder"
        require(min(self.width, self.depth, self.heads, self.feed_forward) >= 1, name, "sizes must be at least 1")
        require(self.width % self.heads == 0, name, f"heads ({self.heads}) must divide the width ({self.width})")
        is_sane = max(self.width, self.feed_forward / 4, self.positions) <= LARGEST_SIDE and self.depth <= 1000
        what = f"width and positions must be at most {LARGEST_SIDE:,}, feed_forward four times that, depth 1,000"
        require(is_sane, name, what)
        require(0 <= self.dropout < 1, f"{name}.dropout", "must be in [0, 1)")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the three networks; the defaults are the paper's ViT-B/16."""

    patch: int = 16
    """Side of a patch of the low-resolution image, in pixels."""
    positions: Literal["mae", "reference"] = "reference"
    """Fixed 2-D sine-cosine positions, of wavelengths up to 10 * 2 pi patches (code) or, as MAE's, to 10,000 * 2 pi
    (what the paper's words stand for). An encoder that starts from a file (run.init) has the file's own."""
    image_encoder: ViTConfig = field(default_factory=lambda: ViTConfig(width=768, depth=12, heads=12))
    image_decoder: ViTConfig = field(default_factory=lambda: ViTConfig(width=768, depth=4, heads=6))
    report_decoder: ReportDecoderConfig = field(default_factory=ReportDecoderConfig)

    def __post_init__(self) -> None:
        """Check what the fixed 2-D sine-cosine positions need."""
        require(self.patch >= 1, "model.patch", "must be at least 1")
        for name in ("image_encoder", "image_decoder"):
            require(getattr(self, name).width % 4 == 0, f"model.{name}.width", "must be a multiple of 4")


@dataclass(frozen=True)
class MethodConfig:
    """Masked record modelling: what is masked, what is reconstructed, what is compared."""

    mask_ratio: float = 0.75
    """Share of the patches masked for the image encoder; 0 masks none, and then all are reconstructed. What stays
    visible is cut off to whole patches, as in the code."""
    report_mask_ratio: float = 0.5
    """Chance that a word (or token) is masked for the report decoder."""
    token_masking: Literal["word", "token"] = "word"
    """word: a word's `##` pieces follow its first, position 0 and the last are never masked (code); token (paper)."""
    pixel_target: Literal["patch_normalized", "image_normalized", "pixels"] = "patch_normalized"
    """Compare with patches of mean 0 and variance 1 (code), with the image as the encoder sees it, less data.mean and
    over data.std (code without --norm_pix_loss), or with grey values in [0, 1] (paper)."""
    report_loss_over: Literal["all", "masked"] = "all"
    """all positions, visible and [PAD] too (code), or the masked tokens only (paper)."""
    image_loss_weight: float = 1.0
    """The paper's lambda; 0 leaves the image decoder out."""
    report_loss_weight: float = 1.0
    """0 leaves the report decoder out."""
    pooling: Literal["mean", "max"] = "mean"
    """How the visible patches become the one image feature that is added to the report's tokens."""
    super_resolution: bool = True
    """Reconstruct patches of the high-resolution image; false: of the encoder's own input."""
    hybrid_features: bool = False
    """Add the mean embedding of the report's visible tokens to the image decoder's input."""

    def __post_init__(self) -> None:
        """Check each range."""
        require(0 <= self.mask_ratio < 1, "method.mask_ratio", "must be in [0, 1)")
        require(0 <= self.report_mask_ratio < 1, "method.report_mask_ratio", "must be in [0, 1)")
        weights = self.image_loss_weight, self.report_loss_weight
        require(min(weights) >= 0 < max(weights), "method.image_loss_weight", "weights must be >= 0, not both 0")


_SEEN = refused("what the model sees of a sample")
_SIZES = refused("the weights of a checkpoint have these sizes")
_LOSS = refused("what is learned")
ON_RESUME: Mapping[str, OnResume] = {
    **SHARED,
    "recipe": OnResume("may change", "names defaults only: each of its settings is compared by itself"),
    "data.hr_size": _SEEN,
    "data.lr_size": _SEEN,
    "data.antialias": _SEEN,
    "data.crop_area": _SEEN,
    "data.crop_ratio": _SEEN,
    "data.flip": _SEEN,
    "data.mean": _SEEN,
    "data.std": _SEEN,
    "data.report_length": _SEEN,
    "model.patch": _SIZES,
    "model.image_encoder.width": _SIZES,
    "model.image_encoder.depth": _SIZES,
    "model.image_encoder.heads": _SIZES,
    "model.image_decoder.width": _SIZES,
    "model.image_decoder.depth": _SIZES,
    "model.image_decoder.heads": _SIZES,
    "model.report_decoder.width": _SIZES,
    "model.report_decoder.depth": _SIZES,
    "model.report_decoder.heads": _SIZES,
    "model.report_decoder.feed_forward": _SIZES,
    "model.report_decoder.dropout": _LOSS,
    "model.report_decoder.positions": _SIZES,
    "model.positions": refused("the model was trained with these"),
    "method.mask_ratio": _LOSS,
    "method.report_mask_ratio": _LOSS,
    "method.token_masking": _LOSS,
    "method.pixel_target": _LOSS,
    "method.report_loss_over": _LOSS,
    "method.image_loss_weight": _LOSS,
    "method.report_loss_weight": _LOSS,
    "method.pooling": _LOSS,
    "method.super_resolution": _LOSS,
    "method.hybrid_features": _LOSS,
}
"""The rule of every setting, for a run that is resumed."""


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Pre-training by masked record modelling."""

    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    recipe: Literal["reference", "paper"] = "reference"
    """Whose defaults: the reference code's or the paper's, where the two differ."""
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)

    recipes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = RECIPES
    on_resume: ClassVar[Mapping[str, OnResume]] = ON_RESUME

    def __post_init__(self) -> None:
        """Check what holds between sections."""
        super().__post_init__()
        require(
            self.data.lr_size % self.model.patch == 0, "model.patch", f"must divide data.lr_size ({self.data.lr_size})"
        )
        require(
            self.data.report_length <= self.model.report_decoder.positions,
            "data.report_length",
            f"is over model.report_decoder.positions ({self.model.report_decoder.positions})",
        )
