"""Every setting of a pre-training run: what it means, its default, what it may be.

`load_config` (in `file.py`) fills these from YAML and `--set`. A recipe is a set of defaults; each of its lines
is its own setting too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mrm_stream.errors import ConfigError
from mrm_stream.storage.paths import local_fault

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # Zhou et al.'s code; the dataclasses' own defaults.
    "reference": {},
    # Zhou et al., ICLR 2023, where the text and the code differ.
    "paper": {
        "model": {"positions": "mae"},
        "method": {"pixel_target": "pixels", "report_loss_over": "masked", "token_masking": "token"},
    },
}


LARGEST_SIDE = 1 << 14
"""Pixels of an image, as packed; and width of a network: no machine has memory for more."""


def _require(condition: bool, setting: str, what: str, remedy: str | None = None) -> None:
    if not condition:
        raise ConfigError(what, where=setting, remedy=remedy)


def _require_range(setting: str, value: float, low: float, high: float) -> None:
    _require(low <= value <= high, setting, f"must be between {low:,} and {high:,}")


def _require_local(setting: str, path: str) -> None:
    fault = local_fault(path)
    _require(fault is None, setting, f"{fault}: {path}", "Give a folder or file of this machine, written in full.")


def _require_grey(setting: str, value: float, *, is_positive: bool) -> None:
    """Both ends of [0, 1] are given in grey levels by many another program."""
    levels = next((levels for levels in (255, 65_535) if 1 < value <= levels), None)
    remedy = None if levels is None else f"{value:g} of {levels} is {value / levels:.4g}."
    what = "is of grey values in [0, 1]"
    _require(0 <= value <= 1 and not (is_positive and value == 0), setting, what, remedy)


@dataclass(frozen=True)
class DataConfig:
    """Which samples, and what is cut from them."""

    shards: str = ""
    """Directory or URL of a packed data set (`mrm-stream shard`)."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """Further packed sets with the same tokenizer, each with its share of the samples; that of `shards` is 1."""
    cache: str = ""
    """Local folder in which shards are kept that lie elsewhere: at a URL (needed then), or on a slow shared file system
    (which is then read in whole shards, in order, never sample by sample). The ranks of a machine share it."""
    cache_gb: float = 100.0
    """Gigabytes of one set that may lie in the cache; three windows of shards need to find room. What is left there of
    other sets, or of other versions of one, is not counted: remove it by hand."""
    split: Literal["train", "validate", "test"] = "train"
    """The part of the data set to train on."""
    hr_size: int = 448
    """Side of the crop and of what the image decoder restores, in pixels."""
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
    window: int = 16
    """Shards that one stretch of an epoch is shuffled over: more mixes better, fewer touch less disk at once."""
    backend: Literal["auto", "dali", "turbojpeg"] = "auto"
    """What decodes: DALI (GPU or CPU), or libjpeg-turbo on the CPU. auto: DALI with a GPU, else libjpeg-turbo."""
    threads: int = 2
    """CPU threads that decode, a rank."""
    prefetch: int = 2
    """Batches decoded ahead of the step that trains on them."""
    max_bad_samples: int = 100
    """A run that has replaced more damaged samples than this, over all ranks, ends with an error."""

    def __post_init__(self) -> None:
        """Check each range."""
        _require_local("data.cache", self.cache)
        _require(self.lr_size >= 1, "data.lr_size", "must be at least 1")
        _require(self.hr_size <= LARGEST_SIDE, "data.hr_size", f"must be at most {LARGEST_SIDE:,} pixels")
        _require(
            self.hr_size >= self.lr_size and self.hr_size % self.lr_size == 0,
            "data.hr_size",
            f"must be a multiple of lr_size ({self.lr_size})",
        )
        low, high = self.crop_area
        # Of less, a crop may round to no pixel at all, and the largest is taken in its place.
        _require(0.001 <= low <= high <= 1, "data.crop_area", "must be two numbers in [0.001, 1], the smaller first")
        low, high = self.crop_ratio
        _require(0.1 <= low <= high <= 10, "data.crop_ratio", "must be two numbers in [0.1, 10], the smaller first")
        _require(0 <= self.flip <= 1, "data.flip", "is a chance: 0 to 1")
        _require_grey("data.mean", self.mean, is_positive=False)
        _require_grey("data.std", self.std, is_positive=True)
        _require(self.report_length >= 3, "data.report_length", "must be at least 3")
        _require(self.window >= 1, "data.window", "must be at least 1")
        for name in ("threads", "prefetch"):
            _require_range(f"data.{name}", getattr(self, name), 1, 1024)
        _require(all(share > 0 for share in self.mixture.values()), "data.mixture", "shares must be positive")
        _require(0 < self.cache_gb <= 1e9, "data.cache_gb", "must be positive, and at most 1e9")
        _require(self.max_bad_samples >= 0, "data.max_bad_samples", "must not be negative")


@dataclass(frozen=True)
class ViTConfig:
    """Size of a stack of transformer blocks."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        """Check that the heads share the width."""
        # Which of the two stacks it is, the file's reader knows.
        _require(min(self.width, self.depth, self.heads) >= 1, "", "width, depth and heads must be at least 1")
        _require(self.width % self.heads == 0, "", f"heads ({self.heads}) must divide the width ({self.width})")
        is_sane = self.width <= LARGEST_SIDE and self.depth <= 1000
        _require(is_sane, "", f"width must be at most {LARGEST_SIDE:,}, and depth 1,000")


@dataclass(frozen=True)
class ReportDecoderConfig:
    """Size of the BERT that restores reports."""

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
        _require(min(self.width, self.depth, self.heads, self.feed_forward) >= 1, name, "sizes must be at least 1")
        _require(self.width % self.heads == 0, name, f"heads ({self.heads}) must divide the width ({self.width})")
        is_sane = max(self.width, self.feed_forward / 4, self.positions) <= LARGEST_SIDE and self.depth <= 1000
        what = f"width and positions must be at most {LARGEST_SIDE:,}, feed_forward four times that, depth 1,000"
        _require(is_sane, name, what)
        _require(0 <= self.dropout < 1, f"{name}.dropout", "must be in [0, 1)")


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
        _require(self.patch >= 1, "model.patch", "must be at least 1")
        for name in ("image_encoder", "image_decoder"):
            _require(getattr(self, name).width % 4 == 0, f"model.{name}.width", "must be a multiple of 4")


@dataclass(frozen=True)
class MethodConfig:
    """Masked record modelling: what is hidden, what is restored, what is compared."""

    mask_ratio: float = 0.75
    """Share of the patches masked for the image encoder; 0 masks none, and then all are reconstructed. What stays
    visible is cut off to whole patches, as in the code."""
    report_mask_ratio: float = 0.5
    """Chance that a word (or token) is hidden from the report decoder."""
    token_masking: Literal["word", "token"] = "word"
    """word: a word's `##` pieces follow its first, position 0 and the last are never hidden (code); token (paper)."""
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
    """Restore patches of the high-resolution image; false: of the encoder's own input."""
    hybrid_features: bool = False
    """Add the mean embedding of the report's visible tokens to the image decoder's input."""

    def __post_init__(self) -> None:
        """Check each range."""
        _require(0 <= self.mask_ratio < 1, "method.mask_ratio", "must be in [0, 1)")
        _require(0 <= self.report_mask_ratio < 1, "method.report_mask_ratio", "must be in [0, 1)")
        weights = self.image_loss_weight, self.report_loss_weight
        _require(min(weights) >= 0 < max(weights), "method.image_loss_weight", "weights must be >= 0, not both 0")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and how many samples a step takes."""

    batch_size: int = 256
    """Samples of one optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Samples of one forward pass on one rank; None: all of the rank's share at once."""
    epochs: float = 200
    warmup_epochs: float = 40
    """Linear rise of the learning rate; a cosine to `min_lr` follows."""
    base_lr: float = 1.5e-4
    """Learning rate for 256 samples a step: the rate used is base_lr * batch_size / 256."""
    min_lr: float = 0.0
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 0.0
    """Largest norm of the gradient; 0: not clipped, as in the reference code."""

    def __post_init__(self) -> None:
        """Check each range."""
        _require_range("optim.batch_size", self.batch_size, 1, 1 << 24)
        micro = self.micro_batch_size
        _require(micro is None or micro >= 1, "optim.micro_batch_size", "must be at least 1")
        _require(0 < self.epochs <= 1e6, "optim.epochs", "must be positive, and at most a million")
        _require(0 <= self.warmup_epochs <= self.epochs, "optim.warmup_epochs", "must be between 0 and epochs")
        _require(self.base_lr > 0 and self.min_lr >= 0, "optim.base_lr", "must be positive, min_lr not negative")
        peak = self.base_lr * self.batch_size / 256
        _require(self.min_lr <= peak, "optim.min_lr", f"is above the rate that it is to fall from ({peak:.3g})")
        _require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", "must be in [0, 1)")
        _require(self.weight_decay >= 0, "optim.weight_decay", "must not be negative")
        _require(self.gradient_clip >= 0, "optim.gradient_clip", "must not be negative")


