"""The settings that every task has: which samples, the optimizer, the engine, where a run writes.

`load_config` (in `file.py`) fills these from YAML and `--set`. A task adds sections of its own, as `pretrain.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mrm_stream.config.on_resume import SHARED, OnResume
from mrm_stream.errors import ConfigError
from mrm_stream.storage.paths import local_fault

LARGEST_SIDE = 1 << 14
"""Pixels of an image, as packed; and width of a network: no machine has memory for more."""


def require(condition: bool, setting: str, what: str, remedy: str | None = None) -> None:
    """Raise ConfigError where a setting is not what it may be."""
    if not condition:
        raise ConfigError(what, where=setting, remedy=remedy)


def require_range(setting: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError where a number is out of range."""
    require(low <= value <= high, setting, f"must be between {low:,} and {high:,}")


def require_local(setting: str, path: str) -> None:
    """Raise ConfigError where a path is none of this machine's."""
    fault = local_fault(path)
    require(fault is None, setting, f"{fault}: {path}", "Give a folder or file of this machine, written in full.")


@dataclass(frozen=True)
class DataConfig:
    """Which samples, and how they are brought here: of any task."""

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
        require_local("data.cache", self.cache)
        require(self.window >= 1, "data.window", "must be at least 1")
        for name in ("threads", "prefetch"):
            require_range(f"data.{name}", getattr(self, name), 1, 1024)
        require(all(share > 0 for share in self.mixture.values()), "data.mixture", "shares must be positive")
        require(0 < self.cache_gb <= 1e9, "data.cache_gb", "must be positive, and at most 1e9")
        require(self.max_bad_samples >= 0, "data.max_bad_samples", "must not be negative")


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
        require_range("optim.batch_size", self.batch_size, 1, 1 << 24)
        micro = self.micro_batch_size
        require(micro is None or micro >= 1, "optim.micro_batch_size", "must be at least 1")
        require(0 < self.epochs <= 1e6, "optim.epochs", "must be positive, and at most a million")
        require(0 <= self.warmup_epochs <= self.epochs, "optim.warmup_epochs", "must be between 0 and epochs")
        require(self.base_lr > 0 and self.min_lr >= 0, "optim.base_lr", "must be positive, min_lr not negative")
        peak = self.base_lr * self.batch_size / 256
        require(self.min_lr <= peak, "optim.min_lr", f"is above the rate that it is to fall from ({peak:.3g})")
        require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", "must be in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay", "must not be negative")
        require(self.gradient_clip >= 0, "optim.gradient_clip", "must not be negative")


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
        require(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", "must be 0, 1, 2 or 3")
        rounded_only_on_the_way = self.precision == "fp32" and self.communication == "bf16"
        require(not rounded_only_on_the_way, "engine.communication", "must be fp32 where engine.precision is")


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
        require_local("run.out", self.out)
        require_local("run.init", self.init)
        require(self.connect_s > 0, "run.connect_s", "must be positive")
        for name in ("log_every", "save_every", "keep"):
            require(getattr(self, name) >= 1, f"run.{name}", "must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run of any task."""

    seed: int = 0
    """Of every random draw: order, crops, masks, initial weights, dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    recipes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    """Values of `recipe`, where a task has this setting, and the defaults that each stands for."""
    on_resume: ClassVar[Mapping[str, OnResume]] = SHARED
    """Of each setting, whether a resumed run may have another."""

    def __post_init__(self) -> None:
        """Check what holds between sections."""
        require(0 <= self.seed < 2**63, "seed", "must be between 0 and 2**63 - 1")