@dataclass(frozen=True)
class EngineConfig:
    """How DeepSpeed runs the training."""

    zero_stage: int = 1
    """What is split over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the matrix products; weights, gradients and moments are float32 under both."""
    communication: Literal["fp32", "bf16"] = "fp32"
    """bf16 rounds the gradients of linear layers (at stage 3 their weights, too) on their way between ranks: half the
    traffic."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile)."""

    def __post_init__(self) -> None:
        """Check the stage."""
        _require(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", "must be 0, 1, 2 or 3")
        rounded_only_on_the_way = self.precision == "fp32" and self.communication == "bf16"
        _require(not rounded_only_on_the_way, "engine.communication", "must be fp32 where engine.precision is")


@dataclass(frozen=True)
class RunConfig:
    """Where the run writes, and how often."""

    out: str = ""
    """Directory of the run; a run that is found there is continued."""
    init: str = ""
    """Start from these weights: an MAE, timm or MRM checkpoint, or an encoder exported here. The report decoder of an
    MRM checkpoint knows the words of its own tokenizer only: pack the shards with that one."""
    log_every: int = 10
    """Steps between two lines of the log."""
    save_every: int = 1000
    """Steps between two checkpoints; one is always saved at the end."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""
    connect_s: float = 600.0
    """Seconds that a rank waits for the others to come, before it gives up."""

    def __post_init__(self) -> None:
        """Check each range."""
        _require_local("run.out", self.out)
        _require_local("run.init", self.init)
        _require(self.connect_s > 0, "run.connect_s", "must be positive")
        for name in ("log_every", "save_every", "keep"):
            _require(getattr(self, name) >= 1, f"run.{name}", "must be at least 1")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    recipe: Literal["reference", "paper"] = "reference"
    """Whose defaults: the reference code's or the paper's, where the two differ."""
    seed: int = 0
    """Of every random draw: order, crops, masks, initial weights, dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check what holds between sections."""
        _require(0 <= self.seed < 2**63, "seed", "must be between 0 and 2**63 - 1")
        _require(
            self.data.lr_size % self.model.patch == 0, "model.patch", f"must divide data.lr_size ({self.data.lr_size})"
        )
        _require(
            self.data.report_length <= self.model.report_decoder.positions,
            "data.report_length",
            f"is over model.report_decoder.positions ({self.model.report_decoder.positions})",
        )
